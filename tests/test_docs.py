"""The documentation: what is made from the code is as the code is, and every link leads somewhere."""

import re
from pathlib import Path

import click

from collector.cli import main as tillpost
from collector.values import TYPES
from docs import generate

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_the_reference_is_what_the_code_says_of_itself() -> None:
    for path, text in generate.pages().items():
        assert path.read_text("utf-8") == text, f"{path.name} is out of date: python docs/generate.py"


def test_every_key_of_the_configuration_is_documented() -> None:
    rows = re.split(r"^## \[([a-z.]+)\]$", generate.configuration(), flags=re.MULTILINE)[1:]
    documented = {
        f"{section}.{key}"
        for section, text in zip(rows[::2], rows[1::2], strict=True)
        for key in re.findall(r"^\| `(\w+)` \|.*\| [^|]+ \|$", text, flags=re.MULTILINE)
    }
    assert documented == set(TYPES)


def test_every_command_and_option_is_documented() -> None:
    found = 0
    for name, command in commands(tillpost, click.Context(tillpost, info_name="tillpost")):
        section = re.search(rf"^###? {name}$(.*?)(?=^##|\Z)", generate.commands(), re.MULTILINE | re.DOTALL)
        assert section is not None, name
        assert command.help, name
        for option in command.params:
            if isinstance(option, click.Option):
                found += 1
                assert option.help, f"{name} {option.opts[0]} has no help"
                assert re.search(rf"^\| `{option.opts[0]}\b.*`", section[1], re.MULTILINE), f"{name} {option.opts[0]}"
    assert found > 50


def commands(command: click.Command, context: click.Context) -> list[tuple[str, click.Command]]:
    """Every command below one by what is typed, itself left out."""
    if not isinstance(command, click.Group):
        return []
    below = []
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        here = click.Context(inner, context, info_name=name)
        below += [(here.command_path, inner), *commands(inner, here)]
    return below


def test_every_link_to_a_file_leads_somewhere() -> None:
    for page in [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for target in links(page):
            assert target.exists(), f"{page.relative_to(ROOT)} links to {target}"


def links(page: Path) -> list[Path]:
    """The files a page links to."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    targets = (target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text))
    return [(page.parent / target).resolve() for target in targets if target and "://" not in target]
