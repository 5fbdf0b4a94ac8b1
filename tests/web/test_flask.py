"""The extension under real servers, and the WSGI middleware under it."""

import shutil
import signal
from pathlib import Path

import pytest

from tracker import Client, InvalidRecord, testing

from .conftest import needs
from .servers import UUID, Browser, eventually, listens, of

needs("flask")
needs("gunicorn")

SERVERS = {
    "gunicorn": ("-m", "gunicorn", "--no-control-socket", "-k", "gthread", "-w", "1", "flask_app:app", "-b", "unix:{}"),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_a_visitor_browses_and_signs_in_and_a_reload_loses_nothing(kind, run, sidecar, api, tmp_path):
    """The code changes while the collector does not answer: the process that ends keeps what it has tracked."""
    user, uuid = f"flask-{kind[:3]}", UUID[:-4] + "cccc"
    path = tmp_path / "f.sock"
    shutil.copy(Path(__file__).with_name("flask_app.py"), tmp_path)
    command = [part.format(path) for part in SERVERS[kind]]
    server = run(*command, env={"SIDECAR": sidecar.url}, cwd=tmp_path).until(lambda: listens(path))
    visitor = Browser(path, _snrs_uuid=uuid)
    assert visitor.get("/products/A-1").status == 200
    assert visitor.get(f"/login/{user}").status == 200
    eventually(lambda: len(of(api, user, uuid)) == 2)
    with sidecar.frozen():
        for sku in ("A-2", "A-3", "A-4"):  # the first is sent at once; the others wait in memory for its answer
            before = visitor.get(f"/products/{sku}").text
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: visitor.get("/pid").text != before)

    def reloaded():
        try:
            return visitor.get("/pid").text != before
        except OSError:  # the one that ends may have taken the connection, and the next may not listen yet
            return False

    eventually(reloaded)
    assert visitor.get("/products/A-5").status == 200
    assert server.end() < 20
    eventually(lambda: len(of(api, user, uuid)) == 6)
    entries = of(api, user, uuid)
    assert [entry.type for entry in entries] == ["product-view", "logged-in", *["product-view"] * 4]
    assert len({entry.profile.id for entry in entries}) == 1, "the login made one profile of the two"


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
