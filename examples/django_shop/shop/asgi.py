"""For uvicorn and other ASGI servers: ``uvicorn shop.asgi:application``.

Such servers end by a signal, after which nothing registered with `atexit` runs, and Django knows no lifespan: what is
in memory then is flushed by what is around it here.
"""

import os

from django.core.asgi import get_asgi_application

from tracker.integrations.asgi import FlushAtShutdown
from tracker.integrations.django import tracker

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
application = FlushAtShutdown(get_asgi_application(), tracker)
