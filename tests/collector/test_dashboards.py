"""/metrics of a real collector, and the dashboard, the alerts and the page that speak of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from collector import Collector
from collector.demo.processes import wait_for
from collector.metrics import render
from collector.testing import FakeUpstream
from tests.collector.test_metrics import STATUS, samples, value
from tests.end_to_end.clients import event, post, sale

OPERATIONS = Path(__file__).parents[2] / "docs/operations"
LABELS = {"kind", "identifier", "priority", "state", "outcome", "reason", "status", "version", "le"}
THEIRS = {"instance", "job"}
"""Labels that a Prometheus adds."""
QUICK: dict[str, Any] = {"ingest": {"listen": ["127.0.0.1:0"]}, "shutdown": {"grace": "0s"},
                         "delivery": {"backoff_base": "10ms", "backoff_max": "20ms"}}  # fmt: skip


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[bytes, FakeUpstream]]:
    """What a collector serves after 20 events in one request, one of them bad, and a sale; the upstream failed once."""
    import http.client

    path = tmp_path_factory.mktemp("metrics") / "t.db"
    with FakeUpstream(api_key="k") as fake, Collector(path, upstream=fake.url, api_key="k", config=QUICK) as collector:
        address = collector.urls[0].removeprefix("http://")
        fake.fault(503, kind="events")
        fake.fault("reject", salt="s-3")
        records = [event(f"s-{i}") for i in range(20)]
        assert post(address, "/v4/events/batch", records)[0] == 202
        assert post(address, "/v4/transactions", sale("T-1"))[0] == 202
        assert post(address, "/v4/events/batch", [{"type": "nonsense"}])[0] == 400
        assert post(address, "/v4/events/batch", b"x", {"Content-Type": "text/plain"})[0] == 415
        wait_for("delivery", lambda: not collector.status()["ledger"]["pending"], 20)
        connection = http.client.HTTPConnection(address, timeout=10)
        connection.request("GET", "/metrics")
        body = connection.getresponse().read()
        connection.close()
        yield body, fake


def test_the_metrics_agree_with_what_the_upstream_counted(scraped: tuple[bytes, FakeUpstream]) -> None:
    body, fake = scraped
    writes = [request for request in fake.requests if request.path.endswith("/batch")]
    found = samples(body)
    sent = sum(n for (name, _), n in found.items() if name == "tillpost_delivery_requests_total")
    assert sent == len(writes) > 3
    for histogram in ("tillpost_delivery_request_duration_seconds", "tillpost_batch_fill_ratio"):
        assert sum(n for (name, _), n in found.items() if name == f"{histogram}_count") == len(writes)
    assert value(body, "tillpost_records_delivered_total") == 20 == fake.stored_count
    assert value(body, "tillpost_buried_records_total", kind="events") == 1
    assert value(body, "tillpost_delivery_retries_total", kind="events", reason="503") == 1
    assert value(body, "tillpost_ingest_requests_total", status="202") == 2
    assert value(body, "tillpost_ingest_requests_total", status="400") == 1
    assert value(body, "tillpost_ingest_requests_total", status="415") == 1
    assert value(body, "tillpost_logins_total", outcome="done") == 1
    assert 0 <= value(body, "tillpost_token_age_seconds") < 60
    assert value(body, "tillpost_batch_fill_ratio_bucket", kind="transactions", le="0.01") == 1  # 1 of 100
    assert value(body, "tillpost_commits_total") == value(body, "tillpost_commit_sync_duration_seconds_count") > 2
    assert value(body, "tillpost_commit_sync_duration_seconds_sum") > 0
    assert value(body, "tillpost_buffer_usable_bytes") < value(body, "tillpost_buffer_max_bytes")


def test_no_label_names_a_person(scraped: tuple[bytes, FakeUpstream]) -> None:
    body, _ = scraped
    assert {label for _, labels in samples(body) for label, _ in labels} <= LABELS
    assert b"@" not in body
    assert b"person" not in body


def expressions() -> list[tuple[str, str]]:
    """Every expression of the dashboard and of the rules, and where it stands."""
    dashboard = json.loads((OPERATIONS / "grafana.json").read_text())
    rules = yaml.safe_load((OPERATIONS / "alerts.yml").read_text())
    return [
        *((panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]),
        *((rule["alert"], rule["expr"]) for group in rules["groups"] for rule in group["rules"]),
    ]


def selectors(node: Any) -> Iterator[Any]:
    """The vector selectors in a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for part in ("expr", "lhs", "rhs", "vector_selector", "args", "param"):
        inner = getattr(node, part, None)
        for one in inner if isinstance(inner, list) else [inner]:
            if one is not None and type(one).__module__ == type(node).__module__:
                yield from selectors(one)


def test_every_name_and_label_in_dashboard_and_alerts_is_served(scraped: tuple[bytes, FakeUpstream]) -> None:
    served: dict[str, dict[str, set[str]]] = {"up": {}}
    for name, labels in [*samples(scraped[0]), *samples(render(STATUS))]:  # the lanes of the first are empty
        known = served.setdefault(name, {})
        for label, content in labels:
            known.setdefault(label, set()).add(content)
    used = set()
    for where, expression in expressions():
        found = list(selectors(promql_parser.parse(expression)))  # raises for what Prometheus would not read
        assert found, where
        for selector in found:
            used.add(selector.name)
            assert selector.name in served, f"{where}: nobody serves {selector.name}"
            for matcher in selector.matchers.matchers:
                assert matcher.name in served[selector.name] or matcher.name in THEIRS, f"{where}: {matcher.name}"
                assert matcher.name != "state" or matcher.value in served[selector.name]["state"], where
        for labels in re.findall(r"\bby \(([^)]*)\)", expression):
            for label in labels.split(", "):
                assert label in THEIRS or all(label in served[s.name] for s in found), f"{where}: by {label}"
    assert len(used) > 20


def test_the_page_lists_exactly_what_is_served(scraped: tuple[bytes, FakeUpstream]) -> None:
    served = set()
    for family in text_string_to_metric_families(scraped[0].decode()):
        total = "_total" if family.type == "counter" else ""
        served.add(family.name + total)
    listed = re.findall(r"^\| `(\w+)` \|", (OPERATIONS / "metrics.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(served)


def test_every_alert_says_what_to_do() -> None:
    for group in yaml.safe_load((OPERATIONS / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"]["summary"]
            assert len(rule["annotations"]["description"]) > 30
