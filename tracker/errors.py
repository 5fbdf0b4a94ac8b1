"""What `tracker` raises.

* InvalidRecord (a ValueError)
  x MissingArgument (also a TypeError, as Python's own)
"""


class InvalidRecord(ValueError):
    """An argument breaks a rule. The message names the field, the rule and what is allowed, never the value.

    The value may be personal, and messages end in logs: it is in `value` only.
    """

    field: str
    """The argument as the caller wrote it, for example ``params.email`` or ``products[0].quantity``."""
    rule: str
    """The rule it breaks and what is allowed."""
    value: object
    """What was given."""

    def __init__(self, field: str, rule: str, value: object = None) -> None:
        super().__init__(field, rule)
        self.field, self.rule, self.value = field, rule, value

    def __str__(self) -> str:
        return f"{self.field}: {self.rule}"

    def within(self, place: str) -> "InvalidRecord":
        """The same error seen from further out: ``quantity`` within ``products[0]``."""
        return type(self)(f"{place}.{self.field}", self.rule, self.value)


class MissingArgument(InvalidRecord, TypeError):
    """A required argument was left out."""
