"""The example shop under real servers, and the rules of the app in this process."""

import os
import signal
import sys

import pytest

from tracker import testing

from .conftest import needs
from .servers import EXAMPLES, UUID, Browser, Process, eventually, listens, of

needs("django")
needs("gunicorn")
needs("uvicorn")

SHOP = EXAMPLES / "django_shop"
SERVERS = {
    "wsgi": ("-m", "gunicorn", "--no-control-socket", "-k", "gthread", "--threads", "4", "-w", "2", "shop.wsgi", "-b"),
    "asgi": ("-m", "uvicorn", "--log-level", "warning", "shop.asgi:application", "--uds"),
}
ACCOUNTS = """
import django
django.setup()
from django.core.management import call_command
from django.contrib.auth.models import User
call_command("migrate", verbosity=0)
for kind in ("wsgi", "asgi"):
    User.objects.create_user(kind, f"anna-{kind}@example.com", "secret")
"""


@pytest.fixture(scope="module")
def project(sidecar, tmp_path_factory):
    """The environment of a project with a database and an account for each server."""
    folder = tmp_path_factory.mktemp("p")
    env = {"TILLPOST_URL": sidecar.url, "SHOP_DB": str(folder / "shop.sqlite3")}
    env["DJANGO_SETTINGS_MODULE"] = "shop.settings"
    made = Process(folder / "made.log", "-c", ACCOUNTS, env=env, cwd=SHOP)
    assert made.process.wait(60) == 0, made.said
    return env


@pytest.mark.parametrize("kind", SERVERS)
def test_a_visitor_browses_signs_in_and_buys(kind, run, project, sidecar, api, tmp_path):
    email, uuid = f"anna-{kind}@example.com", UUID[:-4] + ("aaaa" if kind == "wsgi" else "bbbb")
    path = tmp_path / "d.sock"
    at = f"unix:{path}" if kind == "wsgi" else path
    server = run(*SERVERS[kind], at, env=project, cwd=SHOP).until(lambda: listens(path))

    anna, nobody = Browser(path, _snrs_uuid=uuid), Browser(path)
    assert nobody.get("/products/A-1").status == 200
    assert anna.get("/products/A-1").status == 200
    assert anna.get("/search?q=tea").json() == ["A-1"]
    assert anna.post("/login", username=kind, password="secret").status == 200
    assert anna.post("/cart", sku="A-1", quantity="2").status == 200
    assert anna.get("/search?q=mug").status == 200
    assert anna.post("/checkout", number=f"{kind}-1", sku="A-1", card="declined").status == 402
    assert anna.post("/checkout", number=f"{kind}-2", sku="A-1", quantity="2").status == 200
    eventually(lambda: len(of(api, email, uuid)) >= 6, what=f"{[e.raw for e in api.entries]}, {server.said}")
    with sidecar.frozen():
        for _ in range(3):  # the first is sent at once; the others wait in memory for its answer
            assert anna.get("/search?q=mug").status == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.is_waiting(), "for the collector"
    assert server.end() < 20
    eventually(lambda: len(of(api, email, uuid)) >= 9)
    assert server.said.count("a record was not kept: refused: nobody is signed in") == 1

    entries = of(api, email, uuid)
    assert [entry.type for entry in entries] == [
        "product-view", "searched", "logged-in", "added-to-cart", "searched", "transaction",
        *["searched"] * 3,
    ]  # fmt: skip
    assert len({entry.profile.id for entry in entries}) == 1, "the login made one profile of the two"
    assert b'"orderId":"%s-2"' % kind.encode() in entries[5].raw
    assert not any(f"{kind}-1".encode() in entry.raw for entry in api.entries), "declined, rolled back, never sent"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory):
    """The shop's project in this process, its database in memory."""
    import django

    if "DJANGO_SETTINGS_MODULE" not in os.environ:
        sys.path.insert(0, str(SHOP))
        os.environ |= {"DJANGO_SETTINGS_MODULE": "shop.settings", "SHOP_DB": ":memory:"}
        django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    from tracker.integrations.django import tracker

    return tracker


def test_records_of_a_transaction_leave_with_its_commit_and_never_after_a_rollback(shop):
    from django.db import transaction

    from tracker import bound_client

    with testing.capture_events() as tracked, bound_client(someone()):
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            shop.on_commit.custom(action="rolled.back")
            raise ZeroDivisionError
        with transaction.atomic():
            receipt = shop.on_commit.custom(action="kept")
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                shop.on_commit.custom(action="savepoint.rolled.back")
                raise ZeroDivisionError
            assert list(tracked) == []
            assert receipt.wait(0) is False
        assert receipt.durable
        shop.on_commit.using("default").custom(action="no.transaction")
        with pytest.raises(Exception, match=r"^action: "), transaction.atomic():
            shop.on_commit.custom(action="told at the call")
    assert [record["action"] for record in tracked] == ["kept", "no.transaction"]


def someone():
    from tracker import Client

    return Client(custom_id="C-1")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ON_EROR": print}, r"TILLPOST: ON_EROR: is no setting; did you mean TILLPOST: ON_ERROR\?"),
        ({"WHEN_FULL": "drop"}, "when_full: must be refuse"),
        ({"CLIENT_OF": "shop.tracking.nothing"}, "nothing"),
    ],
)
def test_a_wrong_setting_is_told_when_django_starts(shop, settings, said):
    from django.core.exceptions import ImproperlyConfigured
    from django.test import override_settings

    with pytest.raises(ImproperlyConfigured, match=said), override_settings(TILLPOST=settings):
        pytest.fail("must not get here")


def test_a_request_that_tracks_nothing_looks_at_no_session(shop):
    from django.http import HttpResponse
    from django.test import RequestFactory

    from tracker.integrations.django import ClientMiddleware

    class Request:
        META = {"HTTP_COOKIE": f"a=b; _snrs_uuid={UUID}"}  # noqa: RUF012

        @property
        def user(self):
            raise AssertionError("was looked at")

    seen = []
    ClientMiddleware(lambda request: HttpResponse())(Request())
    request = RequestFactory(HTTP_COOKIE=f"_snrs_uuid={UUID}").get("/")
    ClientMiddleware(lambda request: seen.append(shop.client) or HttpResponse())(request)
    assert [client.uuid for client in seen] == [UUID]
    assert shop.client is None


def test_without_the_app_the_tracker_says_what_is_missing():
    from tracker.integrations.django import DjangoTracker

    with pytest.raises(RuntimeError, match="INSTALLED_APPS"):
        DjangoTracker().searched(someone())
