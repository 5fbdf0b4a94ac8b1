"""Whose record it is, and what happens to those that could not be kept."""

import logging

from django.contrib.auth.models import User

from tracker import Client, Failure

log = logging.getLogger(__name__)


def client_of(user: User) -> Client:
    """The profile of a signed-in customer."""
    return Client(email=user.email)


def on_error(failure: Failure) -> None:
    """Names the reason and nothing of the record: this is a log."""
    log.error("a record was not kept: %s", failure)
