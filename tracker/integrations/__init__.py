"""Tillpost in web frameworks, a module each; import the one you use.

* django, flask, fastapi, starlette: the whole of it for that framework
* asgi, wsgi: middlewares for everything else
* celery: events that outlive the children of a worker
* outbox: records in the application's own database transaction
* configure: trackers that get their settings when the application is made
"""
