"""The client: whose record it is."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import msgspec
from msgspec.structs import force_setattr

from tracker import checks
from tracker.checks import passes
from tracker.errors import InvalidRecord
from tracker.masks import fields_masked, masked

# API reference, Events: `client`; with fullmatch, because $ would let a trailing newline pass.
# Groups are not captured and repetitions give nothing back, which changes no answer and costs a third less.
_EMAIL: Final = re.compile(
    r'(?:[^<>()[\]\\.,;:\s@"]++(?:\.[^<>()[\]\\.,;:\s@"]++)*+|".+")'
    r"@(?:\[[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\]|(?:[a-zA-Z\-0-9]++\.)++[a-zA-Z]{2,})"
)
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_FORBIDDEN: Final = re.compile("[\r\n\u2028\u2029\u00ad\ufe00-\ufe0f\x00\U00010000-\U0010ffff]")


class Client(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Whose record it is: at least one of `id`, `uuid`, `custom_id`, `email`.

    Whitespace around an identifier is trimmed, as the API does. All keys given are sent; the
    set of them is the record's identifier type. Raises `InvalidRecord` for what the API would refuse.
    """

    id: int | None = None
    """The profile id the system made."""
    uuid: str | None = None
    """Lower-case ``8-4-4-4-12`` hexadecimal digits."""
    custom_id: str | None = msgspec.field(name="customId", default=None)
    """Your own id."""
    email: str | None = None

    if TYPE_CHECKING:  # more is taken than is kept

        def __init__(
            self,
            *,
            id: int | None = None,
            uuid: str | UUID | None = None,
            custom_id: str | None = None,
            email: str | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        email, custom_id, uuid = self.email, self.custom_id, self.uuid
        if email is not None:
            trimmed = _identifier(email, "email")
            if not _EMAIL.fullmatch(trimmed) or "\ufeff" in trimmed:  # whitespace to the API, not to Python
                raise InvalidRecord("email", "must be an e-mail address, such as anna@example.com", email)
            if trimmed is not email:
                force_setattr(self, "email", trimmed)
        if custom_id is not None:
            trimmed = _identifier(custom_id, "custom_id")
            if trimmed is not custom_id:
                force_setattr(self, "custom_id", trimmed)
        if uuid is not None:
            given: object = uuid
            trimmed = _identifier(str(given) if isinstance(given, UUID) else given, "uuid")
            if not _UUID.fullmatch(trimmed):
                raise InvalidRecord("uuid", "must be lower-case hexadecimal digits in the form 8-4-4-4-12", given)
            force_setattr(self, "uuid", trimmed)
        if self.id is not None:
            checks.whole(self.id, "id")
        elif custom_id is None and email is None and uuid is None:
            raise InvalidRecord("client", "must have at least one of id, uuid, custom_id, email")

    def merged(self, anonymous: "Client | str | UUID") -> "Client":
        """This client and the anonymous profile it was until now, in one: for the event of its login.

        The API then makes one profile of the two: a client object may carry several identifiers, and events of
        the uuid belong to the e-mail or own id from there on. Raises `InvalidRecord` when this client has no
        identifier but a uuid, or the anonymous one has none.
        """
        uuid = anonymous.uuid if isinstance(anonymous, Client) else str(anonymous)
        if uuid is None:
            raise InvalidRecord("anonymous", "must have a uuid: that is what an anonymous profile is known by")
        if self.id is None and self.custom_id is None and self.email is None:
            raise InvalidRecord("client", "must have email, custom_id or id beside the anonymous uuid")
        return Client(id=self.id, uuid=uuid, custom_id=self.custom_id, email=self.email)

    def __repr__(self) -> str:
        return masked(self)

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return fields_masked(self)


def _identifier(value: Any, field: str) -> str:
    if type(value) is str and value.isascii() and value.isprintable() and (plain := value.strip()):
        return plain  # most are: spare them the search
    trimmed = checks.text(value, field).strip()
    if not trimmed:
        raise InvalidRecord(field, "must not be empty: leave it out", value)
    if _FORBIDDEN.search(trimmed):
        raise InvalidRecord(
            field,
            "must not hold line breaks, U+0000, U+00AD, U+2028, U+2029, U+FE00 to U+FE0F or characters above U+FFFF",
            value,
        )
    return trimmed


@passes(Client)
def client(value: Any, field: str) -> Client:
    if not isinstance(value, Client):
        raise InvalidRecord(
            field, f'must be a Client, such as Client(email="anna@example.com"), not {checks.kind_of(value)}'
        )
    return value


AnyClient = Annotated[Client, client]
