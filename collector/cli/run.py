"""``run``: the sidecar."""

import contextlib
import gc
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from collector.cli.completion import keys_known
from collector.config import ConfigError
from collector.files import BufferUnusable, FileLock
from collector.notify import Supervisor
from collector.place import concern, file_system, free_bytes
from collector.settings import Settings, load

if TYPE_CHECKING:
    from collector.app import Collector

F = TypeVar("F", bound=Callable[..., Any])

_CHECK_S: Final = 1.0
_SLACK_S: Final = 5.0
"""Beyond the grace, for closing the buffer."""


def configuration_options(command: F) -> F:
    """The flags that set configuration."""
    for option in (
        click.option("--set", "assigned", multiple=True, metavar="SECTION.KEY=VALUE", shell_complete=keys_known,
                     help="Set any key; repeatable."),
        click.option("--upstream", metavar="URL", help="Where batches go."),
        click.option("--listen", multiple=True, metavar="ADDR", help="127.0.0.1:8787 or unix:/path; repeatable."),
        click.option("--buffer", metavar="PATH", help="The buffer file."),
        click.option("--config", "config_file", metavar="FILE",
                     help="A TOML file; default: /etc/tillpost/tillpost.toml if it is there."),
    ):  # fmt: skip
        command = option(command)
    return command


def load_settings(
    config_file: str | None, buffer: str | None, listen: tuple[str, ...], upstream: str | None,
    assigned: tuple[str, ...],
) -> Settings:  # fmt: skip
    """The settings these flags ask for. Raises ConfigError."""
    flags: list[tuple[str, str, Any]] = []
    for text in assigned:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {key}: write section.key=value, for example --set batch.linger=2s")
        flags.append((key.strip(), "--set", value))
    if buffer is not None:
        flags.append(("buffer.path", "--buffer", buffer))
    if listen:
        flags.append(("ingest.listen", "--listen", list(listen)))
    if upstream is not None:
        flags.append(("upstream.url", "--upstream", upstream))
    return load(flags=flags, file=config_file)


@click.command()
@configuration_options
def run(
    config_file: str | None, buffer: str | None, listen: tuple[str, ...], upstream: str | None,
    assigned: tuple[str, ...],
) -> int:  # fmt: skip
    """Run the collector until SIGTERM or SIGINT.

    A second signal stops it at once. SIGHUP reads credential files again. Secrets come from files or the environment
    (TILLPOST_API_KEY, TILLPOST_API_KEY_FILE), never from flags.
    """
    settings = load_settings(config_file, buffer, listen, upstream, assigned).check()
    FileLock.probe(Path(settings.config.buffer.path).absolute())  # before half a second of imports
    from collector import logs  # structlog's import costs more than all the rest of a command

    _dump_no_core()
    logs.configure(settings.config.log.level, settings.config.log.format)
    log = logs.logger("run")
    path = Path(settings.config.buffer.path).absolute()
    if (feared := concern(file_system(path))) is not None:
        log.warning("buffer on a file system that may fail it", path=str(path), why=feared[0], advice=feared[1])
    if (free := free_bytes(path)) < settings.config.buffer.max_size:
        log.warning("buffer may outgrow the disk", max_size=settings.config.buffer.max_size, free=free,
                    consequence="the disk is full before the buffer is: lower buffer.max_size")  # fmt: skip
    supervisor = Supervisor()
    with _signals() as signals, started(settings) as collector:
        for url in collector.urls:
            log.info("listening", url=url)
        gc.freeze()  # modules are never garbage, and looking through them again and again held up requests for 25 ms
        supervisor.ready(" ".join(["listening on", *collector.urls]))
        return _serve(collector, signals, log, settings.config.shutdown.grace, supervisor)


@contextlib.contextmanager
def started(settings: Settings) -> Iterator["Collector"]:
    """A collector that runs inside the block and is closed after it."""
    from collector.app import Collector  # aiohttp is not needed to print help

    collector = Collector.of(settings)
    collector.start()
    try:
        yield collector
    finally:
        collector.close()


def _serve(
    collector: "Collector", signals: "queue.SimpleQueue[int]", log: Any, grace_s: float, supervisor: Supervisor
) -> int:
    """Returns when it is time to stop. Raises what the collector failed of. Either way the process ends soon."""
    pause = min(_CHECK_S, (supervisor.watchdog_s or _CHECK_S * 3) / 3)
    while True:
        try:
            number = signals.get(timeout=pause)
        except queue.Empty:
            failure = collector.failure
            if failure is None:
                if supervisor.watchdog_s is not None and collector.moves(pause):
                    supervisor.alive()
                continue
            supervisor.stopping()
            unusable = isinstance(failure, BufferUnusable)
            _end_within(grace_s + _SLACK_S, 4 if unusable else 1, log)
            raise failure if unusable else click.ClickException(str(failure)) from None
        if number == getattr(signal, "SIGHUP", None):
            supervisor.reloading()
            collector.reload()
            supervisor.ready()
            log.info("credentials read again")
            continue
        supervisor.stopping()
        log.info("stopping", signal=signal.Signals(number).name)
        for again in (signal.SIGTERM, signal.SIGINT):
            # What was acknowledged is on the disk, so an end without goodbye is as good as a power cut.
            signal.signal(again, lambda *_: os._exit(0))
        _end_within(grace_s + _SLACK_S, 0, log)
        return 0


def _end_within(seconds: float, code: int, log: Any) -> None:
    """End the process by then, whatever hangs: a disk that answers no more keeps threads from ending."""

    def end() -> None:
        log.critical("gave up stopping", seconds=seconds)
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _dump_no_core() -> None:
    """A core file would hold keys and records."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


@contextlib.contextmanager
def _signals() -> Iterator["queue.SimpleQueue[int]"]:
    """The numbers of arriving signals; SimpleQueue.put may be called in a signal handler."""
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
    wanted = [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, lambda n, _: arrived.put(n)) for number in wanted}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
