"""A session for each library: opened with its own defaults plus a setting, called as its documentation says.

Queues are made large enough for a whole measurement, because what a full queue drops costs nothing.
The imports are inside, so that a library that is not installed is missed only by its own session.
"""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from benchmarks.peers import events

ROOM: Final = 100_000


class Session(Protocol):
    """A library in use, in a process of its own."""

    signals: Counter[str]
    """How, and for how many events, the library told its caller of a loss."""

    def track(self, number: int) -> object: ...

    def bad(self, number: int) -> object:
        """Tracks an event with a NaN in it."""
        ...

    def basket(self, basket: dict[str, Any]) -> object: ...

    def flush(self) -> object:
        """Waits, as far as the library offers it, until everything tracked has been sent."""
        ...

    def confirmed(self) -> int:
        """How many events the library says it will not lose any more."""
        ...


class Library:
    """A library that takes a name and a dict."""

    send: Callable[[str, str, dict[str, Any]], object]

    def __init__(self) -> None:
        self.signals: Counter[str] = Counter()

    def track(self, number: int) -> object:
        return self.send(events.user(number), events.NAME, events.properties(number))

    def bad(self, number: int) -> object:
        return self.send(events.user(number), events.NAME, events.bad_properties(number))

    def basket(self, basket: dict[str, Any]) -> object:
        return self.send(basket["client"]["customId"], events.BASKET, basket)

    def confirmed(self) -> int:
        return 0  # some call back once an event is delivered; none before

    def on_error(self, _: object, batch: list[Any]) -> None:
        self.signals["callback"] += len(batch)


class Segment(Library):
    def __init__(self, url: str, _folder: Path, **setting: Any) -> None:
        from segment.analytics.client import Client

        super().__init__()
        client = Client("key", host=url, max_queue_size=ROOM, on_error=self.on_error, **setting)
        self.send, self.flush = client.track, client.flush


class Rudder(Library):
    def __init__(self, url: str, _folder: Path, **setting: Any) -> None:
        from rudderstack.analytics.client import Client

        super().__init__()
        client = Client("key", host=url, max_queue_size=ROOM, on_error=self.on_error, **setting)
        self.send, self.flush = client.track, client.flush


class Posthog(Library):
    def __init__(self, url: str, _folder: Path, **setting: Any) -> None:
        from posthog import Posthog

        super().__init__()
        client = Posthog("key", host=url, max_queue_size=ROOM, on_error=self.on_error, **setting)
        self.capture, self.flush = client.capture, lambda: client.flush(timeout_seconds=60)

    def send(self, user: str, name: str, properties: dict[str, Any]) -> object:
        return self.capture(name, distinct_id=user, properties=properties)


class Snowplow(Library):
    """The user is a key of the data: a `Subject` of its own for each event would cost more."""

    def __init__(self, url: str, _folder: Path, encode_base64: bool = True, quiet: bool = False,
                 keep_alive: bool = False, **setting: Any) -> None:  # fmt: skip
        import requests
        from snowplow_tracker.emitters import AsyncEmitter, logger
        from snowplow_tracker.events.self_describing import SelfDescribing
        from snowplow_tracker.self_describing_json import SelfDescribingJson
        from snowplow_tracker.tracker import Tracker

        super().__init__()
        if quiet:
            logger.setLevel(logging.WARNING)
        host, _, port = url.removeprefix("http://").partition(":")
        emitter = AsyncEmitter(host, port=int(port), buffer_capacity=ROOM, on_failure=self.on_failure,
                               session=requests.Session() if keep_alive else None, **setting)  # fmt: skip
        tracker = Tracker("bench", emitter, encode_base64=encode_base64)
        self.tracker, self.event, self.json = tracker.track, SelfDescribing, SelfDescribingJson
        self.flush = emitter.sync_flush

    def send(self, user: str, name: str, properties: dict[str, Any]) -> object:
        properties["userId"] = user
        return self.tracker(self.event(self.json(f"iglu:bench/{name}/jsonschema/1-0-0", properties)))

    def on_failure(self, _sent: int, unsent: list[Any]) -> None:
        self.signals["callback"] += len(unsent)


class Mixpanel(Library):
    """Sends inside the call: every 50th waits for the answer."""

    def __init__(self, url: str, _folder: Path, **setting: Any) -> None:
        from mixpanel import BufferedConsumer, Mixpanel

        super().__init__()
        consumer = BufferedConsumer(events_url=url + "/track", **setting)
        self.send, self.flush = Mixpanel("token", consumer).track, consumer.flush


class Amplitude(Library):
    def __init__(self, url: str, _folder: Path, quiet: bool = False, **setting: Any) -> None:
        from amplitude import Amplitude, BaseEvent, Config
        from amplitude.constants import EventLogLevel

        super().__init__()
        if quiet:
            setting["event_log_level"] = EventLogLevel.NONE
        self.event = BaseEvent
        self.client = Amplitude("key", Config(server_url=url + "/2/httpapi", callback=self.on_event, **setting))

    def send(self, user: str, name: str, properties: dict[str, Any]) -> object:
        return self.client.track(self.event(name, user_id=user, event_properties=properties))

    def on_event(self, _event: object, code: int, _message: str | None) -> None:
        if code != 200:
            self.signals["callback"] += 1

    def flush(self) -> None:
        for sending in self.client.flush():
            if sending is not None:
                sending.result()


class Logstash(Library):
    """A handler for the logging module, with an SQLite file between it and the network."""

    def __init__(self, url: str, folder: Path, batch: int | None = None, http: bool = False) -> None:
        from logstash_async.constants import constants
        from logstash_async.handler import AsynchronousLogstashHandler

        super().__init__()
        if batch is not None:
            constants.QUEUED_EVENTS_FLUSH_COUNT = constants.QUEUED_EVENTS_BATCH_SIZE = batch
        host, _, port = url.removeprefix("http://").partition(":")
        transport = {"transport": "logstash_async.transport.HttpTransport"} if http else {}
        self.handler = AsynchronousLogstashHandler(host, int(port), str(folder / "logstash.db"), **transport)
        self.log = logging.getLogger("shop")
        self.log.setLevel(logging.INFO)
        self.log.propagate = False
        self.log.addHandler(self.handler)

    def send(self, user: str, name: str, properties: dict[str, Any]) -> None:
        self.log.info(name, extra={"user_id": user, "properties": properties})

    def flush(self) -> None:
        self.handler.flush()  # a request: its thread looks every two seconds
