"""The middleware that binds the client of each request, for synchronous and asynchronous projects."""

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

from tracker.bound import Binding, anonymous_uuid, bound
from tracker.clients import Client
from tracker.integrations.django.trackers import tracker


class ClientMiddleware:
    """Binds the client of a request: ``CLIENT_OF`` of the signed-in user, else the ``_snrs_uuid`` cookie's profile.

    Belongs after ``AuthenticationMiddleware``. A request that tracks nothing costs no look at the session, except
    under ASGI for visitors with a session, where a later look would block the loop.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._is_async: bool = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self._answer(request)
        with bound(_binding(request, None)):
            answer: HttpResponseBase = self.get_response(request)
            return answer

    async def _answer(self, request: HttpRequest) -> HttpResponseBase:
        user = None
        if tracker.client_of and hasattr(request, "auser") and settings.SESSION_COOKIE_NAME in request.COOKIES:
            user = await request.auser()
        with bound(_binding(request, user)):
            answer: HttpResponseBase = await self.get_response(request)
            return answer


def _binding(request: HttpRequest, user: Any) -> Binding:
    def signed_in() -> Client | None:
        found = user if user is not None and user.is_authenticated else getattr(request, "user", None)
        if tracker.client_of is None or found is None or not found.is_authenticated:
            return None
        return tracker.client_of(found)

    return Binding(signed_in, anonymous_uuid(request.META.get("HTTP_COOKIE")))
