"""Bad methods, headers, hosts, WebSockets and sizes, and requests that are repeated or come at the wrong time."""

from __future__ import annotations

import socket
import struct

from benchmarks.bad_files import zipped
from benchmarks.bad_inputs_client import Answer, Case, HttpClient, Platform, Send, multipart

ELSEWHERE = "https://evil.example"


def headers() -> list[Case]:
    """Requests with bad headers or methods, and changes that another site asks for."""

    def get(what: str, status: int, says: str = "", *, over_http: bool = False, **values: str) -> Case:
        send: Send = lambda platform: platform.get("datasets/", **_named(values))  # noqa: E731 (typed and named for the case)
        return Case("header", what, send, (status,), "", says, over_http)

    def post(what: str, status: int, says: str, **values: str) -> Case:
        body, kind = multipart([("name", None, b"bad input"), ("archive", "a.zip", b"junk")])

        def send(platform: Platform) -> Answer:
            return platform.client.request("POST", "/api/v1/datasets/", body, {**kind, **_named(values)})

        return Case("header", what, send, (status,), "", says)

    def change(method: str, path: str, **values: str) -> Case:
        send: Send = lambda platform: platform.client.request(  # noqa: E731 (typed and named for the case)
            method, path.format(d=platform.dataset, m=platform.model), b"", _named(values)
        )
        shown = ", ".join(f"{name}: {value}" for name, value in _named(values).items())
        return Case("header", f"{method} {path} with {shown}", send, (403,), "", "another site")

    waits = ["abc", "-5", "1000000000", "", "1e9", "\u00b2"]
    cases = [post(f"Prefer: wait={wait!a}", 400, "not a ZIP", Prefer=f"wait={wait}") for wait in waits]
    cases += [
        change("POST", "/api/v1/datasets/", Origin=ELSEWHERE),
        change("POST", "/api/v1/models/", Origin=ELSEWHERE),
        change("POST", "/api/v1/inferences/", Sec_Fetch_Site="cross-site"),
        change("DELETE", "/api/v1/datasets/{d}/", Origin=ELSEWHERE),
        change("DELETE", "/api/v1/models/{m}/", Origin="null"),
        change("POST", "/api/v1/models/{m}/cancel/", Sec_Fetch_Site="same-site"),
        change("POST", "/api/v1/datasets/", Origin="http://["),
        get("Host: evil.example", 400, over_http=True, Host="evil.example"),
        get("Host: [::", 400, over_http=True, Host="[::"),
        get("Host: a b", 400, over_http=True, Host="a b"),
        get("cookie of 4,000 characters", 200, Cookie="sessionid=" + "x" * 4000),
        get("cookie with NUL", 200, Cookie='sessionid="aaaaaaaaaa\\000"'),
        get("Accept: text/xml", 200, Accept="text/xml"),
        get("Range: bytes=-1", 200, Range="bytes=-1"),
    ]
    for method in ("PUT", "PATCH", "TRACE", "PROPFIND", "FOO"):
        send: Send = lambda platform, method=method: platform.send(method, f"datasets/{platform.dataset}/")  # type: ignore[misc]  # noqa: E731 (typed and named for the case)
        cases.append(Case("header", f"method {method}", send, (400, 405) if method == "FOO" else (405,), "", ""))
    return cases


def _named(values: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in values.items()}


def wrong_times() -> list[Case]:
    """Requests that are repeated, or that do not fit the state of the row."""

    def case(what: str, send: Send, says: str, *status: int) -> Case:
        return Case("state", what, send, status, "", says)

    def deleted_twice(platform: Platform) -> Answer:
        path = f"datasets/{platform.upload(zipped([('a.txt', b'x')])).body['id']}/"
        platform.delete(path)
        return platform.delete(path)

    def rename(value: int, body: bytes) -> Send:
        kind = {"Content_Type": "application/json"}
        return lambda platform: platform.send("PATCH", f"datasets/{platform.dataset}/classes/{value}/", body, **kind)

    def of_failed(what: str) -> Send:
        return lambda platform: platform.get(f"inferences/{platform.segment('a.png', b'junk').body['id']}/{what}/")

    return [
        case("a dataset deleted twice", deleted_twice, "", 404),
        case("cancel of a completed model", lambda p: p.send("POST", f"models/{p.model}/cancel/"), "nothing to cancel", 409),
        case("resume of a completed model", lambda p: p.send("POST", f"models/{p.model}/resume/"), "completed", 409),
        case("cancel of a completed inference", lambda p: p.send("POST", f"inferences/{p.inference}/cancel/"), "nothing to cancel", 409),
        case("cancel of a model that is not there", lambda p: p.send("POST", "models/999999/cancel/"), "", 404),
        case("the label map of a failed inference", of_failed("mask"), "no label map", 409),
        case("the picture of a broken image", of_failed("image"), "content", 409),
        case("a class that is not there", rename(77, b'{"name": "x"}'), "no class", 400),
        case("a class without a name", rename(255, b'{"name": " "}'), "blank", 400),
        case("a class's colour is red;}", rename(255, b'{"name": "x", "color": "red;}"}'), "match", 400),
    ]  # fmt: skip


def sockets() -> list[Case]:
    """WebSockets that must be refused."""

    def case(what: str, path: str, status: tuple[int, ...], **values: str) -> Case:
        return Case("WebSocket", what, lambda platform: _socket(platform, path, _named(values)), status, "", "", True)

    return [
        case("of a model that is not there", "/ws/models/999999/", (403, 4404)),
        case("of model 10^30", f"/ws/models/1{'0' * 30}/", (403, 4404)),
        case("of model 10^200", f"/ws/models/1{'0' * 200}/", (403, 404, 4404)),
        case("of a path that is not there", "/ws/nothing/", (403, 404)),
        case("from another site", "/ws/models/1/", (403,), Origin=ELSEWHERE),
        case("without a key", "/ws/models/1/", (400,), Sec_WebSocket_Key=""),
    ]


def _socket(platform: Platform, path: str, values: dict[str, str]) -> Answer:
    """Open a WebSocket. The status of the answer is that of the handshake, or the code with which it was closed."""
    assert isinstance(platform.client, HttpClient)
    headers = {
        "Host": f"{platform.client.host}:{platform.client.port}",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        **values,
    }
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if value), "", ""]
    with socket.create_connection((platform.client.host, platform.client.port), timeout=20) as connection:
        connection.sendall("\r\n".join(lines).encode())
        reply = connection.makefile("rb")
        status = int(reply.readline().split()[1])
        while status == 101 and reply.readline().strip():
            pass
        if status == 101:
            opcode, length = reply.read(2)
            content = reply.read(length & 127)
            status = struct.unpack(">H", content[:2])[0] if opcode & 15 == 8 else 101
    return Answer(status)


def limits() -> list[Case]:
    """Bodies of 3 MB, for a platform that accepts at most 1 MB."""
    large = b"PK" + b"x" * 3_000_000
    body, kind = multipart([("name", None, b"bad input"), ("archive", "a.zip", large)])
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:2_000_000], body[2_000_000:], b""))

    def case(what: str, send: Send) -> Case:
        return Case("limit", what, send, (413,), "", "MB", True, "small")

    return [
        case("a dataset of 3 MB where 1 MB is allowed", lambda p: p.upload(large)),
        case(
            "the same without its length (chunked)",
            lambda p: p.client.request("POST", "/api/v1/datasets/", chunked, {**kind, "Transfer-Encoding": "chunked"}),
        ),
        case("an image of 3 MB", lambda p: p.segment("a.png", large)),
        case("a batch of 3 MB", lambda p: p.batch(large)),
        case("JSON of 3 MB", lambda p: p.train({"x": "y" * 3_000_000})),
    ]
