"""Configurations that cannot be meant, or that no longer fit what is there (catalogue 60).

What a wrong file, variable or flag is told is in tests/collector/test_config.py; here the real command meets them.
"""

import json
import signal
from pathlib import Path

import pytest

from collector import Collector
from collector.testing import FakeUpstream
from tests.collector.test_cli_run import AWAY, EVENT, Sidecar, run, tillpost


@pytest.mark.parametrize(
    ("toml", "flags", "environ", "says"),
    [
        ("[buffer]\nmax_sise = 1", [], {}, "did you mean buffer.max_size?"),
        ('[batch]\nlinger = "5 parsecs"', [], {}, "linger"),
        ("[batch]\nlinger = -1", [], {}, "linger"),
        ('[buffer]\nmax_size = "1KiB"', [], {}, "at least 4MiB"),
        ("[batch", [], {}, "not valid TOML"),
        ("", ["--set", "shutdown.grace=soon"], {}, "shutdown.grace"),
        ("", ["--set", "batch.linger"], {}, "section.key=value"),
        ("", [], {"TILLPOST_BATCH__LINGER": ""}, "TILLPOST_BATCH__LINGER"),
        ("", [], {"TILLPOST_BUFFER__MAXSIZE": "8MiB"}, "did you mean TILLPOST_BUFFER__MAX_SIZE?"),
        ("", [], {"TILLPOST_API_KEY": ""}, "TILLPOST_API_KEY"),
        ("", ["--upstream", "file:///etc/passwd"], {}, "https://"),
        ("", ["--upstream", "http://169.254.169.254/latest/meta-data"], {}, "https"),
        ("", ["--upstream", "http://[fd00:ec2::254]/"], {}, "https"),
        ("", ["--upstream", "http://localhost.example.com/"], {}, "https"),
        ("", ["--upstream", "http://127.0.0.1@example.com/"], {}, "password"),
        ("", ["--upstream", "ftp://example.com"], {}, "https://"),
        ("", ["--upstream", "https://example.com/\r\nX: y"], {}, "must be a URL"),
        ("", ["--listen", "0.0.0.0:0"], {}, "token"),
        ("", ["--listen", "unix:"], {}, "unix:"),
        ("", ["--set", "ingest.socket_mode=9999"], {}, "socket_mode"),
        ("", ["--set", "upstream.api_key=secret-value"], {}, "upstream.api_key_file"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_exit_2_before_anything_is_opened(
    toml: str, flags: list[str], environ: dict[str, str], says: str, tmp_path: Path
) -> None:
    file = tmp_path / "t.toml"
    file.write_text(toml)
    result = tillpost("run", "--config", file, "--buffer", tmp_path / "sub" / "t.db", *flags, **environ)
    assert result.exit_code == 2, result.output
    told = result.output.strip().splitlines()
    assert len(told) == 1 and says in told[0], told
    assert "secret-value" not in result.output
    assert not (tmp_path / "sub").exists()


def test_odd_configurations_start_and_lose_nothing(tmp_path: Path) -> None:
    """A cap beyond the disk is warned of; no grace is a short stop; a file that turns bad counts at the next start."""
    file = tmp_path / "t.toml"
    file.write_text("[shutdown]\ngrace = '0s'\n[buffer]\nmax_size = '100000GiB'\n")
    sidecar = Sidecar(tmp_path / "t.db", *AWAY, "--config", str(file))
    try:
        assert "lower buffer.max_size" in sidecar.logged("buffer may outgrow the disk")["consequence"]
        sidecar.listen()
        file.write_text("[batch\n")
        sidecar.process.send_signal(signal.SIGHUP)  # reads credentials again, and nothing else
        sidecar.logged("credentials read again")
        assert sidecar.post(EVENT) == 202
    finally:
        assert sidecar.end() == 0
    again = run("--config", str(file), "--buffer", str(tmp_path / "t.db"))
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert tillpost("find", "--salt", "salt-1", "--buffer", tmp_path / "t.db").exit_code == 0


def body(name: str, count: int, pad: int) -> bytes:
    label = "x" * pad
    return json.dumps([{**EVENT, "eventSalt": f"{name}-{i}", "label": label} for i in range(count)]).encode()


def test_a_cap_lowered_below_the_backlog_starts_refuses_drains_and_accepts_again(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    settings = {"batch": {"linger": "0s"}, "shutdown": {"grace": "0s"}}
    lowered = {**settings, "buffer": {"max_size": "4MiB"}}
    with Collector(path, upstream="http://127.0.0.1:9", api_key="k", config=settings) as large:
        for i in range(10):
            assert large.receive("/v4/events/batch", body(f"b{i}", 900, 900), {}, 20)[0] == 202
    with FakeUpstream(api_key="k") as fake:
        fake.fault(503, times=None)
        with Collector(path, upstream=fake.url, api_key="k", config=lowered) as small:
            status, headers, _ = small.receive("/v4/events/batch", body("late", 1, 1), {}, 20)
            assert status == 507
            assert int(headers["Retry-After"]) >= 1
            fake.clear_faults()
            assert small.drain(60)
            assert fake.stored_count == 9000
            assert small.receive("/v4/events/batch", body("late", 1, 1), {}, 20)[0] == 202
            assert small.drain(20)
            assert small.status()["buffer"]["bytes"] < 4 * 1024 * 1024
        assert fake.violations == []


def test_an_export_writes_the_one_file_it_was_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in a record is ever part of a path."""
    evil = "../../../evil/\x00;rm -rf"
    sale = {
        "client": {"customId": "../../etc/passwd"}, "orderId": evil.replace("\x00", ""), "source": "POS",
        "recordedAt": "2026-05-04T09:53:56.999Z", "eventSalt": "../evil", "paymentInfo": {"method": "CASH"},
        "revenue": {"amount": 1, "currency": "PLN"}, "value": {"amount": 1, "currency": "PLN"},
        "products": [{"sku": "a", "name": "b", "quantity": 1, "finalUnitPrice": {"amount": 1, "currency": "PLN"}}],
    }  # fmt: skip
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    with FakeUpstream(api_key="k") as fake:
        fake.fault("reject", salt="../evil")
        with Collector(home / "t.db", upstream=fake.url, api_key="k", config={"batch": {"linger": "0s"}}) as collector:
            assert collector.receive("/v4/transactions/batch", json.dumps([sale]).encode(), {}, 20)[0] == 202
            assert collector.drain(20)
            before = everything(tmp_path)
            assert tillpost("dead", "export", "out.jsonl", "--buffer", home / "t.db").exit_code == 0
            assert everything(tmp_path) - before == {home / "out.jsonl"}
    assert json.loads((home / "out.jsonl").read_text()) == sale
    assert (home / "out.jsonl").stat().st_mode & 0o777 == 0o600


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))
