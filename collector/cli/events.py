"""``events``: the catalogue of an application's own events.

An application in this package: it looks at events the way their author does, through `tracker`.
"""

import json
from pathlib import Path

import click


@click.command()
@click.argument("module")
@click.option("--json-schema", "as_schema", is_flag=True, help="Print a JSON Schema instead of Markdown.")
@click.option("--title", help="Of the page or schema; default: the module's name.")
def events(module: str, as_schema: bool, title: str | None) -> int:
    """Print the events that MODULE declares, for colleagues.

    MODULE is imported from here, as by `python -m`: give the one where the subclasses of CustomEvent are.
    """
    from tracker import catalogue

    catalogue.on_path(str(Path.cwd()))
    try:
        found = catalogue.load(module)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    except Exception as error:  # the module's own code: whatever it is, a traceback of ours would not help
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise click.ClickException(
            f"importing {module} failed ({said}): try python -c 'import {module}' here"
        ) from None
    if not found:
        raise click.ClickException(f"{module} declares no events: name the module with the subclasses of CustomEvent")
    title = title or f"Events of {module}"
    if as_schema:
        click.echo(json.dumps(catalogue.json_schema(found, title), indent=2, ensure_ascii=False, default=str))
    else:
        click.echo(catalogue.markdown(found, title))
    return 0
