"""Events that an application declares: checked, sent and described like the built-in ones."""

import inspect
import json
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import jsonschema
import pytest
from msgspec import Meta, field

from collector.pytest_plugin import RunningCollector
from tracker import Client, CustomEvent, InvalidRecord, Money, Product, Source, Tracker, catalogue, events
from tracker.testing import Captured

from .servers import ROOT

ANNA = Client(email="anna@example.com")
PRICE = Money("12.50", "PLN")
TEA = Product(sku="A", name="Tea", quantity=1, final_unit_price=PRICE, extra={"shelf": 3})


class Size(Enum):
    SMALL = "s"
    LARGE = "l"


class Till(CustomEvent):
    """What events of a till share."""

    terminal: Annotated[str, Meta(min_length=1, max_length=8, description="Which till.")]


class ReceiptPrinted(Till, action="receipt.printed"):
    """A receipt left the printer.

    Also when it was | printed again.
    """

    copies: Annotated[int, Meta(ge=1)] = 1
    """How many sheets."""
    how: Literal["paper", "mail"] | None = None
    printed_at: datetime | None = None
    day: date | None = None
    total: Money | None = None
    share: Decimal | None = None
    width: float | None = None
    size: Size | None = None
    source: Source | None = None
    device: UUID | None = None
    lines: list[Product] | None = None
    counts: dict[str, int] | None = None
    code: int | str | None = None
    free: object | None = None
    ok: bool | None = None
    mail: Annotated[str, Meta(pattern="@")] | None = field(name="email", default=None)


FULL: dict[str, Any] = {
    "terminal": "T-07",
    "copies": 2,
    "how": "mail",
    "printed_at": datetime(2026, 5, 4, 9, 53, 56, 999_000, UTC),
    "day": date(2026, 5, 4),
    "total": PRICE,
    "share": Decimal("0.10"),
    "width": 7.5,
    "size": Size.LARGE,
    "source": "POS",
    "device": UUID(int=7),
    "lines": [TEA],
    "counts": {"a": 1},
    "code": "x",
    "free": {"any": [1, "two"]},
    "ok": True,
    "mail": "anna@example.com",
}
SENT: dict[str, Any] = {
    "terminal": "T-07",
    "copies": 2,
    "how": "mail",
    "printedAt": "2026-05-04T09:53:56.999Z",
    "day": "2026-05-04",
    "total": {"amount": 12.5, "currency": "PLN"},
    "share": 0.1,
    "width": 7.5,
    "size": "l",
    "source": "POS",
    "device": "00000000-0000-0000-0000-000000000007",
    "lines": [
        {"sku": "A", "name": "Tea", "quantity": 1, "finalUnitPrice": {"amount": 12.5, "currency": "PLN"}, "shelf": 3}
    ],
    "counts": {"a": 1},
    "code": "x",
    "free": {"any": [1, "two"]},
    "ok": True,
    "email": "anna@example.com",
}


def test_a_declared_event_reaches_the_api_like_any_other(tillpost_collector: RunningCollector) -> None:
    with tillpost_collector.tracker() as tracker:
        tracker.track(ReceiptPrinted(ANNA, **FULL, params={"more": 1}))
        tracker.track(ReceiptPrinted(ANNA, terminal="T-08", label="Printed"))
    full, short = sorted(tillpost_collector.delivered(at_least=2), key=lambda record: record["params"]["terminal"])
    assert full["params"] == SENT | {"more": 1}
    assert (full["type"], full["action"], full["label"]) == ("custom", "receipt.printed", "receipt.printed")
    assert (short["params"], short["label"]) == ({"terminal": "T-08", "copies": 1}, "Printed")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"terminal": 7}, "terminal: must be a string, not int"),
        ({"terminal": None}, "terminal: is required"),
        ({"terminal": ""}, "terminal: must be at least 1 long"),
        ({"terminal": "T-0000007"}, "terminal: must be at most 8 long"),
        ({"copies": 0}, "copies: must be at least 1"),
        ({"copies": True}, "copies: must be a whole number (int), not bool"),
        ({"how": "fax"}, "how: must be one of paper, mail"),
        ({"how": ["mail"]}, "how: must be one of paper, mail"),
        ({"printed_at": datetime(2026, 5, 4)}, "printed_at: a naive datetime does not say"),
        ({"day": datetime(2026, 5, 4, tzinfo=UTC)}, "day: must be a date without a time, not datetime"),
        ({"total": 12.5}, "total: must be Money"),
        ({"share": 0.1}, "share: must not be a float"),
        ({"width": float("nan")}, "width: must be finite"),
        ({"size": "m"}, "size: must be one of s, l"),
        ({"source": "SHOP"}, "source: must be one of WEB_DESKTOP"),
        ({"device": "7"}, "device: must be a UUID, not str"),
        ({"lines": TEA}, "lines: must be a list, not Product"),
        ({"lines": [TEA, 7]}, "lines[1]: must be a Product, not int"),
        ({"counts": {"a": "1"}}, "counts.a: must be a whole number (int), not str"),
        ({"counts": [1]}, "counts: must be a mapping, not list"),
        ({"code": 1.5}, "code: must be whole number or text, not float"),
        ({"free": {"a": None}}, "free.a: must not be null"),
        ({"ok": 1}, "ok: must be True or False, not int"),
        ({"mail": "anna"}, "mail: must match @"),
        ({"mail": "eve@example.com"}, "mail: must equal the client's email"),
        ({"params": {"terminal": "x"}}, "params.terminal: has an argument of its own"),
    ],
)
def test_a_wrong_value_raises_where_it_is_made_and_names_field_and_rule(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRecord) as refused:
        ReceiptPrinted(ANNA, **{"terminal": "T-07"} | wrong)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("base", "body", "config", "message"),
    [
        (CustomEvent, {}, {"action": "not allowed"}, "Wrong: action: must be 1 to 32"),
        (CustomEvent, {}, {"action": "transaction.charge"}, "Wrong: action: must not be transaction.charge"),
        (CustomEvent, {"time": str}, {"action": "a"}, "Wrong.time: every event has time already"),
        (CustomEvent, {"metadata": str}, {"action": "a"}, "Wrong.metadata: every event has metadata already"),
        (CustomEvent, {"ip": str}, {"action": "a"}, "Wrong.ip: the API would ignore or overwrite ip"),
        (CustomEvent, {"tags": set[str]}, {"action": "a"}, "Wrong: set[str] is nothing a param can be"),
        (CustomEvent, {"sale": events.Registered}, {"action": "a"}, "Wrong: <class 'tracker.events.Registered'> is"),
        (CustomEvent, {"half": Literal[b"x"]}, {"action": "a"}, "Wrong: b'x' is no choice JSON can say"),
    ],
)
def test_a_wrong_declaration_raises_where_it_stands(
    base: type, body: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError) as refused:
        type(base)("Wrong", (base,), {"__annotations__": body, "__module__": __name__}, **config)
    assert str(refused.value).startswith(message)


def test_a_class_without_an_action_only_holds_what_others_share() -> None:
    with pytest.raises(TypeError, match="Till has no action"):
        Till(ANNA, terminal="T-07")


def test_editors_see_the_arguments_and_the_words_of_the_class() -> None:
    arguments = inspect.signature(ReceiptPrinted).parameters
    assert list(arguments)[:2] == ["client", "time"]
    assert {"terminal", "copies", "how"} <= set(arguments)
    assert (inspect.getdoc(ReceiptPrinted) or "").startswith("A receipt left the printer.")


def test_a_declared_event_shows_no_values_and_changes_like_any_other() -> None:
    event = ReceiptPrinted(ANNA, terminal="T-07")
    assert repr(event) == "ReceiptPrinted(client=…, terminal=…, copies=…)"
    assert event.replace(copies=3).copies == 3
    with pytest.raises(AttributeError):
        event.copies = 3  # type: ignore[misc]


# The catalogue

SHOP = f'''
from typing import Annotated, Literal
from msgspec import Meta
from tracker import CustomEvent, Product

{inspect.getsource(Till)}

class ReceiptPrinted(Till, action="receipt.printed"):
    """A receipt left the printer.

    Also when it was | printed again.
    """

    copies: Annotated[int, Meta(ge=1)] = 1
    """How many | sheets."""
    how: Literal["paper", "mail"] | None = None
    lines: list[Product] | None = None
'''
PAGE = """\
# Events of shop.events

## receipt.printed

A receipt left the printer.

Also when it was | printed again.

`shop.events.ReceiptPrinted`

| Param | Argument | Type | Required | Meaning |
|---|---|---|---|---|
| `terminal` | `terminal` | text, at least 1 long, at most 8 long | yes | Which till. |
| `copies` | `copies` | whole number, at least 1 | no: `1` | How many \\| sheets. |
| `how` | `how` | one of paper, mail | no |  |
| `lines` | `lines` | list of product | no |  |
"""


def tillpost(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "collector", "events", *arguments]
    return subprocess.run(
        program, cwd=folder, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": str(ROOT)}
    )


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "events.py").write_text(SHOP)
    return tmp_path


def test_the_catalogue_is_printed_as_a_page_for_colleagues(shop: Path) -> None:
    done = tillpost(shop, "shop.events")
    assert (done.stdout.rstrip("\n") + "\n", done.stderr, done.returncode) == (PAGE, "", 0)


def test_the_catalogue_is_printed_as_json_schema(shop: Path) -> None:
    schema = json.loads(tillpost(shop, "shop.events", "--json-schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    params = schema["$defs"]["receipt.printed"]["properties"]["params"]
    assert params["required"] == ["terminal"]
    assert params["properties"]["copies"] == {"type": "integer", "minimum": 1, "description": "How many | sheets."}


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("nowhere", "", "importing nowhere failed (ModuleNotFoundError: No module named 'nowhere')"),
        ("mine", "1 / 0", "importing mine failed (ZeroDivisionError: division by zero)"),
        ("mine", "x = 1", "mine declares no events"),
        (
            "mine",
            "import tracker as t\nclass A(t.CustomEvent, action='a'): ...\nclass B(t.CustomEvent, action='a'): ...",
            "two events have the action a: mine.A and mine.B",
        ),
    ],
)
def test_a_module_without_a_catalogue_is_told_in_one_line(tmp_path: Path, module: str, source: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(source)
    done = tillpost(tmp_path, module)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert said in done.stderr


def test_what_is_sent_passes_the_schema_and_what_would_be_refused_does_not(tracked_events: Captured) -> None:
    judge = jsonschema.Draft202012Validator(catalogue.json_schema([ReceiptPrinted]))
    tracker = Tracker("http://127.0.0.1:9")
    tracker.track(ReceiptPrinted(ANNA, **FULL))
    tracker.track(ReceiptPrinted(Client(uuid=UUID(int=1)), terminal="T-07"))
    for record in tracked_events:
        judge.validate(record)
    good = tracked_events[0]
    for params in (
        {"copies": 0},
        {"how": "fax"},
        {"terminal": 7},
        {"size": "m"},
        {"counts": {"a": "1"}},
        {"code": 1.5},
    ):
        assert not judge.is_valid(good | {"params": good["params"] | params}), params
    for other in ({"action": "other"}, {"type": "registered"}, {"client": {}}, {"params": {}}):
        assert not judge.is_valid(good | other), other
