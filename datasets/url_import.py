"""Downloads a dataset's ZIP from an address that a user gave.

A user must not reach the server's own network through this download (server-side request forgery). Every address of
every redirect is therefore checked, and the connection goes to the address that was checked, so that a later answer of
the DNS changes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import shutil
import socket
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.cookies import extract_cookies_to_jar
from requests_hardened.ip_filter import EXTRA_BLOCKED_NET_RANGES, InvalidIPAddress
from requests_hardened.ip_filter_adapter import IPFilterAdapter

from medseg_site.shared.base.text import whole_number
from ml_core.errors import MLError

CHUNK_BYTES = 256 * 1024
DISK_CHECK_BYTES = 64 * 2**20
MAX_URL = 4096
HEADERS = {"User-Agent": "medseg-dataset-import", "Accept": "*/*", "Accept-Encoding": "identity"}
LOCAL_NAMES = {"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"}

UPLOAD = "Download it yourself and upload the ZIP."
LATER = "Try again later, or download it yourself and upload the ZIP."
DIRECT = "Give the direct link to the ZIP (Google Drive, Dropbox and others show a page first), or upload it."
PUBLIC = "Give a public address, or upload the ZIP. In a lab's own network an administrator can allow it."

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class UrlImportError(MLError):
    """An address cannot be imported. The texts name only the host, because path and query may hold secrets."""


@dataclass(frozen=True)
class DownloadLimits:
    """The limits of one download: sizes in bytes, times in seconds. `total_seconds` includes all redirects."""

    max_bytes: int = 20 * 2**30
    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    total_seconds: float = 2 * 3600.0
    max_redirects: int = 5
    min_free_bytes: int = 2**30


def check_url(url: str, allow_private: bool = False) -> None:
    """Check the text of an address, without asking the DNS. Raises UrlImportError when it cannot be imported.

    `allow_private` allows private and loopback addresses, for a lab's own network. Link-local addresses, where clouds
    keep their credentials, and multicast and reserved addresses are never allowed.
    """
    if len(url) > MAX_URL or "\\" in url or any(c.isspace() or not c.isprintable() for c in url):
        raise _invalid_url()
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise _invalid_url() from None
    if parts.scheme not in ("http", "https"):
        raise UrlImportError("scheme", "Only http and https addresses can be imported.", "Start it with https://.")
    if not host:
        raise UrlImportError("invalid_url", "The address names no server.", "Write it as https://server/file.zip.")
    if "@" in parts.netloc:
        raise UrlImportError("credentials", "The address holds a user name or password.", "Leave it out.")
    if port == 0:
        raise UrlImportError("invalid_url", "The address has a port that cannot be used.", "Leave the port out.")
    name = unicodedata.normalize("NFKC", host).rstrip(".").lower()
    address = _literal(name)
    local = name in LOCAL_NAMES or name.endswith(".localhost")
    if (local and not allow_private) or (address and _is_forbidden(address, allow_private)):
        raise _not_allowed(host)


def download(
    url: str,
    target: Path,
    *,
    limits: DownloadLimits | None = None,
    allow_private: bool = False,
    on_progress: Callable[[int, int | None], None] = lambda received, total: None,
) -> str:
    """Write what `url` serves to `target`, whose folder exists, and return the SHA-256 of its bytes in hex.

    `on_progress(received, total)` gets bytes; `total` is None when the server does not state it. It may raise, which
    ends the download. After an error nothing is left behind. With `allow_private`, addresses are checked, but the
    connection is not tied to the checked one. Raises UrlImportError, or OSError (ENOSPC) when the disk is full.
    """
    limits = limits or DownloadLimits()
    part = target.with_name(target.name + ".part")
    try:
        with requests.Session() as session, _Watch(limits.total_seconds) as watch:
            # No proxy and no .netrc from the environment is used.
            session.trust_env = False
            session.headers.update(HEADERS)
            open_adapter = _WatchedAdapter(watch)
            for scheme in ("http", "https"):
                pinned = _PinnedAdapter(watch, is_https_proto=scheme == "https")
                session.mount(f"{scheme}://", open_adapter if allow_private else pinned)
            with _follow(session, url, limits, allow_private, watch) as response:
                digest = _save(response, part, limits, watch, on_progress)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return digest


class _Watch:
    """Cuts the connections when the time is over. A server that drips bytes never hits a read time-out."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._sockets: list[socket.socket] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="download-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def keep_sockets_of(self, pool: Any) -> None:
        """Keep every socket that the pool opens from now on, so that it can be cut."""
        make = pool.ConnectionCls

        def make_kept(*args: Any, **kwargs: Any) -> Any:
            connection = make(*args, **kwargs)
            connect = connection.connect

            def connect_and_keep() -> None:
                connect()
                self._sockets.append(connection.sock)

            connection.connect = connect_and_keep
            return connection

        pool.ConnectionCls = make_kept

    @contextmanager
    def explaining(self, host: str) -> Iterator[None]:
        """Turn errors of the network into UrlImportError. The libraries' own texts would show the whole URL."""
        try:
            yield
        except InvalidIPAddress:
            raise _not_allowed(host) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            self.check_time(host)
            if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
                raise UrlImportError("timeout", f"{host} did not answer in time.", LATER) from None
            if isinstance(error, requests.exceptions.SSLError | urllib3.exceptions.SSLError):
                reason = f"The secure connection to {host} failed: its certificate or protocol is not accepted."
                raise UrlImportError("tls", reason, UPLOAD) from None
            # An error of urllib3 itself was raised while the body was read.
            if isinstance(error, urllib3.exceptions.HTTPError):
                raise UrlImportError("incomplete", f"The connection to {host} broke off.", LATER) from None
            raise UrlImportError("unreachable", f"No connection to {host} could be made.", LATER) from None

    def check_time(self, host: str) -> None:
        if time.monotonic() >= self._deadline:
            reason = f"The download from {host} took longer than {self._seconds / 60:g} min."
            raise UrlImportError("timeout", reason, UPLOAD)

    def _run(self) -> None:
        if self._done.wait(self._deadline - time.monotonic()):
            return
        # The sockets are cut again and again, because another connection may be opening just now.
        while not self._done.wait(0.1):
            for opened in list(self._sockets):
                with suppress(OSError):
                    # SSLSocket.shutdown would take the encryption off a socket that is still being read.
                    socket.socket.shutdown(opened, socket.SHUT_RDWR)


class _WatchedAdapter(HTTPAdapter):
    def __init__(self, watch: _Watch, **options: Any) -> None:
        super().__init__(**options)
        self.watch = watch

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        self.watch.keep_sockets_of(pool)
        return pool


# The library gives no types for this base class.
class _PinnedAdapter(_WatchedAdapter, IPFilterAdapter):  # type: ignore[misc]
    """Connects to a checked address. Our own list of forbidden ranges decides, since the library's is shorter."""

    def build_connection_pool_key_attributes(self, *args: Any, **kwargs: Any) -> Any:
        host_params, pool_kwargs = super().build_connection_pool_key_attributes(*args, **kwargs)
        address = ipaddress.ip_address(host_params["host"].strip("[]"))
        if _is_forbidden(address, allow_private=False):
            raise InvalidIPAddress(address)
        return host_params, pool_kwargs


def _follow(
    session: requests.Session, url: str, limits: DownloadLimits, allow_private: bool, watch: _Watch
) -> requests.Response:
    """Follow redirects one by one and check each. Returns a response with status 200 whose body is still unread."""
    for _ in range(limits.max_redirects + 1):
        check_url(url, allow_private)
        try:
            request = session.prepare_request(requests.Request("GET", url))
        except (requests.RequestException, ValueError):
            raise _invalid_url() from None
        url = request.url or ""
        # The address is checked again as requests writes it, because requests may have decoded the host.
        check_url(url, allow_private)
        parts = urlsplit(url)
        host = parts.hostname or ""
        _check_addresses(host, parts.port or (443 if parts.scheme == "https" else 80), allow_private)
        watch.check_time(host)
        with watch.explaining(host):
            times = (limits.connect_timeout, limits.read_timeout)
            # session.send would read the body of a redirect into memory, however long it is.
            response = session.get_adapter(url).send(request, stream=True, timeout=times)
        # requests gives no types for this function.
        extract_cookies_to_jar(session.cookies, request, response.raw)  # type: ignore[no-untyped-call]
        location = session.get_redirect_target(response)
        if location is None:
            try:
                _check_status(response.status_code, host)
            except BaseException:
                response.close()
                raise
            return response
        response.close()
        url = _next_url(url, location)
    raise UrlImportError("redirects", f"The address redirects more than {limits.max_redirects} times.", DIRECT)


def _next_url(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
    except ValueError:
        raise _invalid_url() from None
    if url.startswith("https:") and not target.lower().startswith("https:"):
        reason = f"{urlsplit(url).hostname} redirects from https to an address without encryption."
        raise UrlImportError("downgrade", reason, UPLOAD)
    return target


def _check_addresses(host: str, port: int, allow_private: bool) -> None:
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UrlImportError("dns", f"There is no server named {host}.", "Check the address.") from None
    if any(_is_forbidden(ipaddress.ip_address(answer[4][0]), allow_private) for answer in answers):
        raise _not_allowed(host)


def _check_status(status: int, host: str) -> None:
    if status in (401, 403, 407):
        raise UrlImportError(
            "forbidden",
            f"{host} refuses access (HTTP {status}).",
            "Give a link without login, or upload the ZIP.",
        )
    if status in (404, 410):
        raise UrlImportError(
            "not_found",
            f"{host} has no such file (HTTP {status}).",
            "Check the address; shared links expire.",
        )
    if status == 429 or status >= 500:
        raise UrlImportError("server_error", f"{host} cannot deliver the file now (HTTP {status}).", LATER)
    if status != 200:
        raise UrlImportError("http_status", f"{host} answered with HTTP {status}, not with a file.", DIRECT)


def _save(
    response: requests.Response,
    part: Path,
    limits: DownloadLimits,
    watch: _Watch,
    on_progress: Callable[[int, int | None], None],
) -> str:
    """Stream the body into `part` and return its SHA-256 in hex. The limits hold, whatever the headers say."""
    host = urlsplit(response.url).hostname or ""
    if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        # To expand it here would need limits of its own, and no server has a reason to compress a ZIP.
        raise UrlImportError("encoded", f"{host} sends the file in a compressed form of its own.", UPLOAD)
    total = whole_number(response.headers.get("Content-Length", ""))
    digest = hashlib.sha256()
    received = checked = 0
    too_large = UrlImportError(
        "too_large",
        f"The file is larger than {_size(limits.max_bytes)}.",
        "Split it into several datasets.",
    )
    if total is not None and total > limits.max_bytes:
        raise too_large
    _check_room(part, total or 0, limits)
    on_progress(0, total)
    with part.open("wb") as sink:
        while True:
            with watch.explaining(host):
                chunk: bytes = response.raw.read(CHUNK_BYTES, decode_content=False)
            # A connection that was cut may look like the end of the file.
            watch.check_time(host)
            if not chunk:
                break
            if received == 0 and _is_page(chunk, response.headers.get("Content-Type", "")):
                raise UrlImportError("html_page", f"{host} sent a web page, not a ZIP.", DIRECT)
            received += len(chunk)
            if received > limits.max_bytes:
                raise too_large
            if received - checked >= DISK_CHECK_BYTES:
                _check_room(part, 0, limits)
                checked = received
            sink.write(chunk)
            digest.update(chunk)
            on_progress(received, total)
    if received == 0:
        raise UrlImportError("empty", f"{host} sent an empty file.", DIRECT)
    return digest.hexdigest()


def _size(size: int) -> str:
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MB"


def _check_room(part: Path, needed: int, limits: DownloadLimits) -> None:
    if shutil.disk_usage(part.parent).free < needed + limits.min_free_bytes:
        raise _disk_full()


def _is_page(head: bytes, content_type: str) -> bool:
    start = head[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html")) or ("html" in content_type.lower() and start[:1] == b"<")


def _literal(host: str) -> Address | None:
    """The IP address that a host stands for, also when it is written as 127.1, 2130706433, 0x7f000001 or 0177.0.0.1.

    None for a name.
    """
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def _is_forbidden(address: Address, allow_private: bool) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return not allow_private
    if address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved:
        return True
    if allow_private:
        return False
    site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return site_local or not address.is_global or any(address in net for net in EXTRA_BLOCKED_NET_RANGES)


def _not_allowed(host: str) -> UrlImportError:
    return UrlImportError("not_allowed", f"{host} is an address inside a network that may not be used.", PUBLIC)


def _invalid_url() -> UrlImportError:
    return UrlImportError("invalid_url", "The address is not a valid URL.", "Check it for spaces and typing errors.")


def _disk_full() -> OSError:
    """The error that a full disk gives. It counts as an outage, so that the import waits for room."""
    return OSError(errno.ENOSPC, "There is no room for the download.")
