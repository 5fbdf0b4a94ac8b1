"""A WSGI middleware that binds the client of each request."""

from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from tracker.bound import Binding, anonymous_uuid, bound
from tracker.clients import Client

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ClientOf = Callable[["WSGIEnvironment"], Client | None]


class ClientMiddleware:
    """Binds the client of a request for `BoundTracker`, until the last byte of the answer is made.

    Args:
        app: the application.
        client_of: tells the signed-in client from the WSGI environment, or None; called at the first record of a
            request, if there is one. Without it, and where it says None, the client is the anonymous profile of
            the ``_snrs_uuid`` cookie.
    """

    def __init__(self, app: "WSGIApplication", client_of: ClientOf | None = None) -> None:
        self.app = app
        self.client_of = client_of

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        find = self.client_of
        binding = Binding(find and (lambda: find(environ)), anonymous_uuid(environ.get("HTTP_COOKIE")))
        with bound(binding):
            context = copy_context()  # a server may make the body when another request is bound on this thread
        body = context.run(self.app, environ, start_response)
        if type(body) in (list, tuple) or isinstance(body, environ.get("wsgi.file_wrapper") or ()):
            return body  # nothing of the application runs any more, and the server may know a faster way
        return _Body(body, context)


class _Body:
    """An answer whose parts are made where the client is bound."""

    def __init__(self, body: Iterable[bytes], context: Context) -> None:
        self._body = body
        self._context = context

    def __iter__(self) -> Iterator[bytes]:
        parts = self._context.run(iter, self._body)
        end: Any = object()
        while (part := self._context.run(next, parts, end)) is not end:
            yield part

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            self._context.run(close)
