"""The tracker of a Django project, and the same one at the end of a database transaction."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.utils.module_loading import import_string

from tracker.bound import BoundTracker
from tracker.clients import Client
from tracker.errors import InvalidRecord
from tracker.integrations.configure import ConfiguredTracker, options
from tracker.receipt import Receipt

SETTING: Final = "TILLPOST"


class DjangoTracker(ConfiguredTracker):
    """A tracker with the settings of ``TILLPOST``; the client of the request is bound by `ClientMiddleware`."""

    _how = 'put "tracker.integrations.django" into INSTALLED_APPS'

    client_of: Callable[[Any], Client | None] | None = None
    """Makes a client of a signed-in user: the setting ``CLIENT_OF``."""

    def read_settings(self) -> None:
        """Raises `ImproperlyConfigured` for what cannot be a setting, and says which."""
        given = getattr(settings, SETTING, {})
        try:
            found = options(given, ("CLIENT_OF",), f"{SETTING}: ")
            found = {name: _imported(name, value) for name, value in found.items()}
            self.client_of = _imported("client_of", given.get("CLIENT_OF"))
            self.configure(**found)
        except (InvalidRecord, ImportError) as error:
            raise ImproperlyConfigured(str(error)) from error

    @property
    def on_commit(self) -> "OnCommit":
        """The same tracker, whose records leave once the database transaction around them is committed.

        Records of a transaction that is rolled back are never sent. They are checked and stamped at the call;
        until the commit the receipt waits and is counted nowhere. Outside a transaction it makes no difference.
        """
        return OnCommit(self)


class OnCommit(BoundTracker):
    """`DjangoTracker.on_commit`."""

    __slots__ = ("_alias",)

    def __init__(self, tracker: BoundTracker, alias: str | None = None) -> None:
        self.__dict__ = tracker.__dict__  # one tracker, seen differently
        self._alias = alias

    def using(self, alias: str) -> "OnCommit":
        """For the transactions of another database than the default one."""
        return OnCommit(self, alias)

    def _put(self, receipt: Receipt) -> None:
        transaction.on_commit(partial(super()._put, receipt), using=self._alias)


def _imported(name: str, value: Any) -> Any:
    """Functions may be given as dotted paths."""
    if name in ("client_of", "on_error", "before_record") and isinstance(value, str):
        return import_string(value)
    return value


tracker: Final = DjangoTracker()
"""The project's tracker."""
