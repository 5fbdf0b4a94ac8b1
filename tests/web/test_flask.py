"""The extension, and the WSGI middleware under it."""

import pytest

from tracker import Client, InvalidRecord, testing

from .conftest import needs
from .servers import UUID

needs("flask")


@pytest.fixture
def tracker():
    from flask import session

    from tracker.integrations.flask import FlaskTracker

    return FlaskTracker(client_of=lambda: Client(custom_id=session["user"]) if "user" in session else None)


@pytest.fixture
def app(tracker):
    from flask import Flask, session, stream_with_context

    app = Flask("shop")
    app.secret_key = "k"
    app.config |= {"TILLPOST_URL": "http://127.0.0.1:9", "TILLPOST_MAX_RECORDS": 7}
    tracker.init_app(app)

    @app.get("/products/<sku>")
    def product(sku):
        tracker.product_view(product_id=sku)
        return sku

    @app.get("/login/<user>")
    def login(user):
        session["user"] = user
        tracker.login(Client(custom_id=user))
        return user

    @app.get("/stream")
    def stream():
        def parts():
            tracker.searched()
            yield "a"
            tracker.searched()
            yield "b"

        return stream_with_context(parts())

    return app


def test_views_track_for_the_signed_in_client_else_for_the_cookies_profile(app):
    with testing.capture_events() as tracked, app.test_client() as browser:
        browser.set_cookie("_snrs_uuid", UUID)
        browser.get("/products/A-1")
        browser.get("/login/anna")
        browser.get("/products/A-1")
        assert browser.get("/stream").text == "ab"
    clients = [(record["type"], record["client"]) for record in tracked]
    assert clients == [
        ("product-view", {"uuid": UUID}),
        ("logged-in", {"uuid": UUID, "customId": "anna"}),
        ("product-view", {"customId": "anna"}),
        ("searched", {"customId": "anna"}),
        ("searched", {"customId": "anna"}),
    ]


def test_the_settings_are_the_trackers_arguments(app, tracker):
    from flask import Flask

    assert tracker._account.max_records == 7
    assert app.extensions["tillpost"] is tracker
    wrong = Flask("wrong")
    wrong.config["TILLPOST_MAX_RECORD"] = 1
    with pytest.raises(InvalidRecord, match=r"TILLPOST_MAX_RECORD: is no setting; did you mean TILLPOST_MAX_RECORDS\?"):
        tracker.init_app(wrong)


def test_before_init_app_the_tracker_says_what_is_missing(tracker):
    with pytest.raises(RuntimeError, match=r"call init_app\(app\)"):
        tracker.searched(Client(custom_id="C-1"))
