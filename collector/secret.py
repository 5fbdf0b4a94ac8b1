"""Secrets: known by where they come from, read when needed, never shown."""

import os
from pathlib import Path


class SecretUnavailable(Exception):
    """A secret was named but cannot be read now; the message says which, where and why, never its value."""


class Secret:
    """A secret and where it comes from. Call it for the value; a file is read anew each time.

    Raises SecretUnavailable when the file cannot be read, is empty or holds more than one line.
    """

    def __init__(self, name: str, *, value: str | None = None, file: str | None = None, source: str) -> None:
        if (value is None) == (file is None):
            raise TypeError("a secret has either a value or a file")
        self.name = name
        self.source = source
        self._value = value
        self._file = file

    def __call__(self) -> str:
        if self._value is not None:
            return _one_line(self._value, f"{self.name} ({self.source})")
        assert self._file is not None
        where = f"{self.name} file {self._file} ({self.source})"
        try:
            text = Path(self._file).read_text("utf-8")
        except UnicodeDecodeError:
            raise SecretUnavailable(f"{where}: not text") from None
        except OSError as error:
            raise SecretUnavailable(f"{where}: {os.strerror(error.errno or 0)}") from None
        return _one_line(text, where)

    @property
    def file(self) -> str | None:
        """The file it is read from, or None when the value came directly."""
        return self._file

    def __repr__(self) -> str:
        return f"<Secret {self.name} from {self.source}>"


def _one_line(text: str, where: str) -> str:
    """The value without surrounding white space: editors and ``echo`` end files with a newline."""
    value = text.strip()
    if not value:
        raise SecretUnavailable(f"{where}: empty")
    # It becomes an HTTP header or a JSON string; anything else is a wrong file, such as a key in PEM form.
    if not (value.isascii() and value.isprintable()):
        raise SecretUnavailable(f"{where}: must be one line of printable ASCII")
    return value
