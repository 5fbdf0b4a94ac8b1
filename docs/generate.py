"""Writes the pages of ``docs/reference/`` from the code: ``python docs/generate.py``.

A page is what the code says of itself: the text below a key in ``collector/config.py``, the help of a command.
`tests/test_docs.py` holds the pages in the checkout against what this makes of them.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from collector import config
from collector.cli import main as tillpost
from collector.settings import SECRET_FILES, variable
from collector.units import DURATION_FORM, SIZE_FORM
from collector.values import DEFAULTS, TYPES, allowed, show

FOLDER = Path(__file__).with_name("reference")
_MADE = "<!-- made by docs/generate.py from the code: change it there -->\n"

_CONFIGURATION = f"""{_MADE}
# Configuration

Flags win over environment variables, these over the file, the file over the defaults. The file is the one that
`--config` names, else `/etc/tillpost/tillpost.toml` if it is there. `tillpost config` shows every value and
where it came from; an unknown key is an error that names the nearest one.

```toml
[buffer]
path = "/var/lib/tillpost/tillpost.db"
max_size = "2GiB"
```

The same in the environment: `{variable("buffer.max_size")}=2GiB`, with two underscores between section and key;
of an inner section: `{variable("batch.transactions.max_records")}`. As a flag: `--set buffer.max_size=2GiB`.
Lists are separated by commas there. An embedded collector takes the same keys in `Collector(config=...)`, reads no
file by itself, and listens on nothing unless told to.

Durations are written `250ms`, `10s`, `5m`, `24h`, `90d`; sizes `512KiB`, `8MiB`, `1MB`. A bare number is seconds or
bytes. A proxy is taken from the usual environment variables (`HTTPS_PROXY`, `NO_PROXY`).

## Secrets

Never from flags, where `ps` shows them. Each comes from a variable, or from a file:

"""

_COMMANDS = f"""{_MADE}
# Commands

`tillpost`, also `python -m collector`. What the commands are for: [At the command line](../operations/commands.md).

Exit: 0 well, 1 failed, 2 usage or configuration, 3 buffer in use by another process, 4 buffer unusable. A mistake is
answered by one line on standard error that says what to do.
"""


def pages() -> dict[Path, str]:
    """Every page by its path, as it should be."""
    return {FOLDER / "configuration.md": configuration(), FOLDER / "commands.md": commands()}


def configuration() -> str:
    """The reference of every key: type, default, variable, meaning."""
    lines = [
        _CONFIGURATION.rstrip("\n"),
        "",
        "| Variable | Or with the path of a file | Or as a key |",
        "|---|---|---|",
    ]
    lines += [f"| `{name}` | `{name}_FILE` | `{key}` |" for name, key in SECRET_FILES.items()]
    for section, struct in _sections(config.Config(), ""):
        lines += ["", f"## [{section}]", "", _first_line(type(struct)), ""]
        lines += ["| Key | Default | Values | Meaning |", "|---|---|---|---|"]
        meanings = _meanings(type(struct))
        for field in struct.__struct_fields__:
            key = f"{section}.{field}"
            if key in TYPES:
                lines.append(f"| `{field}` | {_default(key)} | {_values(key)} | {meanings[field]} |")
    return "\n".join(lines) + "\n"


def _sections(struct: msgspec.Struct, name: str) -> Iterator[tuple[str, msgspec.Struct]]:
    for field in struct.__struct_fields__:
        value = getattr(struct, field)
        if isinstance(value, msgspec.Struct):
            inner = f"{name}.{field}" if name else field
            yield inner, value
            yield from _sections(value, inner)


def _first_line(struct: type[msgspec.Struct]) -> str:
    """What a section is for, from its Struct's docstring."""
    text = (inspect.getdoc(struct) or "").partition(": ")[2]
    return text[:1].upper() + text[1:]


def _meanings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The text below each key. Raises KeyError later for a key without one."""
    body = ast.parse(inspect.getsource(struct)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for key, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name) and isinstance(text, ast.Expr):
            found[key.target.id] = " ".join(ast.literal_eval(text.value).split())
    return found


def _default(key: str) -> str:
    shown = show(key, DEFAULTS[key]).removesuffix(".0")
    return f"`{shown}`" if shown else ""


def _values(key: str) -> str:
    """As an error message words it; how durations and sizes are written stands at the top of the page."""
    text = allowed(TYPES[key]).replace(DURATION_FORM, "a duration").replace(SIZE_FORM, "a size")
    return text.partition(" such as ")[0]


def commands() -> str:
    """Every command and every option, as ``--help`` tells them."""
    context = click.Context(tillpost, info_name="tillpost")
    lines = [_COMMANDS.rstrip("\n")]
    for name in tillpost.list_commands(context):
        command = tillpost.get_command(context, name)
        assert command is not None
        lines += _command(command, context, name)
    return "\n".join(lines) + "\n"


def _command(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    context = click.Context(command, parent, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    yield from ("", f"{'##' if parent.parent is None else '###'} {context.command_path}", "")
    yield from (f"    {context.command_path} {usage}", "")
    yield _escaped(inspect.cleandoc(command.help or ""))
    options = [p for p in command.get_params(context) if isinstance(p, click.Option) and "--help" not in p.opts]
    if records := [record for option in options if (record := option.get_help_record(context))]:
        yield from ("", "| Option | |", "|---|---|")
        yield from (f"| `{option.replace('|', ' or ')}` | {_cell(text)} |" for option, text in records)
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from _command(found, context, inner)


def _escaped(text: str) -> str:
    """Help as Markdown: what a terminal shows as it is must not turn into emphasis or tags."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else p.replace("*", "\\*").replace("<", "&lt;") for p in parts)


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
