"""A raw client for the tests of `FakeUpstream`: what it sends is exactly what the test says."""

import http.client
import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

TIME = "2026-05-04T09:53:56.999Z"


class Reply(NamedTuple):
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """One request per connection; `headers` overrides, None takes a header out."""

    def __init__(self, url: str, key: str = "k", *, token: str | None = None) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self.token = token if token is not None else self.login(key)

    def login(self, key: str) -> str:
        reply = self.request("POST", "/uauth/v2/auth/login/profile", {"apiKey": key}, headers={"Authorization": None})
        return str(reply.json.get("token", ""))

    def request(
        self, method: str, path: str, value: Any = None, *, headers: Mapping[str, str | None] | None = None
    ) -> Reply:
        body = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
        sent: dict[str, str | None] = {
            "Api-Version": "4.4",
            "Content-Type": "application/json",
            "Authorization": f"Bearer {getattr(self, 'token', '')}",
            **(headers or {}),
        }
        connection = http.client.HTTPConnection(*self._address, timeout=5)
        try:
            connection.request(method, path, body, {k: v for k, v in sent.items() if v is not None})
            response = connection.getresponse()
            return Reply(response.status, response.read(), dict(response.headers))
        finally:
            connection.close()

    def events(self, *records: Any, **headers: str | None) -> Reply:
        return self.request("POST", "/v4/events/batch", list(records), headers=headers)

    def transactions(self, *records: Any, **headers: str | None) -> Reply:
        return self.request("POST", "/v4/transactions/batch", list(records), headers=headers)


def event(salt: str | None = "s-1", **changes: Any) -> dict[str, Any]:
    record = {
        "type": "custom",
        "action": "receipt.printed",
        "label": "Receipt printed",
        "time": TIME,
        "eventSalt": salt,
        "client": {"customId": "C-1001"},
        "params": {"terminal": "T-07"},
        **changes,
    }
    return {key: value for key, value in record.items() if value is not None}


def cart(**changes: Any) -> dict[str, Any]:
    params = {"sku": "A-1", "name": "Tea", "quantity": 2, "source": "POS"}
    price = {"finalUnitPrice": {"amount": 12.5, "currency": "PLN"}}
    return event(**{"type": "added-to-cart", "action": None, "params": {**params, **price}, **changes})


def transaction(salt: str | None = "t-1", **changes: Any) -> dict[str, Any]:
    record = {
        "client": {"customId": "C-1001"},
        "orderId": "T-07/000123",
        "recordedAt": TIME,
        "eventSalt": salt,
        "source": "POS",
        "paymentInfo": {"method": "CASH"},
        "revenue": {"amount": 37.5, "currency": "PLN"},
        "value": {"amount": 30.49, "currency": "PLN"},
        "products": [
            {"sku": "A-1", "name": "Tea", "quantity": 2, "finalUnitPrice": {"amount": 12.5, "currency": "PLN"}},
            {"sku": "B-9", "name": "Mug", "quantity": 1, "finalUnitPrice": {"amount": 12.5, "currency": "PLN"}},
        ],
        **changes,
    }
    return {key: value for key, value in record.items() if value is not None}
