"""Settings: Tillpost is an app, a middleware and a dictionary."""

import os
from pathlib import Path

SECRET_KEY = os.environ.get("SECRET_KEY", "only-for-this-example")
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "shop.urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP_DB", Path(__file__).parents[1] / "shop.sqlite3"),
        "OPTIONS": {"timeout": 20},
    }
}
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "tracker.integrations.django",
    "shop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "tracker.integrations.django.ClientMiddleware",  # after authentication
]  # a real shop has CsrfViewMiddleware too

TILLPOST = {
    "URL": os.environ.get("TILLPOST_URL", "http://127.0.0.1:8787"),
    "CLIENT_OF": "shop.tracking.client_of",
    "ON_ERROR": "shop.tracking.on_error",
}
