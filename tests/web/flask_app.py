"""A Flask application whose tracker is made at import, before any fork. Run by test_flask."""

import os

from flask import Flask, session

from tracker import Client
from tracker.integrations.flask import FlaskTracker

tracker = FlaskTracker(client_of=lambda: Client(custom_id=session["user"]) if "user" in session else None)
app = Flask("shop")
app.secret_key = "k"
app.config |= {"TILLPOST_URL": os.environ["SIDECAR"], "TILLPOST_CLOSE_TIMEOUT": 25}  # a loaded machine is slow
tracker.init_app(app)


@app.get("/pid")
def pid():
    return str(os.getpid())


@app.get("/products/<sku>")
def product(sku):
    tracker.product_view(product_id=sku)
    return str(os.getpid())


@app.get("/login/<user>")
def login(user):
    session["user"] = user
    tracker.login(Client(custom_id=user))
    return user
