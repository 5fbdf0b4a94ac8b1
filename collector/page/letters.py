"""The refused records: what may be known of them without the admin token, and what the page needs to decide with it."""

from collections.abc import Mapping
from typing import Any

from collector.page.html import Html, h, join
from collector.page.pieces import live, moment
from collector.page.words import count, refusal


def dead_letters(status: Mapping[str, Any]) -> Html:
    """Those that were refused; why, in full, and the buttons only for who has the admin token."""
    letters, ledger = status.get("dead_letters") or [], status.get("ledger") or {}
    kept = ledger.get("dead", 0) + ledger.get("superseded", 0)
    rows = [
        h(
            "li",
            h("h3", f"No. {letter['id']}: {refusal(letter)}"),
            h("p", f"{letter['kind']} by {letter['identifier']}, refused ", moment(letter["died_at"]), class_="small"),
            h("p", "A newer record has replaced it.", class_="small") if letter["superseded"] else None,
        )
        for letter in letters
    ]
    more = [h("p", f"These are the newest of {count(kept)}.", class_="small")] if kept > len(rows) else []
    listed = [h("ul", *rows, class_="letters"), *more] if rows else [h("p", "None. Nothing was refused.")]
    return h(
        "section",
        h("h2", "Refused records", id="refused"),
        live("letters", *listed),
        _operations() if status.get("operations") == "token" else _read_only(),
        aria_labelledby="refused",
    )


def _read_only() -> Html:
    listing, retry, discard = (h("code", f"tillpost dead {verb}") for verb in ("list", "retry", "discard"))
    return h(
        "p",
        join("This page only reads. On the collector's machine ", listing, " shows why each was refused; "),
        join(retry, " and ", discard, " decide. With an admin token (", h("code", "admin.token_file"), ") "),
        "that can be done here.",
        class_="small",
    )


def _operations() -> Html:
    """What ``page.js`` works with once it has the token; nothing without scripts."""
    return h(
        "div",
        h(
            "form",
            # for password managers, which keep a token under a name
            h("input", type="text", value="admin", autocomplete="username", readonly=True, hidden=True),
            h("label", "Admin token", for_="token"),
            h("input", id="token", type="password", autocomplete="current-password", required=True),
            h("button", "Show reasons and decide", type="submit"),
            h("p", "It stays in this page until you close or reload it.", class_="small"),
            id="unlock",
        ),
        h(
            "div",
            h(
                "div",
                h("button", "Retry all", type="button", data_all="retry"),
                h("button", "Discard all", type="button", data_all="discard", class_="grave"),
                h("button", "Forget the token", type="button", id="lock"),
                class_="buttons",
            ),
            h("ul", id="decide", class_="letters"),
            h("button", "Show more", type="button", id="more", hidden=True),
            id="unlocked",
            hidden=True,
        ),
        h("p", id="said", role="status"),
        h(
            "template",
            h(
                "li",
                h("h3", h("span", data_letter="title")),
                h("p", data_letter="reason", class_="reason"),
                h("p", data_letter="where", class_="small"),
                h(
                    "div",
                    h("button", "Retry", type="button", data_act="retry"),
                    h("button", "Discard", type="button", data_act="discard", class_="grave"),
                    class_="buttons",
                ),
            ),
            id="letter",
        ),
        h(
            "dialog",
            h("p", id="question"),
            h(
                "div",
                h("button", "Discard for good", type="button", value="yes", class_="grave"),
                h("button", "Keep", type="button", value="no"),
                class_="buttons",
            ),
            id="sure",
            aria_labelledby="question",
        ),
        id="operations",
        hidden=True,
    )
