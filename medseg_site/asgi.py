"""The web process. Django answers HTTP, and Channels answers WebSockets."""

import os
import tempfile
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "medseg_site.settings")

import django

django.setup(set_prefix=False)

from channels.auth import AuthMiddlewareStack  # noqa: E402 (needs Django's apps)
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402 (needs Django's apps)
from channels.security.websocket import OriginValidator, WebsocketDenier  # noqa: E402 (needs Django's apps)
from django.conf import settings  # noqa: E402 (needs Django's apps)

from medseg_site.routing import websocket_urlpatterns  # noqa: E402 (needs Django's apps)
from medseg_site.shared.web.limits import UploadLimit  # noqa: E402 (needs Django's apps)
from medseg_site.shared.web.requests import Application  # noqa: E402 (needs Django's apps)

# Django writes request bodies here, because /tmp may be small or in memory. Workers keep /tmp as their default, because
# a worker that is killed leaves folders behind.
tempfile.tempdir = str(settings.TMP_DIR)


class OwnPagesAndPrograms(OriginValidator):
    """Refuses WebSockets from pages of other sites. A program sends no Origin, and is accepted."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        try:
            for name, value in scope["headers"]:
                if name == b"origin":
                    urlsplit(value.decode("latin1"))
        except ValueError:
            # The Origin is not an address, and the library would fail on it.
            return await WebsocketDenier()(scope, receive, send)
        return await super().__call__(scope, receive, send)

    def valid_origin(self, parsed_origin: Any) -> bool:
        return parsed_origin is None or bool(super().valid_origin(parsed_origin))


application = ProtocolTypeRouter(
    {
        "http": UploadLimit(Application(), settings.MEDSEG_MAX_UPLOAD_BYTES),
        "websocket": OwnPagesAndPrograms(AuthMiddlewareStack(URLRouter(websocket_urlpatterns)), settings.ALLOWED_HOSTS),
    }
)
