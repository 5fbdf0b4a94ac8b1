"""``doctor``: is everything as it should be, before it costs records?"""

import asyncio
from collections.abc import Callable
from typing import Final

import click
import orjson

from collector.cli.common import colours, json_option
from collector.cli.run import configuration_options, load_settings
from collector.config import ConfigError
from collector.doctor import Finding, Status, exit_code, machine
from collector.doctor_upstream import ask_upstream
from collector.settings import Settings

_SIGNS: Final[dict[Status, tuple[str, str]]] = {
    "ok": ("[+]", "green"), "warning": ("[!]", "yellow"), "failed": ("[-]", "red"), "skipped": ("[ ]", "bright_black")
}  # fmt: skip


@click.command()
@click.option("--offline", is_flag=True, help="Ask nobody: this machine and its files only.")
@configuration_options
@json_option
def doctor(
    config_file: str | None, buffer: str | None, listen: tuple[str, ...], upstream: str | None,
    assigned: tuple[str, ...], offline: bool, as_json: bool,
) -> int:  # fmt: skip
    """Check configuration, machine, buffer and upstream.

    One line a check, with what to do. Changes nothing, and may run beside the collector.
    Exit 0: nothing failed; 1: something did; 2: the configuration; 4: the buffer cannot be used.
    """
    findings: list[Finding] = []

    def found(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            click.echo(_line(finding), color=colours())

    try:
        settings = load_settings(config_file, buffer, listen, upstream, assigned)
    except ConfigError as error:
        found(Finding("configuration", "failed", str(error), "correct it; nothing else was looked at", 2))
    else:
        for finding in machine(settings):
            found(finding)
        if not offline:
            asyncio.run(_ask(settings, found))
    if as_json:
        code = exit_code(findings)
        shown = ("name", "status", "text", "advice")
        checks = [{key: getattr(finding, key) for key in shown} for finding in findings]
        click.echo(orjson.dumps({"ok": code == 0, "checks": checks}, option=orjson.OPT_INDENT_2).decode())
    return exit_code(findings)


async def _ask(settings: Settings, found: Callable[[Finding], None]) -> None:
    async for finding in ask_upstream(settings):
        found(finding)


def _line(finding: Finding) -> str:
    sign, colour = _SIGNS[finding.status]
    advice = f" -> {finding.advice}" if finding.advice else ""
    return f"{click.style(sign, fg=colour)} {finding.name}: {finding.text}{advice}"
