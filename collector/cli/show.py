"""``config``: the effective values and where each came from."""

import click
import orjson

from collector.cli.common import json_option, table
from collector.cli.run import configuration_options, load_settings
from collector.config import ConfigError
from collector.secret import Secret, SecretUnavailable
from collector.settings import Settings
from collector.values import show as shown


@click.command()
@configuration_options
@json_option
def config(
    config_file: str | None, buffer: str | None, listen: tuple[str, ...], upstream: str | None,
    assigned: tuple[str, ...], as_json: bool,
) -> int:  # fmt: skip
    """Show the configuration and its sources.

    Secrets are masked. Exit 2 when a collector would not start with it.
    """
    settings = load_settings(config_file, buffer, listen, upstream, assigned)
    problem = _problem(settings)
    secrets = {name: _secret(getattr(settings.secrets, name)) for name in type(settings.secrets).__struct_fields__}
    if as_json:
        facts = {
            "values": {
                key: {"value": found.value, "shown": shown(key, found.value), "source": found.source}
                for key, found in settings.values.items()
            },
            "secrets": {name: {"value": value, "source": source} for name, (value, source) in secrets.items()},
            "problem": problem,
        }
        click.echo(orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode())
    else:
        rows = [("KEY", "VALUE", "SOURCE")]
        rows += [(key, shown(key, found.value), found.source) for key, found in settings.values.items()]
        rows += [
            (f"({name.replace('_', ' ')})", value or "", source or "") for name, (value, source) in secrets.items()
        ]
        click.echo(table(rows))
    if problem:
        click.echo(f"tillpost: {problem}", err=True)
    return 2 if problem else 0


def _problem(settings: Settings) -> str | None:
    try:
        settings.check()
    except ConfigError as error:
        return str(error)
    return None


def _secret(secret: Secret | None) -> tuple[str | None, str | None]:
    """The masked value, or why there is none, and the source."""
    if secret is None:
        return None, None
    source = f"{secret.source}: {secret.file}" if secret.file else secret.source
    try:
        secret()
    except SecretUnavailable as error:
        return f"unreadable: {error}", source
    return "********", source
