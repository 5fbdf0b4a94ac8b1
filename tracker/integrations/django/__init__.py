"""Django: an app, a tracker that reads the settings, a middleware, and records that wait for the commit.

    INSTALLED_APPS = [..., "tracker.integrations.django"]
    MIDDLEWARE = [..., "tracker.integrations.django.ClientMiddleware"]  # after AuthenticationMiddleware
    TILLPOST = {"URL": "unix:///run/tillpost.sock", "CLIENT_OF": "shop.tracking.client_of"}

    from tracker.integrations.django import tracker

    def product(request, product_id):
        tracker.product_view(product_id=product_id)

`TILLPOST` takes the arguments of `Tracker` in capitals (`URL` is its target; functions may be dotted paths), and
`CLIENT_OF`: a function that makes a `Client` of a signed-in user, or None.
"""

from tracker.integrations.django.middleware import ClientMiddleware
from tracker.integrations.django.trackers import DjangoTracker, OnCommit, tracker

__all__ = ["ClientMiddleware", "DjangoTracker", "OnCommit", "tracker"]
