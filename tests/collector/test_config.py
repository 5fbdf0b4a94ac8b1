"""Configuration: who wins, what is refused, and how the refusal reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from collector.config import Address, Config, ConfigError
from collector.secret import Secret, SecretUnavailable
from collector.settings import Settings, embedded, load
from collector.units import format_duration, format_size, parse_duration, parse_size
from collector.values import show

MIB = 1024 * 1024


def settings(
    environ: Mapping[str, str] | None = None, toml: str | None = None, tmp_path: Path | None = None, **flags: Any
) -> Settings:
    file = None
    if toml is not None:
        assert tmp_path is not None
        file = tmp_path / "tillpost.toml"
        file.write_text(toml, "utf-8")
    given_flags = [(key.replace("__", "."), "--set", value) for key, value in flags.items()]
    return load(flags=given_flags, environ=environ or {}, file=file, default_file=None)


def refusal(environ: Mapping[str, str] | None = None, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(environ, **more).check()
    return str(caught.value)


def test_without_any_source_the_defaults_of_the_structs_hold() -> None:
    assert settings().config == Config()


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    toml = '[batch]\nlinger = "3s"\nmax_records = 30\nmax_bytes = 3000\n'
    found = settings(
        {"TILLPOST_BATCH__LINGER": "2s", "TILLPOST_BATCH__MAX_RECORDS": "20"}, toml, tmp_path, batch__linger="1500ms"
    )
    assert found.config.batch.linger == 1.5
    assert found.config.batch.max_records == 20
    assert found.config.batch.max_bytes == 3000
    assert found.config.delivery.pause_probe == 60.0
    assert found.source("batch.linger") == "--set"
    assert found.source("batch.max_records") == "TILLPOST_BATCH__MAX_RECORDS"
    assert found.source("batch.max_bytes") == str(tmp_path / "tillpost.toml")
    assert found.source("delivery.pause_probe") == "default"


def test_nested_sections_are_reached_from_every_source(tmp_path: Path) -> None:
    assert settings({"TILLPOST_BATCH__TRANSACTIONS__MAX_RECORDS": "7"}).config.batch.transactions.max_records == 7
    toml = "[batch.transactions]\nmax_records = 8\n"
    assert settings(toml=toml, tmp_path=tmp_path).config.batch.transactions.max_records == 8
    found = settings(batch__transactions__max_records="9", batch__events__max_bytes="1MB").config.batch
    assert (found.transactions.max_records, found.events.max_bytes) == (9, 1_000_000)


@pytest.mark.parametrize("text", ['{"push/viewed": "custom:push.view"}', '{"push/viewed" = "custom:push.view"}'])
def test_a_table_in_the_environment_is_json_or_toml(text: str) -> None:
    assert settings({"TILLPOST_UPSTREAM__TYPES": text}).config.upstream.types == {"push/viewed": "custom:push.view"}


def test_set_adds_single_entries_to_a_table(tmp_path: Path) -> None:
    toml = '[upstream.types]\n"push/viewed" = "custom:push.view"\n'
    (tmp_path / "t.toml").write_text(toml)
    found = load(
        flags=[("upstream.types.push/clicked", "--set", "custom:push.click")],
        environ={}, file=tmp_path / "t.toml",
    )  # fmt: skip
    assert found.config.upstream.types == {"push/viewed": "custom:push.view", "push/clicked": "custom:push.click"}


@pytest.mark.parametrize("text", ["127.0.0.1:1,unix:/run/t.sock", '["127.0.0.1:1", "unix:/run/t.sock"]'])
def test_a_list_in_the_environment_is_comma_separated_or_written_inline(text: str) -> None:
    assert settings({"TILLPOST_INGEST__LISTEN": text}).config.ingest.listen == ("127.0.0.1:1", "unix:/run/t.sock")


@pytest.mark.parametrize(("text", "meant"), [("yes", True), ("TRUE", True), ("1", True), ("off", False), ("0", False)])
def test_switches_take_the_usual_words(text: str, meant: bool) -> None:
    assert settings({"TILLPOST_SHUTDOWN__DRAIN": text}).config.shutdown.drain is meant


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("10s", 10), ("5m", 300), ("24h", 86_400), ("90d", 7_776_000), ("3", 3)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("8MiB", 8 * MIB), ("1MB", 1_000_000), ("512KiB", 524_288), ("1.5MiB", 1_572_864), ("17", 17), ("2gib", 2**31)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(st.integers(0, 2**50))
def test_a_size_shown_reads_back_as_itself(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 10**10))
@example(999_999_500)
def test_a_duration_shown_reads_back_as_itself(ms: int) -> None:
    assert parse_duration(format_duration(ms / 1000)) == pytest.approx(ms / 1000, rel=1e-9)


@pytest.mark.parametrize("text", ["", "fast", "-1s", "10 parsecs", "1e3", "٣s", "nan", "inf"])
def test_what_is_no_duration_is_refused_with_the_form(text: str) -> None:
    message = refusal({"TILLPOST_BATCH__LINGER": text})
    assert message.startswith("TILLPOST_BATCH__LINGER")
    assert '"250ms"' in message


# Who is named


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('[buffer]\npth = "x"\n', ["buffer.pth", "did you mean buffer.path?"]),
        ("[bufer]\nmax_size = 5\n", ["bufer.max_size", "did you mean buffer.max_size?"]),
        ("[batch.transaction]\nmax_records = 5\n", ["did you mean batch.transactions.max_records?"]),
        ("buffer = 3\n", ["buffer is a section"]),
        ("[batch]\nmax_records = true\n", ["batch.max_records", "a whole number, at least 1, at most 1000"]),
        ("[batch]\nmax_records = 1001\n", ["batch.max_records = 1001", "at most 1000"]),
        ('[buffer]\nmax_size = "2MiB"\n', ["buffer.max_size = '2MiB'", "at least 4MiB"]),
        ('[buffer]\nwhen_full = "block"\n', ["one of refuse, discard-oldest"]),
        ('[ingest]\nlisten = "127.0.0.1:1"\n', ["ingest.listen", "a list of texts"]),
        ("[batch]\nlinger = inf\n", ["batch.linger", "a duration"]),
        ("[batch\n", ["not valid TOML", "line 1"]),
    ],
)
def test_an_error_in_the_file_names_file_key_and_what_is_allowed(toml: str, words: list[str], tmp_path: Path) -> None:
    message = refusal(toml=toml, tmp_path=tmp_path)
    assert message.startswith(str(tmp_path / "tillpost.toml"))
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("TILLPOST_BUFFER__PTH", "did you mean TILLPOST_BUFFER__PATH?"),
        ("TILLPOST_BUFER__MAX_SIZE", "did you mean TILLPOST_BUFFER__MAX_SIZE?"),
        ("TILLPOST_BUFFER_PATH", "did you mean TILLPOST_BUFFER__PATH (two underscores)?"),
    ],
)
def test_an_unknown_variable_is_an_error_that_names_the_nearest(name: str, words: str) -> None:
    message = refusal({name: "x"})
    assert name in message
    assert words in message


def test_variables_of_the_tracker_and_of_kubernetes_are_none_of_our_business() -> None:
    others = {"TILLPOST_URL": "http://x", "TILLPOST_DISABLED": "1", "TILLPOST_PORT_8787_TCP_ADDR": "10.0.0.1"}
    assert settings(others).config == Config()


def test_an_unknown_key_behind_set_is_named_without_its_value() -> None:
    message = refusal(upstream__api_key="hush-hush")
    assert "did you mean upstream.api_key_file?" in message
    assert "hush" not in message


def test_an_empty_variable_clears_a_text_or_a_list_and_is_refused_elsewhere() -> None:
    assert settings({"TILLPOST_INGEST__LISTEN": ""}).config.ingest.listen == ()
    assert settings({"TILLPOST_UPSTREAM__CA_FILE": ""}).config.upstream.ca_file == ""
    assert refusal({"TILLPOST_BATCH__MAX_RECORDS": ""}).startswith("TILLPOST_BATCH__MAX_RECORDS is empty: unset it")
    assert "is empty" in refusal({"TILLPOST_BUFFER__WHEN_FULL": " "})
    assert "TILLPOST_UPSTREAM__URL" in refusal({"TILLPOST_UPSTREAM__URL": ""})


def test_a_named_file_must_be_there_and_the_default_file_need_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot read the configuration file"):
        load(environ={}, file=tmp_path / "none.toml")
    assert load(environ={}, default_file=tmp_path / "none.toml").config == Config()
    (tmp_path / "there.toml").write_text("[batch]\nmax_records = 5\n")
    assert load(environ={}, default_file=tmp_path / "there.toml").config.batch.max_records == 5


# Rules


@pytest.mark.parametrize(
    "url", ["api.synerise.com", "ftp://h", "http://", "https://h:99999", "https://h/?a=1", "https://h h"]
)
def test_an_upstream_that_is_no_base_url_is_refused(url: str) -> None:
    assert "must be" in refusal(upstream__url=url)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    message = refusal(upstream__url="https://me:hush@h/")
    assert "must not hold a name or password" in message
    assert "hush" not in message


def test_plain_http_goes_to_loopback_only_unless_allowed() -> None:
    key = {"TILLPOST_API_KEY": "k"}
    for url in ("http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "https://api.synerise.com"):
        settings(key, upstream__url=url).check()
    assert "upstream.allow_http" in refusal(key, upstream__url="http://192.0.2.1")
    settings(key, upstream__url="http://192.0.2.1", upstream__allow_http="true").check()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8787", Address("127.0.0.1", 8787)),
        ("[::1]:0", Address("::1", 0)),
        ("localhost:80", Address("localhost", 80)),
        ("unix:/run/t.sock", Address(path="/run/t.sock")),
        ("unix:///run/t.sock", Address(path="/run/t.sock")),
    ],
)
def test_listen_addresses(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert address.is_local
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("text", ["8787", "::1:8787", "127.0.0.1", "h:70000", "unix:", "http://h:1", "h:١"])
def test_what_is_no_listen_address_is_refused_with_the_forms(text: str) -> None:
    message = refusal(ingest__listen=[text])
    assert repr(text) in message
    assert "unix:/run/tillpost.sock" in message


@pytest.mark.parametrize("address", ["0.0.0.0:8787", "[::]:8787", "192.0.2.7:8787", "till.example:8787"])
def test_other_machines_are_listened_to_with_an_ingest_token_only(address: str) -> None:
    key = {"TILLPOST_API_KEY": "k"}
    message = refusal(key, ingest__listen=[address])
    assert address in message
    assert "TILLPOST_INGEST_TOKEN" in message
    settings({**key, "TILLPOST_INGEST_TOKEN": "t"}, ingest__listen=[address]).check()


@pytest.mark.parametrize("text", ["20", "0/400", "30/20", "20/400/1", "a/b", ""])
def test_a_wave_is_some_of_some(text: str) -> None:
    assert '"20/400"' in refusal(dead__wave=text)


def test_texts_with_a_form_are_parsed_by_the_struct() -> None:
    found = settings(dead__wave="3/40", dead__keep="90d", ingest__socket_mode="0660").config
    assert found.dead.wave_limit == (3, 40)
    assert found.dead.keep_s == 90 * 86_400
    assert Config().dead.keep_s is None
    assert found.ingest.socket_mode_bits == 0o660
    assert "octal" in refusal(ingest__socket_mode="rw")
    assert "90d" in refusal(dead__keep="soon")


def test_a_backoff_that_shrinks_is_refused() -> None:
    message = refusal({"TILLPOST_API_KEY": "k"}, delivery__backoff_base="10m")
    assert "delivery.backoff_max" in message


@pytest.mark.parametrize("types", ['{"Push Viewed" = "x"}', '{"push/viewed" = "custom:a b"}', '{"push/viewed" = 3}'])
def test_types_that_cannot_be_meant_are_refused(types: str) -> None:
    assert refusal({"TILLPOST_UPSTREAM__TYPES": types}).startswith("TILLPOST_UPSTREAM__TYPES")


# Secrets


def test_the_chosen_auth_needs_a_named_source() -> None:
    assert "TILLPOST_API_KEY_FILE or upstream.api_key_file" in refusal()
    assert "TILLPOST_UPSTREAM_TOKEN" in refusal(upstream__auth="token")
    assert "TILLPOST_API_KEY" in refusal(upstream__auth="basic")
    assert "upstream.workspace_guid" in refusal({"TILLPOST_API_KEY": "k"}, upstream__auth="basic")
    assert "TILLPOST_API_KEY" in refusal({"TILLPOST_API_KEY": ""})
    settings({"TILLPOST_UPSTREAM_TOKEN": "t"}, upstream__auth="token").check()


def test_a_named_secret_that_cannot_be_read_does_not_stop_the_start(tmp_path: Path) -> None:
    found = settings({"TILLPOST_API_KEY_FILE": str(tmp_path / "later")}).check()
    assert found.secrets.api_key is not None
    with pytest.raises(SecretUnavailable, match="No such file"):
        found.secrets.api_key()
    (tmp_path / "later").write_text("the-key\n")
    assert found.secrets.api_key() == "the-key"
    (tmp_path / "later").write_text("another\n")
    assert found.secrets.api_key() == "another"


def test_a_variable_wins_over_the_file_and_a_flag_over_both(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file")
    both = {"TILLPOST_API_KEY": "direct", "TILLPOST_API_KEY_FILE": str(tmp_path / "key")}
    assert (settings(both).secrets.api_key or str)() == "direct"
    assert (settings(both, upstream__api_key_file=str(tmp_path / "key")).secrets.api_key or str)() == "from-file"


def test_the_same_file_key_given_twice_and_differently_is_refused() -> None:
    message = refusal({"TILLPOST_API_KEY_FILE": "/a", "TILLPOST_UPSTREAM__API_KEY_FILE": "/b"})
    assert "TILLPOST_API_KEY_FILE" in message
    assert "TILLPOST_UPSTREAM__API_KEY_FILE" in message


@pytest.mark.parametrize("content", [b"", b" \n", b"one\ntwo", b"\xff\xfe", b"caf\xc3\xa9"])
def test_a_file_that_cannot_hold_a_secret_is_unavailable_and_not_quoted(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(SecretUnavailable) as caught:
        Secret("api_key", file=str(tmp_path / "key"), source="test")()
    assert "one" not in str(caught.value).replace("one line", "")
    assert str(tmp_path / "key") in str(caught.value)


def test_a_secret_never_shows_itself() -> None:
    found = settings({"TILLPOST_API_KEY": "hush-hush", "TILLPOST_INGEST_TOKEN": "hush-too"})
    assert "hush" not in repr(found)
    assert "hush" not in str(found.secrets.api_key)


# Embedded


def test_an_embedded_collector_listens_on_nothing_unless_told_to() -> None:
    assert embedded(environ={}).config.ingest.listen == ()
    told = embedded(config={"ingest": {"listen": ["127.0.0.1:0"]}}, environ={})
    assert told.config.ingest.listen == ("127.0.0.1:0",)


def test_arguments_win_over_the_mapping_and_the_mapping_over_the_environment(tmp_path: Path) -> None:
    found = embedded(
        buffer=tmp_path / "a.db",
        upstream="http://127.0.0.1:1",
        api_key="k",
        config={"buffer": {"path": "b.db", "max_size": "8MiB"}, "batch": {"linger": 0.1}},
        environ={"TILLPOST_BATCH__LINGER": "9s", "TILLPOST_API_KEY": "other"},
    ).check()
    assert found.config.buffer.path == str(tmp_path / "a.db")
    assert found.config.buffer.max_size == 8 * MIB
    assert found.config.batch.linger == 0.1
    assert found.config.upstream.url == "http://127.0.0.1:1"
    assert (found.secrets.api_key or str)() == "k"


def test_a_toml_path_serves_an_embedded_collector_too(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text('[batch]\nlinger = "5s"\n')
    assert embedded(config=tmp_path / "t.toml", environ={}).config.batch.linger == 5.0
    with pytest.raises(ConfigError, match=r"config: unknown key batch\.lingr; did you mean batch\.linger"):
        embedded(config={"batch": {"lingr": 1}}, environ={})


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("batch.linger", "1s"), ("batch.max_bytes", "1MB"), ("ingest.max_body", "8MiB"), ("shutdown.drain", "false"),
        ("ingest.listen", "127.0.0.1:8787"), ("batch.events.max_records", ""), ("delivery.retry_after_max", "1h"),
    ],
)  # fmt: skip
def test_values_are_shown_as_the_file_writes_them(key: str, shown: str) -> None:
    assert show(key, settings().values[key].value) == shown
