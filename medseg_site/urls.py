"""All addresses of the platform: pages, API, admin and health checks."""

from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView
from rest_framework.routers import DefaultRouter

from datasets.api import DatasetViewSet
from inference.api import InferenceBatchViewSet, InferenceViewSet
from medseg_site.shared.web import health
from medseg_site.views import home, start_demo
from models_app.api import ArchitectureListView, ModelViewSet
from uploads.api import UploadViewSet

router = DefaultRouter()
router.include_root_view = False
router.register("datasets", DatasetViewSet, basename="dataset")
router.register("models", ModelViewSet, basename="model")
router.register("inferences", InferenceViewSet, basename="inference")
router.register("inference-batches", InferenceBatchViewSet, basename="inference-batch")
router.register("uploads", UploadViewSet, basename="upload")

handler404 = "medseg_site.shared.web.failures.not_found"
handler500 = "medseg_site.shared.web.failures.failure"

urlpatterns = [
    path("", home, name="home"),
    path("demo/", start_demo, name="demo"),
    path("datasets/", include("datasets.urls")),
    path("models/", include("models_app.urls")),
    path("inferences/", include("inference.urls")),
    path("admin/", admin.site.urls),
    path("api/v1/architectures/", ArchitectureListView.as_view(), name="architecture-list"),
    path("api/v1/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("api/v1/docs/", SpectacularSwaggerView.as_view(url_name="schema"), name="api-docs"),
    path("api/v1/", include(router.urls)),
    path("healthz", health.healthz),
    path("readyz", health.readyz),
]
