"""A client of the API that knows nothing of us: only its base URL changes.

The package runs unmodified in a process of its own and speaks to our process over a real socket.
"""

import asyncio
import json
import sys
from typing import Any

import pytest

from tests.collector.surface import serving

SCRIPT = """
import json, sys
from synerise_sdk import SyneriseClient
from synerise_sdk.dto.profile import ClientProfileEvent, Profile, ProfileEvent

call = json.load(sys.stdin)
client = SyneriseClient(call["url"], call["key"])
try:
    if call["do"] == "event":
        event = ProfileEvent(client=ClientProfileEvent(**call["client"]), **call["event"])
        result = client.add_profile_to_event(event.asdict())
    else:
        result = client.get_profile_create(Profile(email="anna@example.com").asdict())
except ConnectionError as error:
    result = ["ConnectionError", str(error)]
json.dump(result, sys.stdout)
"""


async def run(url: str, key: str = "any", **call: Any) -> list[Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", SCRIPT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(json.dumps({"url": url, "key": key} | call).encode()), 60)
    assert process.returncode == 0
    result: list[Any] = json.loads(output)
    return result


async def test_its_event_with_nulls_for_what_is_not_given_is_accepted() -> None:
    async with serving() as (_, memory, url):
        event = {"action": "form.submit", "label": "Form", "params": {"form": "newsletter"}}
        answer = await run(url, do="event", client={"email": "anna@example.com"}, event=event)
        assert answer == ["Profile successfully added to event form.submit", 202]
        [record] = memory.records
        assert {key: record[key] for key in ("type", "action", "label", "params", "client")} == {
            "type": "custom",
            "action": "form.submit",
            "label": "Form",
            "params": {"form": "newsletter"},
            "client": {"email": "anna@example.com"},
        }
        assert record["time"] == "2026-05-04T09:55:00.000Z" and record["eventSalt"]
        assert [str(parcel.lane) for parcel in memory.parcels] == ["events/email/live"]


async def test_what_it_gives_is_kept_and_what_it_lacks_altogether_is_refused() -> None:
    async with serving() as (_, memory, url):
        given = {"action": "a.b", "label": "x", "time": "2026-05-04T09:53:56+02:00", "eventSalt": "mine"}
        await run(url, do="event", client={"customId": "C-1", "uuid": None}, event=given)
        assert memory.records == [{"type": "custom", "client": {"customId": "C-1"}} | given]
        message, status = await run(url, do="event", client={"customId": "C-1"}, event={"action": "a.b"})
        assert (status, message) == (400, "Some fields did not pass validation")  # the label is required


async def test_its_profiles_get_our_501() -> None:
    async with serving() as (_, memory, url):
        assert await run(url, do="profile") == ["Not Implemented", 501]
        assert not memory.parcels


@pytest.mark.parametrize(("key", "status"), [("s3cret", 202), ("other", None)])
async def test_its_api_key_is_our_ingest_token(key: str, status: int | None) -> None:
    async with serving(token="s3cret") as (_, memory, url):
        event = {"action": "a.b", "label": "x"}
        first, second = await run(url, key, do="event", client={"customId": "C-1"}, event=event)
        if status is None:
            assert first == "ConnectionError" and "apiKey" in second and not memory.parcels
        else:
            assert second == status and len(memory.records) == 1
