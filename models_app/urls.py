from django.urls import path

from models_app import views

app_name = "models_app"
urlpatterns = [
    path("", views.model_list, name="list"),
    path("new/", views.model_create, name="create"),
    path("plan/", views.model_plan, name="plan"),
    path("<int:pk>/", views.model_detail, name="detail"),
    path("<int:pk>/row/", views.model_row, name="row"),
    path("<int:pk>/live/", views.model_live, name="live"),
    path("<int:pk>/cancel/", views.model_cancel, name="cancel"),
    path("<int:pk>/resume/", views.model_resume, name="resume"),
    path("<int:pk>/delete/", views.model_delete, name="delete"),
]
