from django.urls import path

from inference import views

app_name = "inference"
urlpatterns = [
    path("", views.inference_list, name="list"),
    path("new/", views.inference_create, name="create"),
    path("<int:pk>/", views.inference_detail, name="detail"),
    path("<int:pk>/row/", views.inference_row, name="row"),
    path("<int:pk>/live/", views.inference_live, name="live"),
    path("<int:pk>/again/", views.inference_again, name="again"),
    path("<int:pk>/cancel/", views.inference_cancel, name="cancel"),
    path("<int:pk>/retry/", views.inference_retry, name="retry"),
    path("<int:pk>/delete/", views.inference_delete, name="delete"),
    path("batches/<int:pk>/", views.batch_detail, name="batch"),
    path("batches/<int:pk>/live/", views.batch_live, name="batch_live"),
    path("batches/<int:pk>/cancel/", views.batch_cancel, name="batch_cancel"),
    path("batches/<int:pk>/delete/", views.batch_delete, name="batch_delete"),
]
