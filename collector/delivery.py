"""Requests to the upstream and what becomes of them on the way.

`Http` sends one request and gives an `Answer`, or says why none came: `Later` for the
road, `Paused` for a certificate. `HttpUpstream` adds credentials and judges. Never
unverified, never redirected, never more of an answer than `BODY_MAX`, and never longer
than ``upstream.timeout`` for everything together.
"""

import asyncio
import base64
import ipaddress
import socket
import ssl
import threading
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from collector.chunks import Batch
from collector.config import UpstreamConfig
from collector.credentials import Credentials
from collector.kinds import KINDS
from collector.logs import logger
from collector.outcomes import (
    BODY_MAX,
    Answer,
    Delivered,
    Forbidden,
    Later,
    Outcome,
    Paused,
    Unauthorized,
    Verdict,
    judge,
)
from tracker.time import Clock, format_ms
from tracker.wire import ACCEPTED_HEADER, PRIORITY_HEADER

log = logger("delivery")

API_VERSION: Final = "4.4"
_CONNECT_SHARE: Final = 0.9
"""Of the whole timeout: so that a connection never made is told apart from an answer that never came."""
_NOT_YET_VALID, _EXPIRED, _OTHER_NAME = 9, 10, (62, 64)  # X509_V_ERR_* of OpenSSL


def base_url(config: UpstreamConfig) -> URL:
    """Where the upstream is. Raises ValueError, saying what is wrong with ``upstream.url``."""
    try:
        url = URL(config.url)
    except ValueError as error:
        raise ValueError(f"upstream.url is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("upstream.url must look like https://api.synerise.com")
    if url.user is not None or url.password is not None:
        raise ValueError("upstream.url must hold no user and password; see upstream.auth")
    if url.query_string or url.fragment:
        raise ValueError("upstream.url must end with its path, without ? and #")
    if url.scheme == "http" and not config.allow_http and not is_loopback(url.host):
        raise ValueError(
            "upstream.url must be https: keys would travel in the open (upstream.allow_http = true permits it)"
        )
    return url


def is_loopback(host: str) -> bool:
    """Whether this name can only be the machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Http:
    """One HTTP client for the upstream. Belongs to the loop that first uses it."""

    def __init__(self, config: UpstreamConfig, clock: Clock) -> None:
        """Raises ValueError, saying what is wrong, for an address or a ``ca_file`` that cannot be used."""
        self.url = base_url(config)
        self.on_answer: Callable[[Answer], None] | None = None
        """Sees every answer: those that are genuine tell the time."""
        self._clock = clock
        self._timeout = aiohttp.ClientTimeout(
            total=config.timeout or None, connect=config.timeout * _CONNECT_SHARE or None
        )
        self._tls = tls_context(config) if self.url.scheme == "https" else None
        self._proxy, self._proxy_headers = proxy_for(self.url)
        self._base = str(self.url).rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, ssl=self._tls or True, resolver=OwnThreadResolver())
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,  # it would read .netrc too; proxies are found by proxy_for
                headers={
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "Api-Version": API_VERSION,
                    "User-Agent": f"tillpost/{version('tillpost')}",
                },
            )
        return self._session

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer | Later | Paused:
        """Send one request and read its answer, all within the timeout."""
        sent = dict(headers or {})
        if body is not None:
            sent["Content-Type"] = "application/json"
        if self._proxy is not None and self.url.scheme == "http":
            sent.update(self._proxy_headers)
        sent_at = self._clock.boot_ms()
        try:
            async with self._opened().request(
                method,
                URL(self._base + path, encoded=True),
                data=body,
                headers=sent,
                allow_redirects=False,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers if self._proxy is not None else None,
            ) as response:
                received_at = self._clock.boot_ms()
                raw, complete = await _read(response)
                answer = Answer(response.status, response.headers, raw, complete, sent_at, received_at)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return self._no_answer(error)
        if self.on_answer is not None:
            self.on_answer(answer)
        return answer

    def _no_answer(self, error: Exception) -> Later | Paused:
        match error:
            case aiohttp.ClientConnectorCertificateError():
                return Paused(self.about_certificate(error.certificate_error))
            case aiohttp.ClientConnectorSSLError() if not _broke_off(error):
                return Paused("TLS: no secure connection could be agreed on; is it https that listens there?")
            case aiohttp.ClientConnectorDNSError():
                return Later("the name of the upstream cannot be looked up", offline=True)
            case aiohttp.ClientProxyConnectionError():
                return Later("the proxy cannot be reached", offline=True)
            case aiohttp.ClientHttpProxyError(status=407):
                return Paused("407: the proxy wants a user and password", 407)
            case aiohttp.ClientHttpProxyError():
                return Later(f"{error.status} from the proxy instead of a connection", offline=True)
            case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
                return Later("the upstream cannot be reached", offline=True)
            case TimeoutError():
                return Later("the upstream did not answer in time", sticks=True)
            case aiohttp.ClientResponseError() | aiohttp.InvalidURL() | ValueError():
                return Later("what came back is not HTTP")
            case _:
                return Later("the connection broke off before an answer came", sticks=True)

    def about_certificate(self, error: BaseException) -> str:
        """What is wrong with the upstream's certificate, in words for whoever can put it right."""
        code = getattr(error, "verify_code", None)
        now = format_ms(self._clock.wall_ms())
        if code == _NOT_YET_VALID:
            return f"TLS: the upstream's certificate is not valid yet: this machine's clock ({now}) is probably slow"
        if code == _EXPIRED:
            return f"TLS: the upstream's certificate has expired, or this machine's clock ({now}) is fast"
        if code in _OTHER_NAME:
            return f"TLS: the upstream's certificate is not for {self.url.host}"
        return "TLS: the upstream's certificate is not signed by an authority we trust (upstream.ca_file names others)"


class HttpUpstream:
    """The upstream over HTTP: delivers batches."""

    def __init__(self, http: Http, credentials: Credentials, *, is_chain: bool = False) -> None:
        """`is_chain`: the upstream is a collector for all we know; it hears of the priority from the first batch on."""
        self._http = http
        self._credentials = credentials
        self._says_priority = is_chain
        self._chain = False

    async def deliver(self, batch: Batch) -> Outcome:
        """Send one batch and say how it ended. A 401 or 403 is tried once more with new credentials."""
        authorization = await self._credentials.authorization()
        if not isinstance(authorization, str):
            return authorization
        verdict = await self._post(batch, authorization)
        if isinstance(verdict, Unauthorized | Forbidden):
            renewed = await self._credentials.renew(authorization, forbidden=isinstance(verdict, Forbidden))
            if isinstance(renewed, Later | Paused):
                return renewed
            if renewed is not None:
                verdict = await self._post(batch, renewed)
        return Paused(verdict.reason, verdict.status) if isinstance(verdict, Unauthorized) else verdict

    async def _post(self, batch: Batch, authorization: str) -> Verdict:
        headers = {"Authorization": authorization}
        if (self._chain or self._says_priority) and batch.lane.priority != "live":
            headers[PRIORITY_HEADER] = batch.lane.priority
        answer = await self._http.request("POST", KINDS[batch.lane.kind].path, headers=headers, body=batch.body)
        if not isinstance(answer, Answer):
            return answer
        verdict = judge(answer, batch, chain=self._chain)
        if isinstance(verdict, Delivered) and ACCEPTED_HEADER in answer.headers:
            self._chain = True  # learned, not configured: an upstream that is a collector says so on every 202
        return verdict


async def _read(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    """Up to `BODY_MAX` bytes of the body, and whether that is all of it."""
    body = bytearray()
    try:
        while len(body) <= BODY_MAX:
            piece = await response.content.readany()
            if not piece:
                return _decoded(bytes(body), response.headers.get("Content-Encoding", ""))
            body += piece
    except (aiohttp.ClientError, OSError, TimeoutError):
        return bytes(body), False
    response.close()  # what is still to come is not wanted
    return bytes(body[:BODY_MAX]), False


def _decoded(body: bytes, encoding: str) -> tuple[bytes, bool]:
    """Undo the compression that some proxies apply although none was asked for, within bounds."""
    if not body or encoding.lower() not in ("gzip", "x-gzip", "deflate"):
        return body, True
    unzip = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        plain = unzip.decompress(body, BODY_MAX)
    except zlib.error:
        return body, False
    return plain, unzip.eof


def _broke_off(error: aiohttp.ClientConnectorSSLError) -> bool:
    """Whether the handshake ended for want of a connection rather than of agreement."""
    return isinstance(error.__cause__, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)


def tls_context(config: UpstreamConfig) -> ssl.SSLContext:
    """Whom we trust. Raises ValueError for a ``ca_file`` that cannot be used."""
    try:
        return ssl.create_default_context(cafile=config.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(
            f"upstream.ca_file {config.ca_file}: not a file of certificates in PEM form ({error.strerror})"
        ) from None


def proxy_for(url: URL) -> tuple[URL | None, dict[str, str]]:
    """The proxy of the usual environment variables, and its headers. Loopback is never proxied."""
    host = url.host or ""
    proxies = urllib.request.getproxies()
    found = proxies.get(url.scheme) or proxies.get("all")
    if not found or is_loopback(host) or urllib.request.proxy_bypass(host):
        return None, {}
    proxy = URL(found if "://" in found else f"http://{found}")
    if proxy.scheme not in ("http", "https"):
        log.warning("proxy.unsupported", scheme=proxy.scheme)
        return None, {}
    headers = {}
    if proxy.user is not None:
        pair = f"{proxy.user}:{proxy.password or ''}".encode()
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair).decode()
    return proxy.with_user(None), headers


_AddressInfo = list[tuple[Any, ...]]


class OwnThreadResolver(AbstractResolver):
    """Looks names up on threads of its own, one per name at a time.

    A lookup can hang for half a minute. On the loop's pool it would keep ingest waiting;
    on threads that Python joins at exit it would keep the process from ending.
    """

    def __init__(self) -> None:
        self._under_way: dict[tuple[str, int, int], asyncio.Future[_AddressInfo]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        key = (host, port, family)
        found = self._under_way.get(key)
        if found is None:
            found = self._under_way[key] = asyncio.get_running_loop().create_future()
            found.add_done_callback(lambda future: self._over(key, future))
            lookup = threading.Thread(
                target=_look_up, args=(found, host, port, family), name="tillpost-dns", daemon=True
            )
            lookup.start()
        return [
            ResolveResult(
                hostname=host, host=address[0], port=address[1], family=kind, proto=proto, flags=socket.AI_NUMERICHOST
            )
            for kind, _, proto, _, address in await asyncio.shield(found)
        ]

    def _over(self, key: tuple[str, int, int], future: "asyncio.Future[_AddressInfo]") -> None:
        self._under_way.pop(key, None)
        future.exception()  # seen, although everybody may have given up waiting

    async def close(self) -> None:
        """Forget the lookups under way; their threads end by themselves."""
        self._under_way.clear()


def _look_up(found: "asyncio.Future[_AddressInfo]", host: str, port: int, family: int) -> None:
    try:
        result: Any = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
    except (OSError, UnicodeError) as error:
        result = error if isinstance(error, OSError) else OSError(None, "not the name of a host")

    def finish() -> None:
        if not found.done():
            if isinstance(result, OSError):
                found.set_exception(result)
            else:
                found.set_result(result)

    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        found.get_loop().call_soon_threadsafe(finish)
