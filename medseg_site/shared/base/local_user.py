"""One person, no login: who the requests belong to while MEDSEG_SINGLE_USER is on.

Without a login every page that the person's browser has open could talk to the platform, so requests that change
something must come from the platform's own pages or from a program, not from another site.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, User
from django.http import HttpRequest, HttpResponse
from rest_framework.authentication import BaseAuthentication, TokenAuthentication
from rest_framework.exceptions import AuthenticationFailed, PermissionDenied
from rest_framework.request import Request

SAFE_METHODS = {"GET", "HEAD", "OPTIONS", "TRACE"}


def local_user() -> User:
    """The single user, made at first need; has no password, so nobody can log in as them."""
    user = User.objects.filter(username="local").first()
    if user is None:
        user, _ = User.objects.get_or_create(
            username="local", defaults={"is_staff": True, "is_superuser": True, "password": "!"}
        )
    return user


def is_cross_site(request: HttpRequest) -> bool:
    """True where a browser says that another site sent this request."""
    if request.headers.get("Sec-Fetch-Site") in {"cross-site", "same-site"}:
        return True
    origin = request.headers.get("Origin")
    try:
        return origin is not None and urlsplit(origin).netloc != request.get_host()
    except ValueError:  # an Origin that is no address
        return True


class LocalUserMiddleware:
    """Gives every request of a single-user platform its user."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        session = getattr(request, "session", None)
        if session is not None and "\0" in (session.session_key or ""):
            request.session = type(session)()  # no session has such a key, and Postgres refuses to look for it
        needs_user = not request.path.startswith(("/static/", "/healthz", "/readyz"))
        if settings.MEDSEG_SINGLE_USER and needs_user and not request.user.is_authenticated:
            request.user = local_user()
        return self.get_response(request)


class LocalUserAuthentication(BaseAuthentication):
    """The API's side of the same: programs need no token, other sites' pages are refused."""

    def authenticate(self, request: Request) -> tuple[AbstractBaseUser, None] | None:
        if not settings.MEDSEG_SINGLE_USER:
            return None
        if request.method not in SAFE_METHODS and is_cross_site(request._request):
            raise PermissionDenied("This request comes from another site. Use the platform's own pages or a program.")
        user = getattr(request._request, "user", None)  # from the middleware; none while the OpenAPI document is made
        return (user, None) if user is not None and user.is_authenticated else None

    def authenticate_header(self, request: Request) -> str:
        """What a 401 asks for."""
        return "Session" if settings.MEDSEG_SINGLE_USER else TokenAuthentication.keyword


def user_of_websocket(scope: dict[str, Any]) -> Any:
    """The user of the session, the single one, or that of a program's token; None without any. Asks the database."""
    user = scope.get("user")
    if user and user.is_authenticated:
        return user
    if settings.MEDSEG_SINGLE_USER:
        return local_user()
    words = dict(scope["headers"]).get(b"authorization", b"").decode("latin1").split()
    if len(words) != 2 or words[0].lower() != TokenAuthentication.keyword.lower():
        return None
    try:
        return TokenAuthentication().authenticate_credentials(words[1])[0]
    except AuthenticationFailed:
        return None
