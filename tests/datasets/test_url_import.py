"""The download of a ZIP by its address: what is allowed and refused, and that nothing half-written stays."""

from __future__ import annotations

import errno
import hashlib
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import urllib3.util.connection
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from datasets import url_import
from datasets.url_import import DownloadLimits, UrlImportError, check_url, download

BODY = b"PK\x03\x04" + bytes(range(256)) * 4000  # larger than one chunk
SHA256 = hashlib.sha256(BODY).hexdigest()
LIMITS = DownloadLimits(max_bytes=5_000_000, read_timeout=5, total_seconds=30, min_free_bytes=0)
SECRET = "X-Amz-Signature=c0ffee"
Answer = Callable[["Handler"], None]
Dns = Callable[..., list[str]]


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        self.server.routes[self.path.partition("?")[0]](self)

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Site(ThreadingHTTPServer):
    """A web server on 127.0.0.1 that answers from `routes`, and a client with an empty folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.routes: dict[str, Answer] = {"/data.zip": send()}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are what these tests are about."""

    def url(self, path: str, scheme: str = "http", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.server_port}{path}"

    def fetch(self, url: str, allow_private: bool = True, **options: Any) -> str:
        url = self.url(url) if url.startswith("/") else url
        changes = {name: options.pop(name) for name in list(options) if name != "on_progress"}
        target, limits = self.folder / "data.zip", replace(LIMITS, **changes)
        return download(url, target, limits=limits, allow_private=allow_private, **options)

    def refused(self, url: str, allow_private: bool = True, **options: Any) -> UrlImportError:
        """Download, expecting a refusal that leaves nothing behind and gives no secret away."""
        with pytest.raises(UrlImportError) as caught:
            self.fetch(url, allow_private, **options)
        assert list(self.folder.iterdir()) == []
        assert SECRET not in str(caught.value)
        assert caught.value.cure
        return caught.value


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "downloads"
    folder.mkdir()
    with Site(folder) as site:
        thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield site
        site.closing.set()
        site.shutdown()
        thread.join()


def send(body: bytes = BODY, status: int = 200, /, **headers: str) -> Answer:
    return lambda handler: handler.reply(status, body, **headers)


def redirect(location: str, status: int = 302) -> Answer:
    return send(b"", status, Location=location)


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Dns:
    """Call it with DNS answers (addresses parted by spaces) for one look-up each, the last one for ever."""
    real = socket.getaddrinfo

    def answer_with(*answers: str) -> list[str]:
        asked: list[str] = []

        def fake(host: str, port: Any, *args: Any, **kwargs: Any) -> Any:
            if not host.endswith(".example"):
                return real(host, port, *args, **kwargs)
            asked.append(host)
            addresses = answers[min(len(asked), len(answers)) - 1].split()
            return [entry for each in addresses for entry in real(each, port, type=socket.SOCK_STREAM)]

        monkeypatch.setattr(socket, "getaddrinfo", fake)
        return asked

    return answer_with


@pytest.fixture
def reached(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were connected to, all of which lead to the test's own server."""
    addresses: list[str] = []

    def connect(address: tuple[str, int], *_: Any, **__: Any) -> socket.socket:
        addresses.append(address[0])
        return socket.create_connection(("127.0.0.1", site.server_port))

    monkeypatch.setattr(urllib3.util.connection, "create_connection", connect)
    return addresses


PUBLIC = """https://example.org/data.zip http://example.org:8080/a/b.zip?token=1 https://93.184.216.34/x.zip
    https://[2606:4700::1111]/x.zip https://münchen.example/x.zip"""
INSIDE = """127.0.0.1 127.1 2130706433 0x7f000001 0x7f.1 0177.0.0.1 017700000001 127.0.0.1. ①②⑦.0.0.1
    localhost LOCALHOST. printer.localhost 10.1.2.3 172.16.0.1 192.168.1.1 100.64.0.1 192.0.0.8 192.88.99.1
    [::1] [::ffff:127.0.0.1] [64:ff9b::7f00:1] [2002:7f00:1::] [2001::7f00:1] [fec0::1] [fd00::2]"""
NEVER = """169.254.169.254 224.0.0.1 0.0.0.0 240.0.0.1 255.255.255.255 [fe80::1] [fe80::1%25eth0] [ff02::1]
    [::] [::ffff:169.254.169.254] [::127.0.0.1]"""
OWN = "http://127.0.0.1/x http://localhost/x http://10.1.2.3/x http://[::1]/x http://100.64.0.1:8000/x"


@pytest.mark.parametrize("url", (PUBLIC + " " + OWN).split())
def test_usable_addresses_pass(url: str) -> None:
    check_url(url, allow_private=url in OWN.split())


@pytest.mark.parametrize("host", (INSIDE + " " + NEVER).split())
def test_addresses_inside_a_network_are_refused(host: str) -> None:
    """Some even in a lab's own network: clouds keep their credentials at link-local addresses."""
    for allow_private in {False, host in NEVER.split()}:
        with pytest.raises(UrlImportError) as caught:
            check_url(f"http://{host}/x.zip", allow_private)
        assert caught.value.code == "not_allowed"


MALFORMED = """scheme ftp://example.org/x.zip | scheme file:///etc/passwd | scheme example.org/x.zip
| credentials https://user:secret@example.org/x | credentials https://@example.org/x
| invalid_url https:// | invalid_url https:///x.zip | invalid_url https://./x.zip | invalid_url https://:80/x.zip
| invalid_url https://[::1/x.zip | invalid_url https://example.org:0/x | invalid_url https://example.org:99999/x
| invalid_url https://example.org:http/x | invalid_url https://example.org\\@127.0.0.1/x
| invalid_url https://example.org/a b | invalid_url https://example.org/\tx
| invalid_url https://exam\u200bple.org/ | invalid_url https://example.org/"""
MALFORMED += "a" * 5000


@pytest.mark.parametrize("line", MALFORMED.split("| "))
def test_malformed_addresses_are_refused(line: str, site: Site) -> None:
    code, url = line.strip().split(" ", 1)
    with pytest.raises(UrlImportError) as caught:
        check_url(url, allow_private=True)
    assert caught.value.code == site.refused(url).code == code
    assert "secret" not in str(caught.value)


def test_download_writes_the_file_and_tells_checksum_and_progress(site: Site) -> None:
    steps: list[tuple[int, int | None]] = []
    assert site.fetch("/data.zip", on_progress=lambda *step: steps.append(step)) == SHA256
    assert (site.folder / "data.zip").read_bytes() == BODY
    assert [path.name for path in site.folder.iterdir()] == ["data.zip"]
    assert steps[0] == (0, len(BODY))
    assert steps[-1] == (len(BODY), len(BODY))
    assert steps == sorted(set(steps))
    assert len(steps) > 3
    assert site.seen[0][1]["Accept-Encoding"] == "identity"


CHUNKED = {"Content_Length": "", "Transfer_Encoding": "chunked"}
TAKEN: list[tuple[bytes, dict[str, str], bytes]] = [
    (BODY, {"Content_Length": ""}, BODY),
    (BODY, {"Content_Type": "text/html"}, BODY),
    (BODY, {"Content_Length": "1000"}, BODY[:1000]),
    (b"4\r\nPK\x03\x04\r\n3\r\nabc\r\n0\r\n\r\n", CHUNKED, b"PK\x03\x04abc"),
]


@pytest.mark.parametrize(("body", "headers", "saved"), TAKEN)
def test_unusual_answers_are_taken(body: bytes, headers: dict[str, str], saved: bytes, site: Site) -> None:
    site.routes["/data.zip"] = send(body, **headers)
    assert site.fetch("/data.zip") == hashlib.sha256(saved).hexdigest()
    assert (site.folder / "data.zip").read_bytes() == saved


CONTENT: list[tuple[str, bytes, dict[str, str]]] = [
    ("too_large", BODY + b"x", {}),
    ("too_large", BODY + b"x", {"Content_Length": ""}),
    ("too_large", b"PK", {"Content_Length": str(10**12)}),
    ("incomplete", BODY[:-1], {"Content_Length": str(len(BODY))}),
    ("html_page", b"\xef\xbb\xbf\n<!DOCTYPE html><html>sign in</html>", {"Content_Type": "application/zip"}),
    ("html_page", b"<HTML><body>", {}),
    ("html_page", b"<?xml version='1.0'?><html/>", {"Content_Type": "text/html; charset=utf-8"}),
    ("encoded", b"\x1f\x8b\x08", {"Content_Encoding": "gzip"}),
    ("empty", b"", {}),
]


@pytest.mark.parametrize(("code", "body", "headers"), CONTENT)
def test_unusable_content_is_refused(code: str, body: bytes, headers: dict[str, str], site: Site) -> None:
    site.routes["/data.zip"] = send(body, **headers)
    error = site.refused(f"/data.zip?{SECRET}", max_bytes=len(BODY))
    assert error.code == code
    assert ("direct link" in error.cure) == (code in ("html_page", "empty"))


STATUS = {401: "forbidden", 403: "forbidden", 404: "not_found", 410: "not_found", 429: "server_error"}
STATUS |= {500: "server_error", 503: "server_error", 204: "http_status", 206: "http_status"}


@pytest.mark.parametrize(("status", "code"), STATUS.items())
def test_error_status_is_explained(status: int, code: str, site: Site) -> None:
    site.routes["/data.zip"] = send(b"", status)
    error = site.refused(f"/data.zip?{SECRET}")
    assert (error.code, f"HTTP {status}" in error.reason) == (code, True)


def late(head: bytes, piece: bytes) -> Answer:
    """Answer with `head` at once, then a piece now and then until the client hangs up."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 " + head)
        while not handler.server.closing.wait(0.02):
            handler.wfile.write(piece)

    return answer


LATE = [b"200 OK\r\nContent-Length: 99999\r\n\r\n", b"200 OK\r\n\r\n", b"200 OK\r\nX-Endless: "]


@pytest.mark.parametrize("head", LATE)
def test_dripping_server_meets_the_deadline_and_a_silent_one_the_timeout(head: bytes, site: Site) -> None:
    site.routes["/drip"], site.routes["/silent"] = late(head, b"P"), late(head, b"")
    dripping = site.refused(f"/drip?{SECRET}", read_timeout=60, total_seconds=0.4)
    silent = site.refused("/silent", read_timeout=0.2)
    assert (dripping.code, "longer than" in dripping.reason) == ("timeout", True)
    assert (silent.code, "did not answer" in silent.reason) == ("timeout", True)


def test_raising_in_progress_ends_the_download(site: Site) -> None:
    cancel = Mock(side_effect=[None, None, KeyboardInterrupt])
    with pytest.raises(KeyboardInterrupt):
        site.fetch("/data.zip", on_progress=cancel)
    assert list(site.folder.iterdir()) == []


def test_download_stops_before_the_disk_is_full(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.routes["/unknown"] = send(Content_Length="")
    with pytest.raises(OSError, match="No space"):
        site.fetch("/data.zip", on_progress=Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="no room"):
        site.fetch("/data.zip", min_free_bytes=10**15)
    free = iter([10**12, 10**12, 0])
    monkeypatch.setattr(url_import, "DISK_CHECK_BYTES", 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free)))
    with pytest.raises(OSError, match="no room"):
        site.fetch("/unknown", min_free_bytes=1)
    assert list(site.folder.iterdir()) == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(status: int, site: Site) -> None:
    site.routes["/a"] = redirect("b?x=1", status)
    site.routes["/b"] = redirect(site.url("/data.zip"))
    assert site.fetch("/a") == SHA256
    assert [path for path, _ in site.seen] == ["/a", "/b?x=1", "/data.zip"]


def test_body_of_a_redirect_is_not_read_but_its_cookie_kept(site: Site) -> None:
    site.routes["/a"] = late(b"302 Found\r\nLocation: /data.zip\r\nSet-Cookie: seen=yes\r\n\r\n", b"P" * 1000)
    assert site.fetch("/a") == SHA256
    assert site.seen[1][1]["Cookie"] == "seen=yes"


def test_endless_redirects_are_refused(site: Site) -> None:
    site.routes["/loop"] = redirect("/loop")
    assert site.refused("/loop", max_redirects=2).code == "redirects"
    assert len(site.seen) == 3


HOPS = {"http://169.254.169.254/latest": "not_allowed", "http://[::ffff:a9fe:a9fe]/": "not_allowed"}
HOPS |= {"//0xa9fea9fe/": "not_allowed", "file:///etc/passwd": "scheme"}
HOPS |= {"https://user:pw@example.org/": "credentials", "http://[::1/": "invalid_url"}


@pytest.mark.parametrize(("location", "code"), HOPS.items())
def test_every_hop_is_checked(location: str, code: str, site: Site) -> None:
    site.routes["/a"] = redirect(location)
    assert site.refused(f"/a?{SECRET}").code == code


def test_redirect_away_from_https_is_refused() -> None:
    with pytest.raises(UrlImportError) as caught:
        url_import._next_url(f"https://example.org/a?{SECRET}", "http://example.org/b")
    assert caught.value.code == "downgrade"
    assert SECRET not in str(caught.value)
    assert url_import._next_url("https://example.org/a", "/b") == "https://example.org/b"
    assert url_import._next_url("http://example.org/a", "https://example.org/b") == "https://example.org/b"


@pytest.mark.parametrize("addresses", ["127.0.0.1", "::1", "93.184.216.34 192.168.0.1", "169.254.169.254"])
def test_name_is_refused_if_any_of_its_addresses_is_inside(addresses: str, site: Site, dns: Dns) -> None:
    dns(addresses)
    assert site.refused("http://inside.example/x.zip", allow_private=False).code == "not_allowed"
    if addresses == "169.254.169.254":
        assert site.refused("http://inside.example/x.zip").code == "not_allowed"


def test_connection_goes_to_the_checked_address(site: Site, dns: Dns, reached: list[str]) -> None:
    """DNS rebinding: once the connection's address is checked and pinned, the name is not asked again."""
    asked = dns("93.184.216.34", "93.184.216.34", "127.0.0.1")
    assert site.fetch(site.url("/data.zip", host="rebind.example"), allow_private=False) == SHA256
    assert reached == ["93.184.216.34"]
    assert asked == ["rebind.example"] * 2
    assert site.seen[0][1]["Host"] == f"rebind.example:{site.server_port}"


@pytest.mark.parametrize("second", ["127.0.0.1", "fec0::1", "::ffff:10.0.0.1"])
def test_second_dns_answer_inside_is_refused(second: str, site: Site, dns: Dns, reached: list[str]) -> None:
    asked = dns("93.184.216.34", second)
    assert site.refused("http://rebind.example/x.zip", allow_private=False).code == "not_allowed"
    assert len(asked) == 2
    assert reached == []


def test_public_server_cannot_redirect_inside(site: Site, dns: Dns, reached: list[str]) -> None:
    site.routes["/name"] = redirect("http://inside.example/admin")
    site.routes["/literal"] = redirect(site.url("/data.zip"))
    for path in ("/name", "/literal"):
        dns("93.184.216.34", "93.184.216.34", "10.0.0.7")
        assert site.refused(site.url(path, host="out.example"), allow_private=False).code == "not_allowed"
    assert [path for path, _ in site.seen] == ["/name", "/literal"]
    assert set(reached) == {"93.184.216.34"}


def test_unknown_name_and_closed_port_are_explained(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = site.refused(f"http://127.0.0.1:{unused.getsockname()[1]}/x?{SECRET}")
    assert error.code == "unreachable"

    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=socket.gaierror(socket.EAI_NONAME, "unknown")))
    assert site.refused("http://no-such.example/x").code == "dns"


def test_proxy_of_the_environment_is_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert site.fetch("/data.zip") == SHA256


def test_untrusted_certificate_and_missing_tls_are_refused(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert site.refused(site.url("/data.zip", scheme="https")).code == "tls"

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name, alternative = x509.Name([]), x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    times = (now - timedelta(days=1), now + timedelta(days=1))
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), *times)
    certificate = builder.add_extension(alternative, critical=False).sign(key, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    keys = tmp_path_factory.mktemp("keys") / "server.pem"
    keys.write_bytes(private + certificate.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys)
    site.socket = context.wrap_socket(site.socket, server_side=True)
    assert site.refused(site.url(f"/data.zip?{SECRET}", scheme="https")).code == "tls"
    assert site.seen == []
