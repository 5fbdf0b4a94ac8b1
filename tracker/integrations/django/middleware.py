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

    Belongs after ``AuthenticationMiddleware``. A request that tracks nothing costs no look at the session; only
    before an asynchronous view, in which that look is not allowed, is it taken for visitors who have one.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response: Callable[[HttpRequest], Any] = get_response
        self._is_async: bool = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self._answer(request)
        with bound(_binding(request)):
            answer: HttpResponseBase = self.get_response(request)
            return answer

    async def _answer(self, request: HttpRequest) -> HttpResponseBase:
        with bound(_binding(request)):
            answer: HttpResponseBase = await self.get_response(request)
            return answer

    def process_view(self, request: HttpRequest, view: Callable[..., Any], *_: Any) -> None:
        """Django calls this in a thread where the view is asynchronous."""
        if iscoroutinefunction(view) and settings.SESSION_COOKIE_NAME in request.COOKIES:
            tracker.look_up()


def _binding(request: HttpRequest) -> Binding:
    def signed_in() -> Client | None:
        user = getattr(request, "user", None)
        if tracker.client_of is None or user is None or not user.is_authenticated:
            return None
        return tracker.client_of(user)

    return Binding(signed_in, anonymous_uuid(request.META.get("HTTP_COOKIE")))
