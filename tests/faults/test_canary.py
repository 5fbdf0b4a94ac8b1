"""G12: secrets and people are sent through everything that can happen, and then looked for wherever they must not be.

Excepted, as promised: the buffer and its log, the 400 answer to its sender, and what an operator asks to see of a
dead letter or of a person.
"""

import base64
import gzip
import http.client
import io
import json
import logging
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector import Collector
from collector.batcher import Dead
from collector.chunks import Batch, Chunk, ends_of
from collector.config import Config
from collector.demo.processes import wait_for
from collector.ingest import Ingest
from collector.kinds import KINDS
from collector.outcomes import Answer, judge
from collector.settings import load
from collector.testing import FakeUpstream
from collector.testing.faults import Fault
from tests.collector.test_cli_run import Sidecar, tillpost
from tests.end_to_end.clients import post
from tracker import Client, InvalidRecord, Money, Product, Tracker, events
from tracker.time import SystemClock

KEY, INGEST, ADMIN = "key-cAnArY-0001", "ingest-cAnArY-0002", "admin-cAnArY-0003"
MAIL, CUSTOM, SKU = "cAnArY@example.com", "C-cAnArY-9", "sku-cAnArY"
UUID = "cafecafe-0000-4000-8000-0000cafecafe"


def event(salt: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "custom", "action": "a.b", "label": "label-cAnArY", "client": {"email": MAIL},
        "time": "2026-05-04T09:53:56.999Z", "eventSalt": salt, "params": {"sku": SKU}, **more,
    }  # fmt: skip


def sale(salt: str) -> dict[str, Any]:
    price = {"amount": 1, "currency": "PLN"}
    return {
        "client": {"customId": CUSTOM}, "orderId": "order-cAnArY", "recordedAt": "2026-05-04T09:53:56.999Z",
        "eventSalt": salt, "source": "POS", "paymentInfo": {"method": "CASH"}, "revenue": price, "value": price,
        "products": [{"sku": SKU, "name": "cAnArY", "quantity": 1, "finalUnitPrice": price}],
    }  # fmt: skip


def found_in(where: str, text: str, secrets: set[str]) -> list[str]:
    """Lines that hold what they must not."""
    low = [secret.lower() for secret in secrets]
    return [
        f"{where}: {line[:300]}"
        for line in text.splitlines()
        if "canary" in line.lower() or UUID in line or any(secret in line.lower() for secret in low)
    ]


HOSTILE: list[tuple[str, bytes, dict[str, str]]] = [
    # refused bodies of every kind, with a person in each
    ("/v4/events/batch", json.dumps([event("x", client={"email": MAIL + "@"})]).encode(), {}),
    ("/v4/events/batch", json.dumps([event("x", time="cAnArY")]).encode(), {}),
    ("/v4/events/batch", json.dumps([event("x", params={"email": "other-cAnArY@example.com"})]).encode(), {}),
    ("/v4/events/batch", b'[{"client":{"email":"%s"}' % MAIL.encode(), {}),
    ("/v4/events/batch", b'{"client":{"email":"%s"}}' % MAIL.encode(), {}),
    ("/v4/events/batch", b'["cAnArY\xff"]', {}),
    ("/v4/events/batch", gzip.compress(json.dumps([event("x")]).encode())[:-3], {"Content-Encoding": "gzip"}),
    ("/v4/events/batch", json.dumps([event("x")]).encode(), {"Content-Encoding": "cAnArY"}),
    ("/v4/events/batch", json.dumps([event("x")]).encode(), {"Content-Type": "text/cAnArY"}),
    ("/v4/events/batch", json.dumps([event("x")]).encode(), {"Tillpost-Clock": "boot=cAnArY"}),
    ("/v4/events/batch", json.dumps([event("x")]).encode(), {"Tillpost-Priority": "cAnArY"}),
    ("/v4/events/batch?email=cAnArY", json.dumps([event("x")]).encode(), {"Origin": "http://cAnArY.example"}),
    ("/v4/events/batch", b"[]", {"Host": "cAnArY.example"}),
    ("/v4/events/batch", b"[]", {"Authorization": "Bearer wrong-cAnArY"}),
    ("/v4/events/batch", b"[]", {"Authorization": "Basic " + base64.b64encode(b"cAnArY:wrong-cAnArY").decode()}),
    ("/v4/events/batch", b"[" + json.dumps(event("x", pad="y" * 9_000_000)).encode() + b"]", {}),
    ("/v4/events/cAnArY", json.dumps(event("x")).encode(), {}),
    ("/v4/clients/cAnArY", b"{}", {}),
    ("/cAnArY", b"{}", {}),
    ("/uauth/v2/auth/login/profile", b'{"apiKey": "wrong-cAnArY"}', {"Authorization": ""}),
    ("/uauth/v2/auth/login/profile", b'{"apiKey": cAnArY', {"Authorization": ""}),
    ("/v1/dead-letters/retry", b'{"ids": ["cAnArY"]}', {"Authorization": "Bearer wrong-cAnArY"}),
    ("/v1/dead-letters/retry", b'{"ids": ["cAnArY"]}', {"Authorization": f"Bearer {ADMIN}"}),
    ("/v1/find", b'{"client": {"cAnArY": 1}}', {"Authorization": f"Bearer {ADMIN}"}),
    ("/v1/find", b'{"salt": 7, "cAnArY": 1}', {"Authorization": f"Bearer {ADMIN}"}),
    ("/v1/lanes/resume", b'{"lane": "cAnArY"}', {"Authorization": f"Bearer {ADMIN}"}),
]


def upstream_troubles(fake: FakeUpstream) -> Iterator[Fault]:
    """One kind of trouble after another, all of them talking of the person."""
    says = {"message": f"bad value {MAIL} of {CUSTOM}", "error": f"cAnArY {MAIL}"}
    for trouble in (500, 502, 429, 401, 404, 400):
        entry = {"field": "[0].client.email", "message": MAIL, "rejectedValue": MAIL}
        yield fake.fault(trouble, **says, errors=[entry])
    for name, detail in {
        "html": {"body": f"<html>{MAIL}</html>"},
        "redirect": {"location": f"http://{MAIL}/?key={KEY}"},
        "odd_body": {"body": f"cAnArY {MAIL}", "content_type": "text/cAnArY"},
        "garbage": {"body": f"cAnArY {MAIL}"},
        "drop_answer": {},
        "reset": {},
        "truncated": {},
        "expire_tokens": {},
    }.items():
        yield fake.fault(name, **detail)


def test_no_secret_and_no_person_gets_out_of_a_sidecar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(KEY + "\n")
    secrets = {KEY, INGEST, ADMIN}
    seen: dict[str, str] = {}
    with FakeUpstream(api_key=KEY, keep_bodies=True) as fake:
        sidecar = Sidecar(
            tmp_path / "tillpost.db", "--upstream", fake.url, "--set", "log.level=debug", "--set",
            "delivery.pause_probe=100ms", "--set", "dead.wave=200/400", "--set", "upstream.timeout=2s",
            TILLPOST_API_KEY="", TILLPOST_API_KEY_FILE=str(key_file), TILLPOST_INGEST_TOKEN=INGEST,
            TILLPOST_ADMIN_TOKEN=ADMIN,
        ).listen()  # fmt: skip
        address = sidecar.url.removeprefix("http://")
        bearer = {"Authorization": f"Bearer {INGEST}"}

        def send(path: str, records: Any, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
            status, _, body = post(address, path, records, {**bearer, **(headers or {})})
            return status, body

        try:
            login = post(address, "/uauth/v2/auth/login/profile", {"apiKey": INGEST})
            secrets.add(json.loads(login[2])["token"])
            for i, (path, body, headers) in enumerate(HOSTILE):
                status, _ = send(path, body, headers)
                assert status >= 400, (i, path, status)
            for sent, trouble in enumerate(upstream_troubles(fake)):
                events_ = [event(f"e-{sent}"), event(f"u-{sent}", client={"uuid": UUID})]
                assert send("/v4/events/batch", events_)[0] == 202
                assert send("/v4/transactions/batch", [sale(f"t-{sent}")])[0] == 202
                fake.wait_until(lambda trouble=trouble: trouble.left == 0, 20)
                for path in ("/status.json", "/", "/metrics", "/readyz"):
                    seen[f"{path} after {trouble.name}"] = ask(address, path)
            fake.clear_faults()
            for salt in ("bad", "alone"):
                fake.fault("reject", salt=salt, message=f"cAnArY {MAIL}")
            injected = "x\r\nX-Injected: cAnArY\r\n\r\n"
            crlf = event("crlf", label=injected, params={"a": injected})
            assert send("/v4/events/batch", [event("bad"), crlf])[0] == 202

            def settled() -> bool:
                return bool(json.loads(ask(address, "/status.json"))["ledger"]["pending"] == 0)

            wait_for("everything to be settled", settled)
            assert send("/v4/events/batch", [event("alone")])[0] == 202
            wait_for("everything to be settled", settled)
            dead = json.loads(ask(address, "/v1/dead-letters", {"Authorization": f"Bearer {ADMIN}"}))["dead_letters"]
            assert {"bad", "alone"} <= {letter["record"]["eventSalt"] for letter in dead}
            assert any("cAnArY" in letter["reason"] for letter in dead)  # where it may be: with the dead letter

            for path in ("/metrics", "/status.json", "/", "/readyz", "/livez", "/openapi.json", "/v4/server/time"):
                seen[path] = ask(address, path)
            seen["ps"] = Path(f"/proc/{sidecar.process.pid}/cmdline").read_text()
            given = {"TILLPOST_INGEST_TOKEN": INGEST, "TILLPOST_ADMIN_TOKEN": ADMIN, "TILLPOST_API_KEY": KEY}
            for command in ("status", "status --json", "resume", "dead show 999999", "doctor", "drain --timeout 0.1"):
                result = tillpost(*command.split(), "--buffer", tmp_path / "tillpost.db", **given)
                seen[command] = result.output
            for command in ("config", "config --json", "run --upstream http://example.com"):
                seen[command] = tillpost(*command.split(), **given).output
            key_file.write_text("wrong-cAnArY\nsecond line")
            sidecar.process.send_signal(signal.SIGHUP)
            fake.fault("expire_tokens")
            assert send("/v4/events/batch", [event("last")])[0] == 202
            wait_for("a pause for the key", lambda: "paused" in ask(address, "/status.json"))
            seen["/status.json while paused"] = ask(address, "/status.json")
        finally:
            sidecar.process.send_signal(signal.SIGTERM)
            lines = []
            while (line := sidecar._lines.get(timeout=30)) is not None:
                lines.append(line)
            sidecar.end(signal.SIGKILL)
        requests = fake.requests
        for request in requests:
            seen[f"headers of {request.path}"] = json.dumps(request.headers)
            assert "x-injected" not in request.headers
        for body in (request.body for request in requests if request.body):
            for token in _tokens(fake):
                assert token.encode() not in body
        secrets |= _tokens(fake)
        stored = {record.get("eventSalt") for record in fake.stored}
    seen["log"] = "".join(lines)
    for file in tmp_path.glob("tillpost.db.*"):
        if file.is_file():
            seen[file.name] = file.read_bytes().decode("latin-1")
    leaks = [leak for where, text in seen.items() for leak in found_in(where, text, secrets)]
    assert leaks == []

    # the run was what it claims to be
    assert len(lines) >= 20 and {"debug", "info", "warning", "error"} >= {json.loads(line)["level"] for line in lines}
    buried = {letter["record"]["eventSalt"] for letter in dead}  # a scripted 400 strikes whichever lane is first
    assert {"e-0", "u-5", "t-9", "crlf"} <= stored | buried
    assert len(stored) > len(buried)
    assert found_in("buffer", (tmp_path / "tillpost.db").read_bytes().decode("latin-1"), secrets)
    assert len(_tokens(fake)) >= 2


def _tokens(fake: FakeUpstream) -> set[str]:
    """Every token the stand-in gave out."""
    return set(fake._api.gate._expires)


def ask(address: str, path: str, headers: dict[str, str] | None = None) -> str:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request("GET", path, headers=headers or {})
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_no_secret_and_no_person_gets_out_of_an_application_with_a_collector_inside(tmp_path: Path) -> None:
    """The host logs everything of everybody, and prints every object and every error it meets."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    shown: list[Any] = []
    failures: list[Any] = []
    try:
        with FakeUpstream(api_key=KEY) as fake:
            fake.fault("reject", salt="bad", message=f"cAnArY {MAIL}")
            fake.fault(500, message=MAIL)
            fake.fault("drop_answer")
            config = {"delivery": {"backoff_base": "50ms"}, "batch": {"linger": "10ms"}}
            collector = Collector(tmp_path / "t.db", upstream=fake.url, api_key=KEY, config=config)
            tracker = Tracker(collector, token=INGEST, on_error=failures.append)
            person = Client(email=MAIL)
            product = Product(sku=SKU, name="cAnArY", quantity=1, final_unit_price=Money("1", "PLN"))
            sold = {"order_id": "order-cAnArY", "payment_method": "CASH", "source": "POS", "products": [product]}
            receipts = [
                tracker.custom(person, action="a.b", params={"who": MAIL}, salt="bad"),
                tracker.transaction(Client(custom_id=CUSTOM), **sold),
                tracker.track(events.LoggedIn(client=person)),
            ]
            assert all(receipt.wait(20) for receipt in receipts)
            for wrong in (
                lambda: tracker.custom(person, action=f"{MAIL} is no action"),
                lambda: Client(email=f"{MAIL}@@"),
                lambda: Client(uuid="cAnArY"),
                lambda: tracker.custom(person, action="a.b", params={"gift": object()}),
                lambda: Money("cAnArY", "PLN"),
            ):
                with pytest.raises((InvalidRecord, TypeError)) as refused:
                    wrong()
                shown += [str(refused.value), repr(refused.value)]
                shown.append("".join(traceback.format_exception_only(refused.value)))
            assert collector.drain(20)
            parts = collector._parts
            shown += [collector, tracker, receipts, collector.status(), collector._settings.secrets, parts.http]
            shown += [parts.credentials, parts.upstream, parts.server, parts.buffer, parts.lanes, parts.keeper]
            shown += [tracker.counters(), failures, person, product, events.LoggedIn(client=person)]
            tracker.close()
            collector.close()
            late = tracker.custom(person, action="a.b")
            late.wait(5)
            shown += [late, late.error, failures]
            tokens = _tokens(fake)
            assert fake.stored_count == 2
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    secrets = {KEY, INGEST, *tokens}
    text = "\n".join(f"{thing!r}\n{thing!s}" for thing in shown)
    found = found_in("objects", text, secrets)
    assert found == [], "\n".join(found)
    assert found_in("log", stream.getvalue(), secrets) == []
    assert "tillpost" in stream.getvalue() or len(stream.getvalue()) > 100


def test_what_holds_records_inside_does_not_show_them() -> None:
    """Libraries log objects: aiosqlite, at debug, every function and what it is bound to."""
    body = json.dumps([event("x")]).encode()
    headers = {"Set-Cookie": "cAnArY"}
    intake = Ingest(Config(), SystemClock(), lambda: None).read("/v4/events/batch", body, {})
    (parcel,) = intake.parcels
    chunk = Chunk(1, parcel.lane, parcel.records[0], ends_of(parcel.records), tuple(parcel.runs), 0)
    batch = Batch.of(parcel.lane, chunk.spans())
    answered = Answer(400, headers, json.dumps({"message": MAIL}).encode())
    verdict = judge(answered, batch)
    partly = judge(Answer(207, headers, json.dumps([{"index": 0, "message": MAIL}]).encode()), batch)
    dead = Dead("400: cAnArY", 400, "cAnArY")
    things = [
        intake,
        parcel,
        chunk,
        batch,
        batch.spans,
        answered,
        verdict,
        partly,
        dead,
        KINDS["events"].identity(batch.record(0)),
    ]
    assert found_in("objects", "\n".join(f"{thing!r}\n{thing!s}" for thing in things), set()) == []


def test_settings_show_sources_and_never_values() -> None:
    settings = load(environ={"TILLPOST_API_KEY": KEY, "TILLPOST_INGEST_TOKEN": INGEST}, default_file=None)
    assert found_in("settings", f"{settings!r} {settings!s} {settings.secrets!r}", {KEY, INGEST}) == []
