"""What every answer means: the whole table, one row per answer."""

from typing import Any

import orjson
import pytest

from collector.outcomes import (
    ANSWER_MAX,
    BODY_MAX,
    Answer,
    Delivered,
    Forbidden,
    Later,
    PartlyRejected,
    Paused,
    Rejected,
    TooLarge,
    Unauthorized,
    Verdict,
    judge,
)

JSON = {"Content-Type": "application/json"}
HTML = {"Content-Type": "text/html; charset=utf-8"}
PORTAL = b"<!DOCTYPE html><html><body>Welcome to the hotel</body></html>"


class Records:
    """Records with a client and a label each."""

    def __init__(self, *records: dict[str, Any]) -> None:
        self.records = records
        self.count = len(records)

    def record(self, index: int) -> bytes:
        return orjson.dumps(self.records[index])


BATCH = Records(*({"client": {"email": f"p{i}@example.com"}, "label": "x", "params": {"n": i}} for i in range(5)))
ONE = Records({"client": {"email": "p0@example.com"}, "label": "x"})


def verdict(
    status: int, body: Any = b"", headers: dict[str, str] = JSON, batch: Records = BATCH, **more: Any
) -> Verdict:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    chain = more.pop("chain", False)
    return judge(Answer(status, headers, raw, **more), batch, chain=chain)


def error(message: str, *fields: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "timestamp": "2020-10-28T12:24:24.444Z",
        "status": 400,
        "error": "Bad Request",
        "message": message,
    }
    if fields:
        body["errors"] = [
            {"code": 1001, "field": f, "message": "must not be null", "rejectedValue": None} for f in fields
        ]
    return body


@pytest.mark.parametrize("status", [200, 201, 202, 204])
@pytest.mark.parametrize(
    "body", [b"", b"  \n", b"{}", b"null", b'{"status":"ok"}', b'[{"uuid":"a"}]', b'{"errors":[]}']
)
def test_a_success_with_an_empty_or_json_body_is_delivered(status: int, body: bytes) -> None:
    assert verdict(status, body) == Delivered()
    assert verdict(status, body, {}) == Delivered()


@pytest.mark.parametrize("status", [200, 201, 202, 204, 207])
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (PORTAL, HTML),
        (PORTAL, {}),
        (b"", HTML),
        (b"OK", {"Content-Type": "text/plain"}),
        (b'{"cut', JSON),
        (b"NaN", JSON),
    ],
)
def test_a_success_that_is_not_the_apis_is_not_delivered(status: int, body: bytes, headers: dict[str, str]) -> None:
    assert isinstance(verdict(status, body, headers), Later)


@pytest.mark.parametrize("status", [200, 202, 207])
def test_a_success_that_broke_off_is_not_delivered(status: int) -> None:
    assert isinstance(verdict(status, b"", complete=False), Later)
    assert isinstance(verdict(status, b"{}", complete=False), Later)


def test_in_a_chain_the_number_accepted_must_be_the_number_sent() -> None:
    assert verdict(202, headers={"Tillpost-Accepted": "5"}, chain=True) == Delivered()
    assert verdict(202, headers={"Tillpost-Accepted": "5"}) == Delivered()
    assert isinstance(verdict(202, headers={"Tillpost-Accepted": "4"}), Later)
    assert isinstance(verdict(202, headers={"Tillpost-Accepted": "05"}, chain=True), Later)
    assert isinstance(verdict(202, headers={}, chain=True), Later)


@pytest.mark.parametrize("status", [203, 205, 206, 218, 226, 199])
def test_an_odd_success_waits(status: int) -> None:
    assert isinstance(verdict(status), Later)


@pytest.mark.parametrize("status", [408, 409, 423, 424, 425, 429, 500, 501, 502, 503, 504, 507, 511, 520, 527, 599])
@pytest.mark.parametrize(("body", "headers"), [(b"", {}), (PORTAL, HTML), (b'{"message":"busy"}', JSON)])
def test_trouble_of_the_server_waits(status: int, body: bytes, headers: dict[str, str]) -> None:
    found = verdict(status, body, headers)
    assert isinstance(found, Later)
    assert found.status == status
    assert not found.offline
    assert found.sticks == (status not in (408, 425, 429, 511))


@pytest.mark.parametrize("status", [429, 503])
def test_what_was_asked_for_is_passed_on_and_never_held_against_the_batch(status: int) -> None:
    found = verdict(status, headers={"Retry-After": "120"})
    assert isinstance(found, Later)
    assert found.retry_after_s == 120
    assert not found.sticks


PAUSING = (
    300,
    301,
    302,
    303,
    304,
    307,
    308,
    402,
    404,
    405,
    406,
    407,
    410,
    411,
    412,
    414,
    415,
    417,
    418,
    421,
    426,
    428,
    431,
)


@pytest.mark.parametrize("status", PAUSING)
@pytest.mark.parametrize(("body", "headers"), [(b"", {}), (PORTAL, HTML), (b'{"message":"no"}', JSON)])
def test_trouble_with_the_address_or_the_request_pauses(status: int, body: bytes, headers: dict[str, str]) -> None:
    found = verdict(status, body, headers)
    assert isinstance(found, Paused)
    assert found.status == status


def test_a_401_asks_for_a_token_and_a_403_says_what_is_missing() -> None:
    assert isinstance(verdict(401, {"error": "Token expired."}), Unauthorized)
    assert isinstance(verdict(403, PORTAL, HTML), Forbidden)


@pytest.mark.parametrize(
    ("body", "headers"), [(b"", {}), (b"<html><h1>413 Request Entity Too Large</h1></html>", HTML)]
)
def test_a_413_is_too_large_also_from_a_proxy(body: bytes, headers: dict[str, str]) -> None:
    assert isinstance(verdict(413, body, headers), TooLarge)


@pytest.mark.parametrize(
    "message",
    [
        "Version header content is invalid",
        "Api-Version is missing",
        "Content type 'text/plain' not supported",
        "Content-Type header missing",
        "JSON parse error: Unexpected end-of-input; nested exception is com.fasterxml.jackson...",
        "JSON parse error: Unrecognized token 'foo'",
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_a_400_about_the_request_pauses(status: int, message: str) -> None:
    assert isinstance(verdict(status, error(message)), Paused)
    assert isinstance(verdict(status, error(message), batch=ONE), Paused)


@pytest.mark.parametrize(
    "body",
    [
        error("Some fields did not pass validation", "[3].params.sku"),
        error("Some fields did not pass validation"),
        error("JSON parse error: Missing property: 'currency'; nested exception is ..."),
        error('JSON parse error: bad value (through reference chain: java.util.ArrayList[2]->Event["client"])'),
        error("Content type of the picture is wrong", "[1].params.picture"),
        b"",
        b"no",
        b"[]",
        b'"a string"',
        {"errorCode": 1001, "status": 400, "message": "label: must not be empty", "traceId": "t"},
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_every_other_400_is_about_a_record(status: int, body: Any) -> None:
    found = verdict(status, body)
    assert isinstance(found, Rejected)
    assert found.status == status
    assert found.reason.startswith(f"{status}: ")
    assert "\n" not in found.reason


def test_a_400_that_is_a_web_page_is_not_from_the_api() -> None:
    assert isinstance(verdict(400, PORTAL, HTML), Later)


def test_a_400_says_where_to_look_first() -> None:
    found = verdict(
        400, error("invalid", "[3].params.sku", "[3].label", "[1].client", "[77].label", "products[2].name")
    )
    assert isinstance(found, Rejected)
    assert found.hints == (3, 1)
    chain = verdict(
        400, error('JSON parse error: x["a"] (through reference chain: java.util.ArrayList[2]->Event["client"])')
    )
    assert isinstance(chain, Rejected)
    assert chain.hints == (2,)


def test_a_long_list_of_errors_still_gives_hints_although_it_is_cut() -> None:
    body = orjson.dumps(error("invalid", *(f"[{i % 4}].params.{'x' * 60}{i}" for i in range(1000))))[:BODY_MAX]
    found = verdict(400, body, complete=False)
    assert isinstance(found, Rejected)
    assert found.hints == (0, 1, 2, 3)
    assert len(found.answer) <= ANSWER_MAX


def test_a_400_that_broke_off_could_be_about_anything_and_waits() -> None:
    assert isinstance(verdict(400, b'{"message": "Versi', complete=False), Later)


def test_the_reason_is_short_and_names_the_field_of_the_record() -> None:
    found = verdict(400, error("Some fields did not pass validation", "[3].params.sku"))
    assert isinstance(found, Rejected)
    assert found.reason == "400: params.sku must not be null"
    long = verdict(400, error("word " * 1000))
    assert isinstance(long, Rejected)
    assert len(long.reason) <= 300


# -- 207 ----------------------------------------------------------------------------------------


def entry(field: str = "", value: Any = None) -> dict[str, Any]:
    return {"code": 1001, "field": field, "message": "is wrong", "rejectedValue": value}


def partly(body: Any, batch: Records = BATCH, status: int = 207) -> PartlyRejected:
    found = verdict(status, body, batch=batch)
    assert isinstance(found, PartlyRejected)
    return found


def test_a_207_that_names_positions_settles_everything() -> None:
    found = partly([entry("[3].phone"), entry("[0].label"), entry("[3].label")])
    assert dict(found.rejected) == {3: "207: phone is wrong", 0: "207: label is wrong"}
    assert found.complete
    assert partly({"errors": [entry("[3].phone")]}).complete
    assert partly([{"index": 4, "message": "no"}]).rejected.keys() == {4}


def test_a_207_that_names_a_value_only_one_record_has_is_matched() -> None:
    found = partly([entry("client.email", "p2@example.com"), entry("", "p4@example.com"), entry("params.n", 1)])
    assert sorted(found.rejected) == [1, 2, 4]
    assert found.complete


@pytest.mark.parametrize(
    "unmatched",
    [
        entry("label", "x"),  # every record has it
        entry("label", None),
        entry("[5].label"),  # outside
        entry("products[0].quantity"),
        entry("client.email", "stranger@example.com"),
        {"path": "/x", "timestamp": "t", "errorCode": 1001, "status": 400, "message": "label: empty", "traceId": "t"},
        {"what": "is this"},
        "text",
        None,
    ],
)
def test_a_207_with_an_entry_that_cannot_be_matched_is_not_complete(unmatched: Any) -> None:
    found = partly([entry("[1].label"), unmatched])
    assert set(found.rejected) == {1}
    assert not found.complete


@pytest.mark.parametrize("body", [b"", {}, {"errors": "many"}, 5, [None]])
def test_a_207_that_names_nothing_settles_nothing(body: Any) -> None:
    found = partly(body)
    assert not found.rejected
    assert not found.complete
    assert isinstance(verdict(207, body, batch=ONE), Later)


def test_a_207_without_errors_is_delivered() -> None:
    assert verdict(207, []) == Delivered()
    assert verdict(207, {"errors": []}) == Delivered()
    assert verdict(207, [{"status": 202}] * 5) == Delivered()


def test_a_207_for_a_record_alone_is_a_refusal() -> None:
    found = verdict(207, [entry("label", "x")], batch=ONE)
    assert isinstance(found, Rejected)
    assert found.reason == "207: label is wrong"


def test_a_success_that_lists_errors_is_none_for_those_it_lists() -> None:
    assert partly({"errors": [entry("[1].label")]}, status=202).rejected.keys() == {1}


# -- which answers may tell the time -----------------------------------------------------------


def test_only_what_an_api_would_say_is_genuine() -> None:
    assert Answer(202).genuine
    assert Answer(200, JSON, b"{}").genuine
    assert Answer(401, JSON, b'{"message":"no"}').genuine
    assert not Answer(404, {}, b"").genuine
    assert not Answer(404, {"Content-Type": "text/plain"}, b"404: Not Found").genuine
    assert not Answer(200, HTML, PORTAL).genuine
    assert not Answer(302, JSON, b"{}").genuine
    assert not Answer(202, JSON, b"{}", complete=False).genuine
