"""``tillpost doctor``: what it finds, what it says to do, and that it changes nothing."""

import hashlib
import json
import os
import re
import socket
import sqlite3
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector import Collector
from collector import examine as examine_module
from collector.doctor import sqlite_finding
from collector.examine import examine
from collector.files import beside
from collector.place import concern
from collector.testing import FakeUpstream
from tests.collector.test_cli_run import KEY, tillpost
from tests.end_to_end.clients import event, post

TLS = Path(__file__).parent / "tls"
QUICK: dict[str, Any] = {"ingest": {"listen": ["127.0.0.1:0"]}, "shutdown": {"grace": "0s"}}


def doctor(*args: str | Path, code: int = 0, **more: str) -> dict[str, dict[str, str]]:
    """What each check found, by its name, after seeing that the command ended with `code`."""
    done = tillpost("doctor", "--json", *args, **more)
    assert done.exit_code == code, done.output
    answer = json.loads(done.stdout)
    assert answer["ok"] == (code == 0)
    return {check["name"]: check for check in answer["checks"]}


def failed(found: dict[str, dict[str, str]]) -> list[str]:
    return [name for name, check in found.items() if check["status"] == "failed"]


def bytes_of(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files_of(folder).items()}


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream(api_key=KEY) as served:
        yield served
        assert served.violations == []
        assert served.stored == []


# The whole of it


def test_when_all_is_well_every_check_has_a_line_and_nothing_is_sent_or_made(
    fake: FakeUpstream, tmp_path: Path
) -> None:
    done = tillpost("doctor", "--buffer", tmp_path / "t.db", "--upstream", fake.url)
    assert done.exit_code == 0, done.output
    names = [line.partition(" ")[2].partition(":")[0] for line in done.stdout.splitlines()]
    assert names == ["configuration", "secrets", "files", "disk", "sqlite", "buffer", "dns", "tls", "clock", "login",
                     "permissions"]  # fmt: skip
    assert all(line.startswith(("[+] ", "[!] ")) for line in done.stdout.splitlines())
    assert KEY not in done.output
    assert list(tmp_path.iterdir()) == []
    page = (Path(__file__).parents[2] / "docs/operations/doctor.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == names


def test_offline_it_asks_nobody(tmp_path: Path) -> None:
    found = doctor("--offline", "--buffer", tmp_path / "t.db", "--upstream", "https://nowhere.invalid")
    assert "dns" not in found
    assert "buffer" in found


def test_a_wrong_configuration_ends_with_2_and_says_what_is_wrong(tmp_path: Path) -> None:
    found = doctor("--set", "batch.lingr=1s", code=2)
    assert list(found) == ["configuration"]
    assert "did you mean batch.linger?" in found["configuration"]["text"]
    found = doctor("--offline", "--buffer", tmp_path / "t.db", code=2, TILLPOST_API_KEY="")
    assert "TILLPOST_API_KEY" in found["configuration"]["text"]
    assert found["disk"]["status"] != "failed"  # the rest is looked at all the same


# The upstream


def test_a_permission_that_is_missing_is_named(tmp_path: Path) -> None:
    with FakeUpstream(api_key=KEY, permissions={"API_BATCH_EVENTS_CREATE"}) as fake:
        found = doctor("--buffer", tmp_path / "t.db", "--upstream", fake.url, code=1)
    assert failed(found) == ["permissions"]
    assert "API_BATCH_TRANSACTION_CREATE" in found["permissions"]["text"]
    assert "API_BATCH_EVENTS_CREATE" not in found["permissions"]["text"]
    assert "transactions wait on the disk" in found["permissions"]["advice"]


def test_a_wrong_key_fails_the_login_and_is_not_shown(fake: FakeUpstream, tmp_path: Path) -> None:
    found = doctor("--buffer", tmp_path / "t.db", "--upstream", fake.url, code=1, TILLPOST_API_KEY="wrong-secret")
    assert failed(found) == ["login"]
    assert "wrong-secret" not in json.dumps(found)
    assert "permissions" not in found


def test_basic_cannot_be_asked_for_its_permissions(fake: FakeUpstream, tmp_path: Path) -> None:
    found = doctor("--buffer", tmp_path / "t.db", "--upstream", fake.url, "--set", "upstream.auth=basic",
                   "--set", "upstream.workspace_guid=g")  # fmt: skip
    assert (found["login"]["status"], found["permissions"]["status"]) == ("skipped", "skipped")


def test_a_clock_that_is_wrong_is_told_by_how_much(tmp_path: Path) -> None:
    with FakeUpstream(api_key=KEY, clock_offset_s=3600.0) as fake:
        found = doctor("--buffer", tmp_path / "t.db", "--upstream", fake.url)
    assert found["clock"]["status"] == "warning"
    assert "+3600." in found["clock"]["text"] or "+3599." in found["clock"]["text"]
    assert "NTP" in found["clock"]["advice"]


def test_a_name_that_nobody_knows_and_a_port_nobody_listens_on_are_told_apart(tmp_path: Path) -> None:
    found = doctor("--buffer", tmp_path / "t.db", "--upstream", "https://tillpost.invalid", code=1)
    assert failed(found) == ["dns"]
    found = doctor("--buffer", tmp_path / "t.db", "--upstream", "http://127.0.0.1:9", code=1)
    assert failed(found) == ["tls"]
    assert "refused" in found["tls"]["text"]


def test_a_certificate_we_do_not_trust_is_told_in_words(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "good.pem", TLS / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for _ in range(2):
                connection, _ = listening.accept()
                try:
                    with context.wrap_socket(connection, server_side=True) as secure:
                        secure.recv(1)
                except OSError:
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        there = (
            "--buffer",
            tmp_path / "t.db",
            "--upstream",
            f"https://localhost:{port}",
            "--set",
            "upstream.timeout=300ms",
        )
        found = doctor(*there, code=1)
        assert failed(found) == ["tls"]
        assert "not signed by an authority we trust" in found["tls"]["text"]
        found = doctor(*there, "--set", f"upstream.ca_file={TLS / 'authority.pem'}", code=1)
        assert found["tls"]["status"] in ("ok", "warning"), found["tls"]
        assert "certificate valid until" in found["tls"]["text"]
        thread.join(10)


def test_a_till_is_told_whether_the_head_office_takes_its_token(fake: FakeUpstream, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("till-token\n")
    (tmp_path / "token").chmod(0o600)
    head_office = {**QUICK, "ingest": {"listen": ["127.0.0.1:0"], "token_file": str(tmp_path / "token")}}
    with Collector(tmp_path / "head.db", upstream=fake.url, api_key=KEY, config=head_office) as head:
        assert wait_until_it_tells_the_time(head)
        there = ("--buffer", tmp_path / "till.db", "--upstream", head.urls[0], "--set", "upstream.auth=token")
        found = doctor(*there, TILLPOST_UPSTREAM_TOKEN="till-token")
        assert found["login"]["status"] == "ok"
        assert "where the workspace key is" in found["permissions"]["text"]
        found = doctor(*there, TILLPOST_UPSTREAM_TOKEN="another", code=1)
        assert failed(found) == ["login"]
        assert "401" in found["login"]["text"]


def wait_until_it_tells_the_time(collector: Collector) -> bool:
    from collector.demo.processes import wait_for

    return wait_for("the time", lambda: collector.status()["clock"]["synchronised"], 10)


# This machine


def test_files_and_secrets_that_others_may_read_are_named_with_the_command_that_helps(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("k")
    key.chmod(0o644)
    (tmp_path / "t.db").touch(0o644)
    (tmp_path / "t.db").chmod(0o644)
    found = doctor("--offline", "--buffer", tmp_path / "t.db", "--set", f"upstream.api_key_file={key}")
    assert found["secrets"]["advice"] == f"chmod 600 {key}"
    assert found["files"]["advice"] == f"chmod 600 {tmp_path / 't.db'}"
    key.unlink()
    found = doctor("--offline", "--buffer", tmp_path / "t.db", "--set", f"upstream.api_key_file={key}", code=1)
    assert failed(found) == ["secrets"]


def test_a_folder_that_cannot_be_written_to_ends_with_4(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = doctor("--offline", "--buffer", tmp_path / "file" / "t.db", code=4)
    assert "files" in failed(found)


def test_a_disk_smaller_than_the_cap_and_one_that_passes_are_warned_of(tmp_path: Path) -> None:
    found = doctor("--offline", "--buffer", tmp_path / "t.db", "--set", "buffer.max_size=900000GiB")
    assert found["disk"]["status"] == "warning"
    assert "lower buffer.max_size" in found["disk"]["advice"]
    if os.path.isdir("/dev/shm"):
        found = doctor("--offline", "--buffer", f"/dev/shm/{os.getpid()}/t.db")
        assert "tmpfs" in found["disk"]["text"]


@pytest.mark.parametrize(
    ("version", "status", "words"),
    [((3, 34, 1), "failed", "too old"), ((3, 40, 1), "ok", "can lose commits"), ((3, 50, 6), "ok", "can lose commits"),
     ((3, 50, 7), "ok", "3.50.7"), ((3, 44, 6), "ok", "3.44.6"), ((3, 51, 2), "ok", "can lose commits"),
     ((3, 51, 3), "ok", "3.51.3"), ((3, 52, 0), "ok", "3.52.0")],
)  # fmt: skip
def test_known_bugs_of_sqlite_are_known_by_version(version: tuple[int, int, int], status: str, words: str) -> None:
    found = sqlite_finding(version)
    assert found.status == status
    assert words in found.text
    assert ("let nothing else open" in found.advice) == (words == "can lose commits")


# The buffer


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a buffer with 300 records whose process was killed: most of it stands in the log."""
    folder = tmp_path_factory.mktemp("filled")
    with Collector(folder / "t.db", upstream="http://127.0.0.1:9", api_key="k", config=QUICK) as collector:
        address = collector.urls[0].removeprefix("http://")
        for n in range(30):
            assert post(address, "/v4/events/batch", [event(f"s-{n}-{i}", i % 3) for i in range(10)])[0] == 202
        return files_of(folder)


def put(files: dict[str, bytes], folder: Path, **changed: bytes | None) -> Path:
    """The files in a folder, some of them changed or (None) left out: by suffix, with _ for . and -."""
    for name, content in files.items():
        suffix = name.removeprefix("t.db").replace(".", "_").replace("-", "_").lstrip("_") or "db"
        content = changed.get(suffix, content)
        if content is not None and suffix != "lock":
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)
    return folder / "t.db"


def test_a_sound_file_is_examined_whole_with_its_log_and_without_changing_a_byte(
    filled: dict[str, bytes], tmp_path: Path
) -> None:
    path = put(filled, tmp_path)
    before = bytes_of(tmp_path)
    found = examine(path)
    assert (found.verdict, found.text) == ("sound", f"{path} is sound: 300 pending, 0 dead")
    assert bytes_of(tmp_path) == before


def flipped(content: bytes, at: int, mask: int = 0x55) -> bytes:
    return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("commits behind", lambda f: {"wal": f["t.db-wal"][: f["t.db-wal"].find(b"s-25-3")]}),
        ("commits behind", lambda f: {"wal": flipped(f["t.db-wal"], f["t.db-wal"].find(b"s-25-3"))}),
        ("belongs to another database", lambda f: {"wal": flipped(f["t.db-wal"], 16)}),
        ("its header is damaged", lambda f: {"db": flipped(f["t.db"], 3)}),
        ("not in it", lambda f: {"wal": None}),
        ("gone or empty", lambda f: {"db": b"", "wal": None}),
    ],
)
def test_damage_is_found_and_said_and_nothing_is_moved(
    filled: dict[str, bytes], tmp_path: Path, words: str, change: Any
) -> None:
    path = put(filled, tmp_path, **change(filled))
    before = bytes_of(tmp_path)
    found = doctor("--offline", "--buffer", path, code=1)
    assert failed(found) == ["buffer"]
    assert words in found["buffer"]["text"]
    assert "t.db.quarantine/" in found["buffer"]["advice"]
    assert bytes_of(tmp_path) == before


def test_a_single_byte_of_a_stored_record_is_noticed(filled: dict[str, bytes], tmp_path: Path) -> None:
    """Without a log SQLite has no checksum: only ours tells."""
    path = put(filled, tmp_path)
    with sqlite3.connect(path) as conn:  # SQLite lays the log over and takes it away
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    conn.close()
    beside(path, ".mark").unlink()
    assert examine(path).verdict == "sound"
    content = path.read_bytes()
    path.write_bytes(flipped(content, content.rfind(b"s-3-")))
    found = examine(path)
    assert found.verdict == "damaged"
    assert "fail their checksum" in found.text


def test_what_is_not_ours_ends_with_4_and_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    path.write_text("dear diary, " * 100)
    path.chmod(0o600)
    assert "it is not a database" in doctor("--offline", "--buffer", path, code=4)["buffer"]["text"]
    path.unlink()
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE shopping (item)")
    conn.close()
    path.chmod(0o600)
    before = bytes_of(tmp_path)
    assert "another application" in doctor("--offline", "--buffer", path, code=4)["buffer"]["text"]
    assert bytes_of(tmp_path) == before


def test_a_newer_releases_file_is_named_as_such(filled: dict[str, bytes], tmp_path: Path) -> None:
    path = put(filled, tmp_path)
    with sqlite3.connect(path) as conn:
        conn.execute("PRAGMA user_version = 99")
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    conn.close()
    beside(path, ".mark").unlink()
    assert "a newer Tillpost wrote it (schema 99" in doctor("--offline", "--buffer", path, code=4)["buffer"]["text"]


def test_a_file_larger_than_memory_is_not_examined_but_said_so(
    filled: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.examine._memory_available", lambda: 1024)
    found = doctor("--offline", "--buffer", put(filled, tmp_path))
    assert found["buffer"]["status"] == "warning"
    assert "of memory" in found["buffer"]["text"]


def test_a_running_collector_is_examined_under_load_and_never_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log begins anew again and again meanwhile: the buffer is small, and what comes in leaves at once."""
    stop = threading.Event()
    config = {**QUICK, "buffer": {"max_size": "4MiB"}, "batch": {"linger": "1ms"}}
    with (
        FakeUpstream(api_key=KEY) as fake,
        Collector(tmp_path / "t.db", upstream=fake.url, api_key=KEY, config=config) as collector,
    ):
        address = collector.urls[0].removeprefix("http://")

        def load() -> None:
            n = 0
            while not stop.is_set():
                records = [event(f"{n}-{i}", note="x" * 400) for i in range(60)]
                assert post(address, "/v4/events/batch", records)[0] in (202, 507)
                n += 1

        early = files_of(tmp_path)
        thread = threading.Thread(target=load)
        thread.start()
        salts, seen = set(), []
        try:
            while len(seen) < 30 or (len(salts) < 3 and len(seen) < 300):
                salts.add(beside(tmp_path / "t.db", "-wal").read_bytes()[16:20])
                seen.append(examine(tmp_path / "t.db"))
        finally:
            stop.set()
            thread.join(30)
        found = doctor("--offline", "--buffer", tmp_path / "t.db")
        assert f"process {os.getpid()} runs on it" in found["buffer"]["text"]
        assert collector.drain(10)
        late = files_of(tmp_path)
    assert {one.verdict for one in seen} <= {"sound", "unexamined"}, seen
    # it changed under our eyes, and so did its log
    assert len({one.text for one in seen if one.verdict == "sound"}) > 1, seen
    assert len(salts) > 2

    # and at the worst moment: the log began anew between our reading the database and the log
    (tmp_path / "worst").mkdir()
    path = put(early, tmp_path / "worst")
    read, moved_on = examine_module._bytes_of, threading.Event()

    def later(file: Path, size: int = -1) -> bytes:
        if size < 0 and file.name.endswith("-wal") and not moved_on.is_set():
            moved_on.set()
            put(late, path.parent)
        return read(file, size)

    monkeypatch.setattr(examine_module, "_bytes_of", later)
    assert examine(path).verdict == "sound"
    assert moved_on.is_set()


@pytest.mark.parametrize(
    ("kind", "feared"),
    [("tmpfs", "restart"), ("overlay", "container"), ("nfs4", "another machine"), ("cifs", "another machine"),
     ("btrfs", "copies on write"), ("ext4", None), ("xfs", None), ("", None)],
)  # fmt: skip
def test_a_file_system_that_may_fail_a_buffer_is_named_with_what_to_do(kind: str, feared: str | None) -> None:
    found = concern(kind)
    assert (found is None) == (feared is None)
    assert found is None or (feared in found[0] and found[1])
