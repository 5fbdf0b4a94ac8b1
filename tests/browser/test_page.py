"""The status page in a real browser: it tells what is true, obeys its own policy, and everybody can read it."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from collector import Collector
from collector.demo.processes import wait_for
from collector.testing import FakeUpstream
from tests.end_to_end.clients import event, get, post, sale
from tests.faults import needs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.xdist_group("browser")

TOKEN = "the-boss"
BRISK = {"clock": {"margin": 0}, "batch": {"linger": "50ms"}, "delivery": {"backoff_base": "50ms", "backoff_max": "1s"}}
MAIL = "somebody.real@example.com"
FIGURES = "all => all.map(each => [each.dataset.figure, Number(each.value), each.textContent])"
TEXTS = "all => all.map(each => [each.dataset.text, each.textContent])"
CELLS = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
DISCARD_ALL = """() => fetch('/v1/dead-letters/discard', {method: 'POST', body: '{"all": true}',
    headers: {Authorization: 'Bearer '}}).then(answer => answer.status)"""
POLL_MS = 2000
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1200, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    path = needs.browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@dataclass
class Shop:
    """A collector with its upstream, and a browser that opens its page and notes what it should not see."""

    running: Collector
    fake: FakeUpstream
    browser: "Browser"
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.running.urls[0]

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def open(self, viewport: Any = DESK, **options: Any) -> "Page":
        page = self.browser.new_context(viewport=viewport, locale="en-GB", **options).new_page()
        page.clock.install()
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
        page.goto(self.url)
        if options.get("java_script_enabled", True):
            self.until(page, "#connection:text-is('live')")
            self.until(page, "#backlog canvas")
        return page

    def until(self, page: "Page", selector: str, count: int | None = None) -> None:
        """Let the page ask again and again, without waiting for its clock, until it shows something."""

        def shown() -> bool:
            found = page.locator(selector).count()
            if done := found > 0 if count is None else found == count:
                return done
            page.clock.fast_forward(POLL_MS)
            return False

        wait_for(selector, shown, 20)

    def send(self, *salts: str, kind: int = 0) -> None:
        assert post(self.address, "/v4/events/batch", [event(salt, kind) for salt in salts])[0] == 202

    def refuse(self, *salts: str, message: str = "params.sku is unknown") -> None:
        """Records that the upstream refuses, each for good."""
        for salt in salts:
            self.fake.fault("reject", salt=salt, message=message, times=None)
        self.send(*salts)
        self.wait(lambda ledger: ledger["pending"] == 0)

    def status(self) -> dict[str, Any]:
        return dict(get(self.address, "/status.json"))

    def wait(self, condition: Callable[[dict[str, int]], object]) -> None:
        wait_for("the ledger", lambda: condition(self.status()["ledger"]), 20)

    def outage(self) -> None:
        """Two lanes that cannot deliver, one with a dead letter beside."""
        self.refuse("bad")
        self.fake.fault("503", path="*", times=None)
        self.send(*(f"o{i}" for i in range(1200)))
        self.send("u1", "u2", kind=1)
        wait_for("an alarm", lambda: len(self.status()["condition"]["troubles"]) == 2)


@pytest.fixture
def shop(browser: "Browser", tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    config: dict[str, Any] = {**BRISK, "ingest": {"listen": ["127.0.0.1:0"]}}
    if "read_only" not in request.node.name:
        config["admin"] = {"token_file": str(token_file)}
    with (
        FakeUpstream(api_key="k") as fake,
        Collector(tmp_path / "tillpost.db", upstream=fake.url, api_key="k", config=config) as running,
    ):
        shop = Shop(running, fake, browser)
        url = shop.url
        yield shop
        for context in browser.contexts:
            context.close()
    assert [asked for asked in shop.asked if not asked.startswith(url + "/")] == [], "nothing leaves the page's origin"
    assert shop.complaints == []


def value(status: dict[str, Any], name: str) -> Any:
    """What stands in ``status.json`` under a name as the page gives it."""
    if name == "oldest_age_s":
        return max(lane["oldest_age_s"] for lane in status["lanes"] if lane["oldest_age_s"] is not None)
    found: Any = status
    for step in name.split("."):
        found = found[int(step) if step.isdigit() else step]
    return found


def test_every_figure_is_the_one_of_status_json_and_of_the_upstream(shop: Shop) -> None:
    shop.send(*(f"s{i}" for i in range(1234)))
    assert post(shop.address, "/v4/transactions/batch", [sale("T-1"), sale("T-2")])[0] == 202
    shop.refuse("bad1", "bad2", "bad3")
    shop.wait(lambda ledger: ledger["pending"] == 0)
    shop.fake.fault("503", path="*", times=None)
    shop.send("w1", "w2", kind=1)
    wait_for("a failed attempt", lambda: any(lane["attempts"] for lane in shop.status()["lanes"]))
    page = shop.open()
    before = shop.status()
    page.clock.fast_forward(POLL_MS)
    shop.until(page, "#connection:text-is('live')")
    figures = page.locator("[data-figure]").evaluate_all(FIGURES)
    texts = page.locator("[data-text]").evaluate_all(TEXTS)
    after = shop.status()

    changing = ("age_s", "attempts", "offset_ms", "disk_bytes", "buffer.bytes")
    for name, number, shown in figures:
        low, high = sorted((value(before, name), value(after, name)))
        # what moves by itself lies between, and a poll may be that much older
        slack = 3 if name.endswith(changing) else 0
        assert low - slack <= number <= high + slack, (name, number, low, high)
        if re.fullmatch(r"[\d\u202f]+", shown):
            assert int(shown.replace("\u202f", "")) == number, name
    for name, shown in texts:
        assert shown == str(value(after, name)), name
    seen = {name for name, _, _ in figures}
    assert {f"ledger.{name}" for name in after["ledger"] if name != "lost_at_most"} <= seen
    assert {f"lanes.{i}.pending" for i in range(len(after["lanes"]))} <= seen and len(after["lanes"]) == 3
    assert {"today.accepted", "today.delivered", "oldest_age_s", "buffer.bytes", "clock.offset_ms"} <= seen

    shown = {name: number for name, number, _ in figures}
    assert shown["ledger.delivered"] == shown["today.delivered"] == shop.fake.stored_count == 1236
    assert (shown["ledger.pending"], shown["ledger.dead"], shown["ledger.accepted"]) == (2, 3, 1241)
    minutes = get(shop.address, "/history.json")
    assert (sum(minutes["accepted"]), sum(minutes["delivered"]), minutes["pending"][-1]) == (1241, 1236, 2)
    rows = page.locator("#minutes tr").evaluate_all(CELLS)
    cells = [[int(cell.replace(",", "")) for cell in row[1:]] for row in rows]
    assert (sum(row[0] for row in cells), sum(row[1] for row in cells), cells[0][2]) == (1241, 1236, 2)
    assert "2 now" in str(page.get_attribute("#backlog", "aria-label"))


def test_it_follows_what_happens_without_being_loaded_again(shop: Shop) -> None:
    page = shop.open()
    assert page.text_content(".headline") == "All is well: no record has come yet."
    page.evaluate("window.same = true")
    shop.fake.fault("503", path="*", times=None)
    shop.send("a", "b")
    shop.until(page, ".headline:text('The upstream has troubles of its own.')")
    shop.until(page, ".chip.backing-off")
    assert page.title().startswith("Look here")
    shop.until(page, "#live-errors .lasting")
    shop.fake.clear_faults()
    shop.until(page, ".headline:text('All is well: everything has been delivered.')")
    assert page.locator("[data-figure='today.delivered']").text_content() == "2"
    assert page.evaluate("window.same") is True


def test_retry_and_discard_work_with_the_token_and_not_with_another(shop: Shop) -> None:
    shop.refuse("bad1", "bad2", "bad3", message=f"no sku for {MAIL}")
    page = shop.open()
    assert MAIL not in page.content() + json.dumps(shop.status()), "what the upstream said may name a person"
    page.fill("#token", "guess")
    page.click("#unlock button")
    page.wait_for_selector("text=That is not the admin token.")
    assert page.locator("#decide li").count() == 0 and page.is_hidden("#unlocked")

    page.fill("#token", TOKEN)
    page.click("#unlock button")
    page.wait_for_selector(f"#decide >> text=no sku for {MAIL} >> nth=2")
    shop.fake.clear_faults()
    page.click("#decide li:nth-child(1) >> text=Retry")
    page.wait_for_selector("text=1 record on the way again.")
    shop.wait(lambda ledger: (ledger["delivered"], ledger["dead"]) == (1, 2))
    assert [record["eventSalt"] for record in shop.fake.stored] == ["bad1"]

    page.click("#decide li:nth-child(1) >> text=Discard")
    page.click("dialog >> text=Keep")
    page.click("#decide li:nth-child(1) >> text=Discard")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="hidden")
    assert shop.status()["ledger"]["discarded"] == 0
    page.click("#decide li:nth-child(1) >> text=Discard")
    page.click("dialog >> text=Discard for good")
    page.wait_for_selector("text=1 record discarded.")
    assert (shop.status()["ledger"]["discarded"], shop.status()["ledger"]["dead"]) == (1, 1)
    page.click("text=Retry all")
    shop.wait(lambda ledger: ledger["delivered"] == 2)
    shop.until(page, "[data-all=retry]:disabled")
    assert page.locator("#decide li").count() == 0
    page.click("text=Forget the token")
    assert page.is_visible("#unlock") and page.input_value("#token") == ""
    assert sum(asked.endswith("/dead-letters/discard") for asked in shop.asked) == 1, "neither Keep nor Escape discards"
    shop.complaints[:] = [said for said in shop.complaints if "403" not in said]  # the browser reports the guess


def test_without_a_token_configured_the_page_is_read_only(shop: Shop) -> None:
    shop.refuse("bad")
    page = shop.open()
    page.wait_for_selector("text=This page only reads.")
    page.wait_for_selector("text=No. 1: the upstream refused what it holds")
    assert page.locator("#operations, dialog, input").count() == 0
    assert page.locator("button:visible").all_text_contents() == ["1 hour", "6 hours", "24 hours"]
    assert page.evaluate(DISCARD_ALL) == 403 and shop.status()["ledger"]["dead"] == 1
    shop.complaints.clear()  # the browser reports the 403


def test_everybody_can_read_it_and_it_fits_a_phone(shop: Shop) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = shop.open(PHONE, reduced_motion="reduce")

    def check(where: str, **options: Any) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], where
        found = Axe().run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
        assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found] == [], where

    shop.outage()
    shop.until(page, "#live-errors .lasting")
    page.fill("#token", TOKEN)
    page.click("#unlock button")
    page.wait_for_selector("#decide li")
    page.click("summary")
    check("an outage, unlocked")
    page.emulate_media(color_scheme="dark")
    check("in the dark", runOnly=["color-contrast"])
    page.click("#decide li:nth-child(1) >> text=Discard")
    check("asked whether it is sure", runOnly=["wcag2a", "wcag2aa"])
    page.click("dialog >> text=Keep")
    shop.fake.clear_faults()
    page.click("text=Retry all")
    shop.until(page, ".summary.well")
    page.click("text=Forget the token")
    check("all is well, in the dark", runOnly=["color-contrast"])


def test_a_collector_that_does_not_answer_is_told_apart_from_one_that_is_well(shop: Shop) -> None:
    shop.send("a")
    shop.wait(lambda ledger: ledger["delivered"] == 1)
    page, url = shop.open(), shop.url
    shop.running.close()
    shop.until(page, "#connection:text('No answer from the collector since')")
    assert page.title().startswith("No answer")
    assert all("ERR_CONNECTION_REFUSED" in said for said in shop.complaints), shop.complaints
    shop.complaints.clear()
    page.context.close()
    assert all(asked.startswith(url + "/") for asked in shop.asked)
    shop.asked.clear()


def test_without_scripts_it_can_still_be_read(shop: Shop) -> None:
    shop.refuse("bad")
    page = shop.open(java_script_enabled=False)
    assert page.text_content(".headline") == "1 record was refused for what it holds."
    assert page.is_visible("text=It adds up.") and page.is_hidden("#operations")
