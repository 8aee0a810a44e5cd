"""Sends the bad inputs, over HTTP to a running platform or in a test directly to its views, and reads the answers."""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

API = "/api/v1/"
Headers = dict[str, str]
Part = tuple[str, str | None, bytes]
"""A part of a form: the name of the field, the file name (None for a plain value), the content."""
WAIT = {"Prefer": "wait=60"}


@dataclass(frozen=True)
class Answer:
    """An answer of the platform. `body` is its JSON document, or None if it is not JSON."""

    status: int
    body: Any = None
    headers: Headers = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """What the answer tells a person: details of errors, the row's error, its first issue, or its warnings."""
        document = self.body if isinstance(self.body, dict) else {}
        if errors := document.get("errors"):
            return " ".join(f"{item['attr']}: {item['detail']}" if item["attr"] else item["detail"] for item in errors)
        if document.get("error"):
            return str(document["error"])
        if issues := document.get("issues"):
            return f"{issues[0]['file']}: {issues[0]['detail']}"
        return " ".join(document.get("warnings") or [])


class Client(Protocol):
    """Anything that sends a request and returns its answer."""

    def request(self, method: str, path: str, body: bytes, headers: Headers) -> Answer: ...


class HttpClient:
    """Sends each request over a connection of its own, exactly as given. A library would correct bad headers."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80

    def request(self, method: str, path: str, body: bytes, headers: Headers) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=180)
        try:
            connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            if "Transfer-Encoding" not in headers:
                connection.putheader("Content-Length", str(len(body)))
            # The platform may refuse the request before all of it is sent. The answer can be read even then.
            with suppress(ConnectionError):
                connection.endheaders(body or None)
            reply = connection.getresponse()
            data = reply.read()
            return Answer(reply.status, as_json(data), {name.lower(): value for name, value in reply.getheaders()})
        finally:
            connection.close()


def as_json(data: bytes) -> Any:
    """The JSON document, or None if the data is not JSON."""
    try:
        return json.loads(data)
    except ValueError:
        return None


def multipart(parts: list[Part]) -> tuple[bytes, Headers]:
    """The body of a form and its headers. Nothing is escaped, so that bad names can be sent."""
    boundary = uuid.uuid4().hex
    body = b""
    for name, file_name, content in parts:
        shown = "" if file_name is None else f'; filename="{file_name}"'
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{shown}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


@dataclass
class Platform:
    """A platform that the cases send their inputs to, with a good dataset, a model trained on it and an inference."""

    client: Client
    dataset: int = 0
    model: int = 0
    inference: int = 0
    address: str = ""
    """The address of the web server that misbehaves, if there is one."""

    def get(self, path: str, **headers: str) -> Answer:
        return self.client.request("GET", _full(path), b"", headers)

    def delete(self, path: str, **headers: str) -> Answer:
        return self.client.request("DELETE", _full(path), b"", headers)

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.request(method, _full(path), body, named)

    def post_json(self, path: str, document: Any) -> Answer:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.client.request("POST", _full(path), body, {"Content-Type": "application/json", **WAIT})

    def post_parts(self, path: str, parts: list[Part], **more: str) -> Answer:
        body, headers = multipart(parts)
        return self.client.request("POST", _full(path), body, {**headers, **WAIT, **more})

    def upload(self, archive: bytes, name: str = "bad.zip", title: str = "bad input") -> Answer:
        return self.post_parts("datasets/", [("name", None, title.encode()), ("archive", name, archive)])

    def segment(self, name: str, image: bytes, mask: tuple[str, bytes] | None = None) -> Answer:
        parts: list[Part] = [("model", None, str(self.model).encode()), ("image", name, image)]
        return self.post_parts("inferences/", [*parts, *([("mask", *mask)] if mask else [])])

    def batch(self, archive: bytes) -> Answer:
        return self.post_parts(
            "inference-batches/", [("model", None, str(self.model).encode()), ("archive", "batch.zip", archive)]
        )

    def train(self, hyperparameters: Any, **changes: Any) -> Answer:
        document = {"name": "bad input", "dataset": self.dataset, "hyperparameters": hyperparameters, **changes}
        return self.post_json("models/", document)


def _full(path: str) -> str:
    return path if path.startswith("/") else API + path


Send = Callable[[Platform], Answer]


@dataclass(frozen=True)
class Case:
    """One bad input, and the answer that is right for it."""

    kind: str
    what: str
    send: Send
    status: tuple[int, ...] = (400,)
    """The HTTP statuses that are right."""
    final: str = ""
    """The last status of the row; "" if no row may be made."""
    says: str = " "
    """Words that the answer's sentence must contain; "" if the answer needs no sentence (a page, a 404 of a path)."""
    over_http: bool = False
    """Whether only a real server sees what is bad, such as lengths, hosts and WebSockets."""
    setting: str = ""
    """The setting that the platform needs: "small" (MEDSEG_MAX_UPLOAD_MB=1) or "private"
    (MEDSEG_URL_IMPORT_ALLOW_PRIVATE=1); "" for none."""
