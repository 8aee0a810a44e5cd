"""The header `Idempotency-Key`: a POST that is sent again gets the first answer again, and nothing is done twice.

A client sends a request again when the answer was lost. The key is claimed before the work begins, by a row that is
unique for user and key. Of two requests that arrive at once, only one is therefore worked on.
"""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.core.files.uploadedfile import UploadedFile
from django.db.models import Q
from django.http import HttpResponse, QueryDict
from django.utils import timezone
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import RequestKey
from medseg_site.shared.base.errors import MedSegError

if TYPE_CHECKING:
    from rest_framework.views import APIView as View
else:
    View = object

HEADER, REPLAY_HEADER = "Idempotency-Key", "Idempotent-Replay"
KEPT = timedelta(hours=24)
# A request without an answer after this time died with its process, and another request may take its key.
LONGEST_ANSWER = timedelta(minutes=10)
# The longest key, in characters.
MAX_KEY = 200


class ReplayError(Exception):
    """The request was answered before. `row` holds the answer."""

    def __init__(self, row: RequestKey) -> None:
        self.row = row
        super().__init__(row.key)


class IdempotentPosts(View):
    """The base class of every API view that takes POST. It has to be the first base (tests/test_architecture.py)."""

    held: RequestKey | None = None

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().dispatch(request, *args, **kwargs)
        except BaseException:
            self._release()
            raise

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        key = request.headers.get(HEADER)
        if request.method == "POST" and key is not None and request.user.is_authenticated:
            self.held = claim(request.user, request, key)

    def handle_exception(self, exc: Exception) -> Any:
        if not isinstance(exc, ReplayError):
            return super().handle_exception(exc)
        row = exc.row
        headers = {REPLAY_HEADER: "true", **({"Location": row.location} if row.location else {})}
        return HttpResponse(row.answer, status=row.status_code, headers=headers, content_type="application/json")

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        answer: Any = super().finalize_response(request, response, *args, **kwargs)
        # Only JSON is kept. Any other answer, such as a picture, is made again for a repeated request.
        if self.held is not None and isinstance(answer, Response) and answer.status_code < 500:
            text = JSONRenderer().render(answer.data).decode()
            kept = {"status_code": answer.status_code, "answer": text, "location": answer.get("Location", "")}
            RequestKey.objects.filter(pk=self.held.pk).update(**kept)
            self.held = None
        self._release()
        return answer

    def _release(self) -> None:
        """Give the key back, so that the request may be sent again with it."""
        if self.held is not None:
            RequestKey.objects.filter(pk=self.held.pk).delete()
            self.held = None


def claim(user: Any, request: Request, key: str) -> RequestKey:
    """Claim the key for a request, and return the row of the claim.

    Raises ReplayError when the request was answered before. Raises MedSegError when the key is malformed (400), was
    used for another request (409), or belongs to a request that is still being answered (409).
    """
    if not key.isascii() or not key.isprintable() or not 1 <= len(key) <= MAX_KEY:
        text = f"An {HEADER} has 1 to {MAX_KEY} printable ASCII characters, such as a UUID."
        raise MedSegError("invalid_key", text)
    sent = {"request": f"POST {request.get_full_path()}", "sha256": checksum(request.data)}
    _forget_where_over(user, key)
    row, is_new = RequestKey.objects.get_or_create(user=user, key=key, defaults=sent)
    if is_new:
        return row
    if (row.request, row.sha256) != (sent["request"], sent["sha256"]):
        text = f"This {HEADER} was used for another request. Send each request with a key of its own."
        raise MedSegError("key_used", text, http_status=409)
    if row.status_code is None:
        text = f"A request with this {HEADER} is being answered. Send it again in a moment to get the same answer."
        raise MedSegError("in_progress", text, http_status=409)
    raise ReplayError(row)


def _forget_where_over(user: Any, key: str) -> None:
    now = timezone.now()
    is_over = Q(created_at__lt=now - KEPT) | Q(created_at__lt=now - LONGEST_ANSWER, status_code=None)
    RequestKey.objects.filter(is_over, user=user, key=key).delete()


def checksum(data: Any) -> str:
    """The SHA-256 (hex) of what was sent: the fields, and the name, size and SHA-256 of each file, in any order."""
    fields = dict(sorted(data.lists())) if isinstance(data, QueryDict) else data
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=_of_file).encode()).hexdigest()


def _of_file(file: UploadedFile[Any]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for chunk in file.chunks():
        digest.update(chunk)
    file.seek(0)
    return {"name": file.name, "size": file.size, "sha256": digest.hexdigest()}


def forget_old() -> int:
    """Remove the keys that are older than a day. Returns the number removed."""
    count, _ = RequestKey.objects.filter(created_at__lt=timezone.now() - KEPT).delete()
    return count
