"""Requests of clients that ask in an unusual way: without a slash at the end, in chunks, or for another type."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest, HttpResponsePermanentRedirect
from django.middleware.common import CommonMiddleware
from rest_framework.exceptions import NotAcceptable
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request


class SlashMiddleware(CommonMiddleware):
    """Adds a missing slash to the address. A GET is redirected, as Django does; other requests are served at once.

    Most clients turn a redirected POST into a GET: an upload would be answered with a list, and nothing uploaded.
    """

    def process_request(self, request: HttpRequest) -> HttpResponsePermanentRedirect | None:
        if request.method not in ("GET", "HEAD") and self.should_redirect_with_slash(request):
            request.path += "/"
            request.path_info += "/"
        return super().process_request(request)


class Application(ASGIHandler):
    """Django, which also reads bodies that are sent in chunks.

    Such a request has no Content-Length. Django's parsers read a body without a length as an empty one, and the
    client would be told that its fields are missing.
    """

    def create_request(self, scope: Any, body_file: Any) -> Any:
        if not any(name == b"content-length" for name, _ in scope["headers"]):
            length = body_file.seek(0, os.SEEK_END)
            body_file.seek(0)
            scope = {**scope, "headers": [*scope["headers"], (b"content-length", b"%d" % length)]}
        return super().create_request(scope, body_file)


class Negotiation(DefaultContentNegotiation):
    """Answers in the form that there is where the client accepts another one only (RFC 9110, 12.4.1).

    An address of a picture or a download has no renderer, and the library would refuse the very type that it answers.
    """

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        known = list(renderers)
        try:
            chosen: tuple[BaseRenderer, str] = super().select_renderer(request, known, format_suffix)
        except NotAcceptable:
            chosen = known[0], str(known[0].media_type)
        return chosen
