"""What only the upstream can tell ``tillpost doctor``: name, connection, time, who we are and what we may.

It is asked what a collector asks it anyway, the time and a token, and by its self-check what the key may do.
No record is sent.
"""

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from collector.clock import SERVER_TIME_PATH, UpstreamClock, server_time_in
from collector.corrections import RELEASED_MS
from collector.credentials import Credentials, make_credentials
from collector.delivery import Http, OwnThreadResolver, proxy_for, tls_context
from collector.doctor import Finding
from collector.outcomes import Answer, Later, Paused
from collector.settings import Settings
from tracker.time import SystemClock, format_ms

PERMISSION_PATH: Final = "/uauth/api-key/permission-check"
REFRESH_PATH: Final = "/v4/auth/refresh/profile"
NEEDED: Final = {
    "API_BATCH_EVENTS_CREATE": "events",
    "API_BATCH_TRANSACTION_CREATE": "transactions",
}
"""What a key needs (API reference 2.4), and what waits on the disk without it."""
_EXPIRES_SOON_S: Final = 14 * 86_400


async def ask_upstream(settings: Settings) -> AsyncIterator[Finding]:
    """One finding after the other; what cannot be found out because an earlier one failed is left out."""
    config = settings.config.upstream
    try:
        http = Http(config, SystemClock())
    except ValueError as error:
        yield Finding("upstream", "failed", str(error), "correct the configuration", 2)
        return
    try:
        for check in (_dns, _tls):
            finding = await check(http, settings)
            yield finding
            if finding.status == "failed":
                return
        clock, told = await _clock(http, settings)
        yield clock
        if clock.status == "failed":
            return
        async for finding in _who(http, settings, told):
            yield finding
    finally:
        await http.close()


async def _dns(http: Http, settings: Settings) -> Finding:
    host = http.url.host or ""
    if (proxy := proxy_for(http.url)[0]) is not None:
        return Finding("dns", "skipped", f"the proxy {proxy.host} looks {host} up")
    try:
        async with asyncio.timeout(settings.config.upstream.timeout):
            found = await OwnThreadResolver().resolve(host, http.url.port or 0, socket.AF_UNSPEC)
    except (OSError, TimeoutError) as error:
        why = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return Finding("dns", "failed", f"{host} cannot be looked up: {why}",
                       "look after the network, its name server, or upstream.url")  # fmt: skip
    return Finding("dns", "ok", f"{host} is {', '.join(sorted({entry['host'] for entry in found}))}")


async def _tls(http: Http, settings: Settings) -> Finding:
    url = http.url
    if proxy_for(url)[0] is not None:
        return Finding("tls", "skipped", "through a proxy; a login will tell")
    context = tls_context(settings.config.upstream) if url.scheme == "https" else None
    reach = f"{url.host}:{url.port}"
    try:
        async with asyncio.timeout(settings.config.upstream.timeout):
            _, writer = await asyncio.open_connection(url.host, url.port, ssl=context)
    except ssl.SSLCertVerificationError as error:
        return Finding("tls", "failed", http.about_certificate(error),
                       "set this machine's clock, or name the authority in upstream.ca_file")  # fmt: skip
    except ssl.SSLError as error:
        return Finding("tls", "failed", f"{reach} does not speak TLS with us ({error.reason or 'no common version'})",
                       "correct upstream.url, or what stands between")  # fmt: skip
    except (OSError, TimeoutError) as error:
        why = "no answer in time" if isinstance(error, TimeoutError) else os.strerror(error.errno or 0)
        return Finding("tls", "failed", f"{reach} cannot be reached: {why}", "open the firewall for it, or set "
                       "HTTPS_PROXY; until then records wait on the disk")  # fmt: skip
    certificate: dict[str, Any] = writer.get_extra_info("peercert") or {}
    version = writer.get_extra_info("ssl_object").version() if context else ""
    writer.close()
    if context is None:
        return Finding("tls", "ok", f"{reach} answers; http, so nothing is encrypted")
    ends_s = ssl.cert_time_to_seconds(certificate["notAfter"])
    text = f"{version} with {reach}, certificate valid until {format_ms(round(ends_s * 1000))[:10]}"
    if ends_s - time.time() < _EXPIRES_SOON_S:
        return Finding("tls", "warning", text, "whoever runs the upstream should renew it")
    return Finding("tls", "ok", text)


async def _clock(http: Http, settings: Settings) -> tuple[Finding, UpstreamClock]:
    clock = SystemClock()
    told = UpstreamClock(clock)
    answer = await http.request("GET", SERVER_TIME_PATH, headers={"Cache-Control": "no-cache"})
    if not isinstance(answer, Answer):
        return Finding("clock", "failed", answer.reason, "until the upstream answers, records wait on the disk"), told
    if (said := server_time_in(answer)) is None:
        if clock.wall_ms() < RELEASED_MS:
            return Finding("clock", "failed", f"this machine's clock ({format_ms(clock.wall_ms())}) is wrong and "
                           f"the upstream tells no time ({answer.status})", "set the clock"), told  # fmt: skip
        return Finding("clock", "warning", f"{answer.status} instead of the upstream's time",
                       "is upstream.url the API, or a collector that knows the time?"), told  # fmt: skip
    told.observe(*said, answer.sent_boot_ms, answer.received_boot_ms)
    offset_s = (told.offset_ms or 0) / 1000
    text = f"the upstream's is {offset_s:+.1f} s to ours, known to {told.uncertainty_ms / 1000:.1f} s"
    if abs(offset_s) > max(settings.config.clock.tolerance, told.uncertainty_ms / 1000):
        return Finding("clock", "warning", text, "set the clock and keep it (NTP): times the application gives are "
                       "never changed, only those we stamp"), told  # fmt: skip
    return Finding("clock", "ok", text), told


async def _who(http: Http, settings: Settings, told: UpstreamClock) -> AsyncIterator[Finding]:
    config, secret = settings.config.upstream, settings.upstream_secret
    if secret is None:
        yield Finding("login", "skipped", "no key or token is named")
        return
    credentials = make_credentials(config, secret, http, SystemClock(), told.now_ms)
    try:
        login, authorization = await _login(http, credentials, config.auth)
        yield login
        if config.auth == "basic":
            yield Finding("permissions", "skipped", "the API tells them for tokens only; the first batch will show")
        elif authorization is not None:
            yield await _permissions(http, authorization)
    finally:
        await credentials.close()


async def _login(http: Http, credentials: Credentials, auth: str) -> tuple[Finding, str | None]:
    authorization = await credentials.authorization()
    if not isinstance(authorization, str):
        advice = "records wait on the disk; put the key right and send SIGHUP"
        if isinstance(authorization, Later):
            advice = "the upstream is in trouble: records wait on the disk until it is well"
        return Finding("login", "failed", authorization.reason, advice), None
    if auth == "basic":
        return Finding("login", "skipped", "Basic needs none; the first batch will show"), authorization
    if auth == "token":
        answer = await http.request("GET", REFRESH_PATH, headers={"Authorization": authorization})
        if not isinstance(answer, Answer) or answer.status != 200:
            why = f"{answer.status} from the upstream" if isinstance(answer, Answer) else answer.reason
            return Finding("login", "failed", f"{why}: it does not take the token", "give the till the ingest token of "
                           "the collector it delivers to, and send SIGHUP"), None  # fmt: skip
        return Finding("login", "ok", "the upstream takes the token"), authorization
    return Finding("login", "ok", "the upstream takes the API key"), authorization


async def _permissions(http: Http, authorization: str) -> Finding:
    answer = await http.request("POST", PERMISSION_PATH, headers={"Authorization": authorization},
                                body=msgspec.json.encode(list(NEEDED)))  # fmt: skip
    if isinstance(answer, Later | Paused):
        return Finding("permissions", "failed", answer.reason, "run this again")
    if answer.status == 501:
        return Finding("permissions", "skipped", "the upstream is a collector: run doctor where the workspace key is")
    body = answer.json() if answer.status == 200 else None
    held = body.get("permissions") if isinstance(body, dict) else None
    if not isinstance(held, dict):
        return Finding("permissions", "warning", f"{answer.status} from the API's self-check: not known",
                       "run this again; the first batch will show")  # fmt: skip
    if missing := [name for name in NEEDED if held.get(name) is not True]:
        waits = " and ".join(NEEDED[name] for name in missing)
        return Finding("permissions", "failed", f"the key lacks {', '.join(missing)}",
                       f"give it these in the workspace's settings; until then {waits} wait on the disk")  # fmt: skip
    return Finding("permissions", "ok", f"the key has {', '.join(NEEDED)}")
