"""What docs/deploy/ offers is what `tillpost` understands: run where that can be done here, else compared."""

import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from collector.config import Address
from collector.settings import Settings, load, variable
from collector.units import parse_duration, parse_size
from tests.collector.test_cli_run import AWAY, tillpost
from tests.collector.test_notify import Manager
from tests.faults import needs

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs/deploy"
PROGRAM = "/opt/tillpost/bin/tillpost"
OURS = f"{sys.executable} -m collector"
CLOSING_S = 5.0
"""Beyond ``shutdown.grace``, as `run` takes it."""
MAX_EXPOSURE = 15
"""Of 100, as ``systemd-analyze security --threshold`` counts; a unit without any of it has 96."""

Unit = dict[str, list[str]]


def unit(*names: str) -> Unit:
    """The values of each key, a drop-in after what it changes; an empty value forgets those before it."""
    found: Unit = {}
    for name in names:
        for line in (DEPLOY / "systemd" / name).read_text().splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                found[key] = [*found.get(key, []), value] if value else []
    return found


def toml(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text())


def credentials(settings: Settings) -> set[str]:
    """The files of the secrets that a configuration names."""
    secrets = (getattr(settings.secrets, name) for name in type(settings.secrets).__struct_fields__)
    return {secret.file for secret in secrets if secret is not None and secret.file}


MACHINES = {
    "backend.toml": ["tillpost.service"],
    "till.toml": ["tillpost.service", "till.conf"],
}


# systemd


@pytest.mark.parametrize("name", MACHINES)
def test_a_configuration_and_its_unit_agree(name: str) -> None:
    found, settings = unit(*MACHINES[name]), load(file=DEPLOY / name, environ={}).check()
    command = shlex.split(found["ExecStart"][0])
    assert command == [PROGRAM, "run", "--config", "/etc/tillpost/tillpost.toml"]
    loaded = {f"/run/credentials/tillpost.service/{value.partition(':')[0]}" for value in found["LoadCredential"]}
    assert loaded == credentials(settings)
    config = settings.config
    assert Path(config.buffer.path).parent == Path("/var/lib", *found["StateDirectory"])
    sockets = [Path(address.path) for address in config.ingest.addresses if address.path]
    assert all(socket.parent == Path("/run", *found["RuntimeDirectory"]) for socket in sockets)
    assert found["Type"] == ["notify"]
    assert float(found["TimeoutStopSec"][0]) > config.shutdown.grace + CLOSING_S
    assert float(found["WatchdogSec"][0]) >= 10  # a slow disk is no hang
    assert found["User"] not in (["root"], [])


@pytest.mark.parametrize("name", MACHINES)
def test_config_accepts_it_and_names_it_as_the_source(name: str) -> None:
    done = tillpost("config", "--config", DEPLOY / name, "--json", TILLPOST_API_KEY="")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["problem"] is None
    assert said["values"]["buffer.path"]["source"] == str(DEPLOY / name)


@contextmanager
def process(command: list[str], environ: Mapping[str, str], manager: Manager) -> "Iterator[subprocess.Popen[bytes]]":
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TILLPOST_")}
    told = {"NOTIFY_SOCKET": manager.address, "TILLPOST_UPSTREAM__URL": AWAY[1], "TILLPOST_SHUTDOWN__GRACE": "0s"}
    running = subprocess.Popen(command, env={**clean, **told, **environ}, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        yield running
    finally:
        running.kill()
        running.wait(10)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


def test_the_units_commands_start_reload_and_stop_a_collector(manager: Manager, tmp_path: Path) -> None:
    found = unit("tillpost.service")
    for folder in ("run/tillpost", "run/credentials/tillpost.service", "var/lib/tillpost", "etc/tillpost"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "run/credentials/tillpost.service/api-key").write_text("a-key\n")
    there = (DEPLOY / "backend.toml").read_text().replace("127.0.0.1:8787", "127.0.0.1:0")
    (tmp_path / "etc/tillpost/tillpost.toml").write_text(re.sub(r"/(run|var)/", rf"{tmp_path}/\1/", there))
    start = found["ExecStart"][0].replace(PROGRAM, OURS).replace("/etc/", f"{tmp_path}/etc/")
    watchdog = {"WATCHDOG_USEC": str(int(float(found["WatchdogSec"][0]) * 1e6))}
    with process(shlex.split(start), watchdog, manager) as running:
        socket = tmp_path / "run/tillpost/tillpost.sock"
        status = manager.until("READY=1")[1]
        assert re.fullmatch(rf"STATUS=listening on http://127.0.0.1:\d+ unix:/*{socket}", status)
        assert socket.stat().st_mode & 0o777 == 0o660
        reload = shlex.split(found["ExecReload"][0].replace("$MAINPID", str(running.pid)))
        subprocess.run(reload, check=True)
        manager.until("RELOADING=1")
        manager.until("READY=1")
        running.send_signal(signal.SIGTERM)
        manager.until("STOPPING=1")
        assert running.wait(30) == 0
    assert (tmp_path / "var/lib/tillpost/tillpost.db").exists()


@pytest.mark.parametrize("names", MACHINES.values(), ids=MACHINES)
def test_systemd_takes_the_unit_and_finds_little_exposed(names: list[str], tmp_path: Path) -> None:
    analyze = needs.systemd_analyze()
    service = tmp_path / names[0]
    service.write_text((DEPLOY / "systemd" / names[0]).read_text().replace(PROGRAM, OURS))
    for name in names[1:]:
        folder = tmp_path / f"{names[0]}.d"
        folder.mkdir()
        (folder / name).write_text((DEPLOY / "systemd" / name).read_text())
    verified = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", service], capture_output=True, text=True, check=False
    )
    remarks = [line for line in verified.stderr.splitlines() if service.stem in line]  # not those on others' units
    assert (verified.returncode, remarks) == (0, [])
    secure = subprocess.run(
        [analyze, "security", "--offline=true", f"--threshold={MAX_EXPOSURE}", service],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert secure.returncode == 0, secure.stdout


# Containers


def dockerfile() -> list[tuple[str, str]]:
    """Each instruction and what follows it."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line)]


def image() -> dict[str, str]:
    """The last value of each instruction in the last stage."""
    instructions = dockerfile()
    last = max(i for i, (word, _) in enumerate(instructions) if word == "FROM")
    return dict(instructions[last:])


def image_environ() -> dict[str, str]:
    return dict(part.split("=", 1) for part in shlex.split(image()["ENV"]))


def test_the_image_is_built_from_what_the_package_is_made_of() -> None:
    project = toml(ROOT / "pyproject.toml")
    copied = {source for word, rest in dockerfile() if word == "COPY" and not rest.startswith("--from")
              for source in rest.split()[:-1]}  # fmt: skip
    assert all((ROOT / source).exists() for source in copied)
    needed = ["pyproject.toml", project["project"]["readme"], *project["project"]["license-files"],
              *project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]  # fmt: skip
    assert all(Path(name).parts[0] in copied for name in needed)
    assert tuple(map(int, re.findall(r"ARG PYTHON=(\d+)\.(\d+)", (DEPLOY / "Dockerfile").read_text())[0])) >= (3, 11)


def test_the_images_command_serves_as_its_health_check_says(manager: Manager, tmp_path: Path) -> None:
    parts, environ = image(), image_environ()
    assert int(parts["USER"].partition(":")[0]) > 0
    assert Path(environ["TILLPOST_BUFFER__PATH"]).is_relative_to(parts["VOLUME"])
    assert Address.parse(environ["TILLPOST_INGEST__LISTEN"]).port == int(parts["EXPOSE"])
    for name in ("api-key", "ingest-token"):
        (tmp_path / name).write_text(f"the-{name}")
    here = {key: value.replace("/run/secrets/tillpost", str(tmp_path)).replace("/var/lib/tillpost", str(tmp_path))
            for key, value in environ.items() if key.startswith("TILLPOST_")}  # fmt: skip
    here["TILLPOST_INGEST__LISTEN"] = "0.0.0.0:0"
    command = [*json.loads(parts["ENTRYPOINT"]), *json.loads(parts["CMD"])]
    assert command[0] == Path(PROGRAM).name
    check = json.loads(parts["HEALTHCHECK"].partition("CMD")[2])
    assert check[0] == "python"
    with process([*OURS.split(), *command[1:]], here, manager) as running:
        port = manager.until("READY=1")[1].rpartition(":")[2]
        check = [sys.executable, *(arg.replace(parts["EXPOSE"], port) for arg in check[1:])]
        assert subprocess.run(check, check=False).returncode == 0
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
        connection.request("POST", "/v4/events/batch", "[]", {"Content-Type": "application/json"})
        assert connection.getresponse().status == 401  # the token file is in use
        connection.close()
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
    assert subprocess.run(check, check=False, stderr=subprocess.DEVNULL).returncode == 1


def test_compose_runs_the_image_read_only_and_gives_it_what_it_needs() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    ours, app, environ = services["tillpost"], services["app"], image_environ()
    assert (DEPLOY / ours["build"]["context"] / ours["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert (ours["read_only"], ours["cap_drop"]) == (True, ["ALL"])
    mounts = {volume.split(":")[1] for volume in ours["volumes"]}
    assert mounts == {image()["VOLUME"], str(Path(environ["TILLPOST_API_KEY_FILE"]).parent)}
    grace = load(environ={}, default_file=None).config.shutdown.grace
    assert parse_duration(ours["stop_grace_period"]) > grace + CLOSING_S
    assert app["environment"]["TILLPOST_URL"] == f"http://tillpost:{image()['EXPOSE']}"
    assert app["environment"]["TILLPOST_INGEST_TOKEN_FILE"] in {volume.split(":")[1] for volume in app["volumes"]}


def test_the_kubernetes_sidecar_fits_the_image_and_our_paths() -> None:
    stateful = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())
    pod = stateful["spec"]["template"]["spec"]
    (ours,), (app,) = pod["initContainers"], pod["containers"]
    assert ours["restartPolicy"] == "Always"
    given = {entry["name"]: entry["value"] for entry in ours["env"]}
    settings = load(environ={**image_environ(), **given}, default_file=None).check()  # refuses names we do not know
    config = settings.config
    mounts = {mount["mountPath"]: mount["name"] for mount in ours["volumeMounts"]}
    (claim,) = stateful["spec"]["volumeClaimTemplates"]
    assert mounts[image()["VOLUME"]] == claim["metadata"]["name"]
    assert Path(config.buffer.path).is_relative_to(image()["VOLUME"])
    room = claim["spec"]["resources"]["requests"]["storage"]
    assert config.buffer.max_size < parse_size(f"{room}B")
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts.values()) <= {*volumes, claim["metadata"]["name"]}
    secrets = next(place for place, name in mounts.items() if "secret" in volumes.get(name, {}))
    assert {str(Path(file).parent) for file in credentials(settings)} == {secrets}

    (port,) = ours["ports"]
    assert [port["containerPort"]] == [address.port for address in config.ingest.addresses]
    probes = {name: ours[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert [probe["path"] for probe in probes.values()] == ["/readyz", "/livez", "/readyz"]
    served = json.loads((ROOT / "collector/openapi.json").read_text())["paths"]
    assert all(probe["path"] in served for probe in probes.values())

    uid, gid = map(int, image()["USER"].split(":"))
    context = ours["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], pod["securityContext"]["fsGroup"]) == (uid, gid, gid)
    assert context["runAsNonRoot"] is context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert pod["terminationGracePeriodSeconds"] > config.shutdown.grace + CLOSING_S

    theirs = {entry["name"]: entry["value"] for entry in app["env"]}
    assert theirs["TILLPOST_URL"] == f"http://127.0.0.1:{port['containerPort']}"
    (token,) = app["volumeMounts"]
    (item,) = volumes[token["name"]]["secret"]["items"]  # not the workspace key
    assert theirs["TILLPOST_INGEST_TOKEN_FILE"] == f"{token['mountPath']}/{item['path']}"
    assert settings.secrets.ingest_token is not None
    assert Path(str(settings.secrets.ingest_token.file)).name == item["key"]


# Windows


def test_the_windows_service_runs_a_command_we_have_with_a_configuration_we_take() -> None:
    service = ElementTree.parse(DEPLOY / "windows/tillpost.xml").getroot()
    arguments = shlex.split(service.findtext("arguments", "").replace("\\", "/"))
    assert arguments[:2] == ["run", "--config"]
    assert arguments[2].rpartition("/")[2] == "tillpost.toml"
    config = load(file=DEPLOY / "windows/tillpost.toml", environ={}).check().config
    assert not any(address.path for address in config.ingest.addresses)  # there are no Unix sockets
    assert config.admin.token_file  # commands reach it by TCP
    assert parse_duration(service.findtext("stoptimeout", "").replace(" sec", "s")) > config.shutdown.grace + CLOSING_S


def test_every_file_has_a_page_that_speaks_of_it() -> None:
    pages = {page.name: page.read_text() for page in (ROOT / "docs/operations").glob("*.md")}
    for file in (file for file in DEPLOY.rglob("*") if file.is_file()):
        link = f"](../deploy/{file.relative_to(DEPLOY)})"
        assert any(link in page for page in pages.values()), f"no page links to {file.name}"
    for name, text in pages.items():
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (ROOT / "docs/operations" / target).exists(), f"{name}: {target}"
        for key in re.findall(r"\bTILLPOST_[A-Z]+__[A-Z_]+\b", text):
            assert key in map(variable, load(environ={}, default_file=None).values), f"{name}: {key}"
