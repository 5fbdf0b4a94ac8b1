"""For uvicorn and other ASGI servers: ``uvicorn shop.asgi:application``.

Django knows no lifespan, so Tillpost's middleware around it says when the server shuts down.
"""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
application = get_asgi_application()
