"""The events an application declares, for the colleagues who read them: as Markdown and as JSON Schema.

`tillpost events MODULE` prints both. Names, types and limits come from the classes; descriptions from their
docstrings, from ``Annotated[..., msgspec.Meta(description=...)]``, and from the strings below the fields.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any, Final, NamedTuple, get_args

import msgspec

from tracker.custom import CustomEvent
from tracker.record import plans
from tracker.rules import Schema, rule_of

_ENVELOPE: Final = frozenset(CustomEvent.__struct_fields__)


class Param(NamedTuple):
    """A declared param of an event."""

    name: str
    """As it is sent."""
    argument: str
    """As Python code names it."""
    words: str
    schema: Schema
    required: bool
    default: object
    description: str


def load(module: str) -> list[type[CustomEvent]]:
    """The events declared in a module, in the modules below it that it has imported, or named in it; by action.

    Raises whatever importing the module raises, and ValueError when two events have the same action.
    """
    named = vars(import_module(module)).values()
    found: dict[str, type[CustomEvent]] = {}
    for event in _all(CustomEvent):
        at_home = f"{event.__module__}.".startswith(f"{module}.")
        if event.action and (at_home or any(event is value for value in named)):
            other = found.get(event.action, event)
            if _place(other) != _place(event):  # the same place twice is a module that was reloaded
                raise ValueError(f"two events have the action {event.action}: {_place(other)} and {_place(event)}")
            found[event.action] = event
    return [found[action] for action in sorted(found)]


def _all(event: type[CustomEvent]) -> Iterator[type[CustomEvent]]:
    for below in event.__subclasses__():
        yield below
        yield from _all(below)


def _place(event: type) -> str:
    return f"{event.__module__}.{event.__qualname__}"


def description(event: type[CustomEvent]) -> str:
    """What the class's docstring says."""
    return inspect.cleandoc(event.__doc__) if event.__doc__ else ""


def params(event: type[CustomEvent]) -> list[Param]:
    """The declared params of an event, in the order declared."""
    said = _strings_below_fields(event)
    found = []
    for field in msgspec.structs.fields(event):
        if field.name in _ENVELOPE:
            continue
        rule = rule_of(field.type)
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        about = _meta_description(field.type) or said.get(field.name, "")
        described = rule.schema | ({"description": about} if about else {})
        found.append(Param(field.encode_name, field.name, rule.words, described, field.required, default, about))
    return found


def _meta_description(annotation: Any) -> str:
    metadata = getattr(annotation, "__metadata__", ())
    found = (meta.description for meta in metadata if isinstance(meta, msgspec.Meta) and meta.description)
    return next(found, None) or next(filter(None, map(_meta_description, get_args(annotation))), "")


def _strings_below_fields(event: type) -> dict[str, str]:
    """What editors show for a field: the string below it."""
    said: dict[str, str] = {}
    for cls in reversed(event.__mro__):
        if cls in plans or cls is event:
            try:
                tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
            except (OSError, TypeError, SyntaxError):  # typed into a shell, or shipped without sources
                continue
            body = next((node.body for node in tree.body if isinstance(node, ast.ClassDef)), [])
            for field, below in pairwise(body):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):  # noqa: SIM102
                    if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                        said[field.target.id] = inspect.cleandoc(str(below.value.value))
    return said


def json_schema(events: Sequence[type[CustomEvent]], title: str = "Events") -> Schema:
    """A JSON Schema of the events as they are sent, one definition per action; other records do not pass."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "oneOf": [{"$ref": f"#/$defs/{event.action}"} for event in events],
        "$defs": {event.action: _event_schema(event) for event in events} | {"client": _CLIENT},
    }


_CLIENT: Final[Schema] = {
    "type": "object",
    "description": "Whose event it is: at least one of the identifiers.",
    "properties": {
        "id": {"type": "integer"},
        "uuid": {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
        "customId": {"type": "string", "minLength": 1},
        "email": {"type": "string", "minLength": 1},
    },
    "minProperties": 1,
    "additionalProperties": False,
}


def _event_schema(event: type[CustomEvent]) -> Schema:
    declared = params(event)
    needed = [param.name for param in declared if param.required]
    return {
        "title": event.__name__,
        "description": description(event),
        "type": "object",
        "properties": {
            "type": {"const": event.type},
            "action": {"const": event.action},
            "label": {"type": "string", "minLength": 1},
            "time": {"type": "string", "format": "date-time"},
            "eventSalt": {"type": "string", "minLength": 1, "maxLength": 128},
            "client": {"$ref": "#/$defs/client"},
            "params": {
                "type": "object",
                "properties": {param.name: param.schema for param in declared},
                "required": needed,
            },
        },
        "required": ["type", "action", "label", "time", "eventSalt", "client", "params"],
    }


def markdown(events: Sequence[type[CustomEvent]], title: str = "Events") -> str:
    """A page about the events: a section each, a table of its params."""
    return "\n".join([f"# {title}", "", *(line for event in events for line in _section(event))])


def _section(event: type[CustomEvent]) -> Iterator[str]:
    yield f"## {event.action}"
    yield ""
    if text := description(event):
        yield text
        yield ""
    yield f"`{_place(event)}`"
    yield ""
    declared = params(event)
    if not declared:
        yield "No params of its own."
    else:
        yield "| Param | Argument | Type | Required | Meaning |"
        yield "|---|---|---|---|---|"
    for param in declared:
        needed = "yes" if param.required else "no" if param.default is None else f"no: `{_literal(param.default)}`"
        about = " ".join(param.description.split())
        cells = (f"`{param.name}`", f"`{param.argument}`", param.words, needed, about)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _literal(value: object) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


def on_path(folder: str) -> None:
    """Lets modules of a folder be imported, as ``python -m`` does."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
