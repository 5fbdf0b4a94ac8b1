"""``demo`` and ``fake-upstream``: the promise shown on this machine, and the stand-in for the API."""

import click

from collector.cli.common import json_option


@click.command()
@click.option("--sabotage", type=click.Choice(["drop", "duplicate", "alter"]),
              help="Break the promise on purpose; the account must notice and end with 1.")  # fmt: skip
@json_option
def demo(sabotage: str | None, as_json: bool) -> int:
    """Show the whole promise on this machine.

    A shop's day with faults; needs no account and no network.
    """
    from collector.demo import main

    return main(sabotage=sabotage, as_json=as_json)


@click.command("fake-upstream")
@click.option("--listen", default="127.0.0.1:8788", show_default=True, metavar="ADDR", help="Where to listen.")
@click.option("--api-key", metavar="KEY", help="The only key it accepts; default: any.")
@click.option("--set", "assigned", multiple=True, metavar="SWITCH=VALUE", help="Set an open point of the API.")
@click.option("--switches", is_flag=True, help="List the switches and leave.")
def fake_upstream(listen: str, api_key: str | None, assigned: tuple[str, ...], switches: bool) -> int:
    """Stand in for the API, strictly. Prints its URL first."""
    from collector.cli.common import table
    from collector.testing import Switches, run_fake_upstream

    if switches:
        click.echo(table([("SWITCH", "DEFAULT", "VALUES", "MEANING"), *Switches.table()]))
        return 0
    context = click.get_current_context()
    values = {}
    for text in assigned:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--set {text}: write switch=value", context)
        values[name] = value
    try:
        run_fake_upstream(listen, api_key, Switches.from_strings(values))
    except ValueError as error:
        raise click.UsageError(str(error), context) from None
    except OSError as error:
        raise click.ClickException(f"cannot listen on {listen}: {error.strerror or error}") from None
    return 0
