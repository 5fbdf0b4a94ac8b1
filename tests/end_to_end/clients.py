"""What the end-to-end tests share: records, and a client that posts until it is acknowledged."""

import http.client
import json
from collections.abc import Sequence
from typing import Any

EMAIL, UUID, CUSTOM, BOTH = range(4)


def event(salt: str, identifier: int = EMAIL, **params: Any) -> dict[str, Any]:
    """A cart event of one of four identifier types; its time lies in the past, so it may leave at once."""
    number = int.from_bytes(salt.encode(), "big") % 50
    email, uuid = f"person{number}@example.com", f"00000000-0000-4000-8000-{number:012x}"
    client = [
        {"email": email},
        {"uuid": uuid},
        {"customId": f"C-{number}"},
        {"email": email, "uuid": uuid},
    ][identifier]
    return {
        "type": "added-to-cart",
        "label": "cart",
        "time": "2026-05-04T09:53:56.999Z",
        "eventSalt": salt,
        "client": client,
        "params": {"sku": "A-1", "quantity": 1, "finalUnitPrice": {"amount": 12.5, "currency": "PLN"}, **params},
    }


def sale(order_id: str, **more: Any) -> dict[str, Any]:
    amount = {"amount": 25, "currency": "PLN"}
    return {
        "client": {"customId": "C-1"},
        "orderId": order_id,
        "recordedAt": "2026-05-04T09:53:56.999Z",
        "eventSalt": f"sale-{order_id}",
        "source": "POS",
        "paymentInfo": {"method": "CASH"},
        "revenue": amount,
        "value": amount,
        "products": [
            {"sku": "A-1", "name": "Tea", "quantity": 2, "finalUnitPrice": {"amount": 12.5, "currency": "PLN"}}
        ],
        **more,
    }


def post(
    address: str, path: str, body: Any, headers: dict[str, str] | None = None, *, timeout: float = 20
) -> tuple[int, dict[str, str], bytes]:
    """One request; raises OSError or HTTPException where no answer came."""
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def get(address: str, path: str) -> Any:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def adds_up(ledger: dict[str, int]) -> bool:
    states = ("delivered", "pending", "dead", "discarded", "superseded", "lost")
    return ledger["accepted"] == sum(ledger[state] for state in states)


def salts(records: Sequence[dict[str, Any]]) -> list[str]:
    return [record["eventSalt"] for record in records]
