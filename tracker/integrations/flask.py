"""Flask: an extension that is a tracker.

tracker = FlaskTracker(client_of=lambda: Client(custom_id=session["user_id"]) if "user_id" in session else None)

def create_app():
    app = Flask(__name__)
    app.config["TILLPOST_URL"] = "unix:///run/tillpost.sock"
    tracker.init_app(app)

@app.get("/products/<product_id>")
def product(product_id):
    tracker.product_view(product_id=product_id)
"""

from collections.abc import Callable
from typing import Final

from flask import Flask

from tracker.bound import ClientFinder
from tracker.clients import Client
from tracker.integrations.configure import ConfiguredTracker, options
from tracker.integrations.wsgi import ClientMiddleware

_PREFIX: Final = "TILLPOST_"


class FlaskTracker(ConfiguredTracker):
    """A tracker for a Flask application: settings from ``app.config``, the client of the request bound.

    The settings are the arguments of `Tracker` after ``TILLPOST_``: ``TILLPOST_URL``, ``TILLPOST_ON_ERROR``,
    ``TILLPOST_MAX_RECORDS``, ... One object, one process, one set of settings: the last `init_app` counts.

    Args:
        app: calls `init_app`.
        client_of: tells the signed-in client, or None; called within the request (``session``, ``current_user``)
            at its first record, if there is one. Without it, and where it says None, the client is the anonymous
            profile of the ``_snrs_uuid`` cookie.
    """

    _how = "call init_app(app)"

    def __init__(self, app: Flask | None = None, *, client_of: ClientFinder | None = None) -> None:
        self._client_of = client_of
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Reads the settings and binds the client of every request. Raises `InvalidRecord` for an unknown one."""
        found = app.config.get_namespace(_PREFIX, lowercase=False)
        self.configure(**options(found, prefix=_PREFIX))
        app.extensions["tillpost"] = self
        find = self._client_of
        client_of: Callable[[object], Client | None] | None = find and (lambda _: find())
        app.wsgi_app = ClientMiddleware(app.wsgi_app, client_of)  # type: ignore[method-assign]
