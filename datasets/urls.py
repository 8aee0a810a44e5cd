from django.urls import path

from datasets import views

app_name = "datasets"
urlpatterns = [
    path("", views.dataset_list, name="list"),
    path("new/", views.dataset_upload, name="upload"),
    path("<int:pk>/", views.dataset_detail, name="detail"),
    path("<int:pk>/row/", views.dataset_row, name="row"),
    path("<int:pk>/versions/new/", views.dataset_version, name="version"),
    path("<int:pk>/live/", views.dataset_live, name="live"),
    path("<int:pk>/recheck/", views.dataset_recheck, name="recheck"),
    path("<int:pk>/cancel/", views.dataset_cancel, name="cancel"),
    path("<int:pk>/reading/", views.dataset_reading, name="reading"),
    path("<int:pk>/delete/", views.dataset_delete, name="delete"),
    path("<int:pk>/classes/<int:class_pk>/", views.class_edit, name="class"),
    path("<int:pk>/samples/<int:sample_pk>/", views.sample_detail, name="sample"),
]
