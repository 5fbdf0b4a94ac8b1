"""Loaded by schemathesis, not by pytest: makes its valid requests keep the rules that no JSON Schema can express."""

from typing import Any

import schemathesis
from schemathesis.generation import GenerationMode


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Changes what is about to be sent."""
    case.headers.pop("Content-Encoding", None)  # the body is sent as it is
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    if "Tillpost-Clock" in case.headers:  # names positions, whose number only the body knows
        case.headers["Tillpost-Clock"] = case.headers["Tillpost-Clock"].partition("; given=")[0]
    _keep_rules(case.body)


def _keep_rules(value: Any) -> None:
    """Times not far ahead, one currency, an email that is the client's; and 1.0 is no integer to us."""
    if isinstance(value, dict):
        for key in ("time", "recordedAt"):
            value.pop(key, None)
        if isinstance(value.get("params"), dict):
            value["params"].pop("email", None)
        if "currency" in value:
            value["currency"] = "PLN"
        if isinstance(value.get("customId"), str):  # a pattern for what it may hold takes minutes to generate from
            value["customId"] = (
                "".join(c for c in value["customId"] if c.isascii() and c.isprintable()).strip() or "C-1"
            )
        if isinstance(value.get("id"), float):
            value["id"] = int(value["id"])
        if isinstance(value.get("ids"), list):
            value["ids"] = [int(number) for number in value["ids"]]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _keep_rules(inner)
