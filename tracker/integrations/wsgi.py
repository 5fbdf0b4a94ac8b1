"""A WSGI middleware that binds the client of each request."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tracker.bound import Binding, anonymous_uuid, bound
from tracker.clients import Client

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class ClientMiddleware:
    """Binds the client of a request for `BoundTracker`, until the last byte of the answer is made.

    Args:
        app: the application.
        client_of: tells the signed-in client from the WSGI environment, or None; called at the first record of a
            request, if there is one. Without it, and where it says None, the client is the anonymous profile of
            the ``_snrs_uuid`` cookie.
    """

    def __init__(
        self, app: "WSGIApplication", client_of: "Callable[[WSGIEnvironment], Client | None] | None" = None
    ) -> None:
        self.app: WSGIApplication = app
        self.client_of: Callable[[WSGIEnvironment], Client | None] | None = client_of

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        find = self.client_of
        binding = Binding(find and (lambda: find(environ)), anonymous_uuid(environ.get("HTTP_COOKIE")))
        with bound(binding):
            body = self.app(environ, start_response)
        if type(body) in (list, tuple) or isinstance(body, environ.get("wsgi.file_wrapper") or ()):
            return body  # nothing of the application runs any more, and the server may know a faster way
        return _Body(body, binding)


class _Body:
    """An answer that is made part by part, each with the client bound: between them the thread may serve others."""

    def __init__(self, body: Iterable[bytes], binding: Binding) -> None:
        self._body = body
        self._binding = binding

    def __iter__(self) -> Iterator[bytes]:
        parts, end = iter(self._body), object()
        while True:
            with bound(self._binding):
                part: Any = next(parts, end)
            if part is end:
                return
            yield part

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            with bound(self._binding):
                close()
