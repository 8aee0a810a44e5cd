"""The one web process: HTTP by Django, WebSockets by Channels."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "medseg_site.settings")

from django.core.asgi import get_asgi_application

django_application = get_asgi_application()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.conf import settings  # noqa: E402

from medseg_site.routing import websocket_urlpatterns  # noqa: E402
from medseg_site.shared.upload_limit import UploadLimit  # noqa: E402

application = ProtocolTypeRouter(
    {
        "http": UploadLimit(django_application, settings.MEDSEG_MAX_UPLOAD_BYTES),
        "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(websocket_urlpatterns))),
    }
)
