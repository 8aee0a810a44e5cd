from django.urls import path

from models_app.consumers import ModelConsumer

websocket_urlpatterns = [path("ws/models/<int:pk>/", ModelConsumer.as_asgi())]
