"""What a `FakeUpstream` has seen, as plain data for people, tests and the demonstration."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import mean, median
from typing import Any

from collector.testing.api import Api
from collector.testing.call import Request
from collector.testing.faults import Fault


def report(api: Api, requests: Sequence[Request], faults: list[Fault], url: str, in_progress: int) -> dict[str, Any]:
    """Counts, violations and batches.

    ``batches`` holds every request with records in the order they ended; its ``fill`` is
    the share of the count or byte limit it used, the larger of both (1.0 is full).
    """
    kinds = Counter(entry.kind for entry in api.store.entries)
    by_path: dict[str, Counter[str]] = defaultdict(Counter)
    batches = []
    for request in requests:
        by_path[request.path][str(request.status)] += 1
        if request.records:
            batches.append(_batch(api, request))
    return {
        "url": url,
        "stored": len(api.store.entries),
        "events": kinds["events"],
        "transactions": kinds["transactions"],
        "profiles": len(api.store.profiles),
        "overwritten": api.store.overwritten,
        "altered": api.store.altered,
        "dropped": api.dropped,
        "requests": len(requests),
        "in_progress": in_progress,
        "by_path": {path: dict(statuses) for path, statuses in by_path.items()},
        "lanes": _lanes(batches),
        "batches": batches,
        "violations": list(api.violations),
        "violation_count": api.violation_count,
        "notes": dict(api.notes),
        "faults": [{"name": fault.name, "left": fault.left, "hits": fault.hits} for fault in faults],
    }


def _batch(api: Api, request: Request) -> dict[str, Any]:
    switches = api.switches
    max_records, max_bytes = switches.events_max_records, switches.one_mb
    if "/transactions" in request.path:
        max_records = switches.transactions_max_records
        max_bytes = switches.transactions_max_bytes or max_bytes
    return {
        "path": request.path,
        "identifier": ",".join(sorted(request.identifiers)),
        "status": request.status,
        "records": request.records,
        "bytes": request.size,
        "fill": round(max(request.records / max_records, request.size / max_bytes), 4),
    }


def _lanes(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accepted batches by path and identifier type."""
    lanes: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for batch in batches:
        if batch["status"] in (202, 207):
            lanes[batch["path"], batch["identifier"]].append(batch)
    return [
        {
            "path": path,
            "identifier": identifier,
            "batches": len(each),
            "records": sum(batch["records"] for batch in each),
            "records_median": median(batch["records"] for batch in each),
            "fill_mean": round(mean(batch["fill"] for batch in each), 4),
        }
        for (path, identifier), each in sorted(lanes.items())
    ]
