"""A shop: product pages, a cart, a login that merges the anonymous profile, a checkout that waits for the disk."""

import os
from decimal import Decimal
from typing import Annotated

from fastapi import BackgroundTasks, Body, FastAPI, HTTPException
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request

from tracker import BoundTracker, Client, Money, Product
from tracker.integrations.fastapi import ClientMiddleware, Tracked

PRODUCTS = {"A-1": ("Tea", Decimal("12.50")), "B-9": ("Mug", Decimal("29.90"))}


def signed_in(connection: HTTPConnection) -> Client | None:
    """The customer of the session."""
    email = connection.session.get("email")
    return Client(email=email) if email else None


app = FastAPI()
app.add_middleware(ClientMiddleware, tracker=BoundTracker(), client_of=signed_in)  # TILLPOST_URL says where to
app.add_middleware(SessionMiddleware, secret_key=os.environ.get("SECRET_KEY", "only-for-this-example"))


@app.get("/products/{sku}")
async def product(sku: str, tracker: Tracked) -> dict[str, str]:
    """A product page: for the customer of the session, else for the anonymous profile of the cookie."""
    name, price = _found(sku)
    tracker.product_view(product_id=sku, name=name, source="WEB_DESKTOP")
    return {"sku": sku, "name": name, "price": str(price)}


@app.post("/cart")
def add_to_cart(
    sku: Annotated[str, Body()], tracker: Tracked, later: BackgroundTasks, quantity: Annotated[int, Body()] = 1
) -> dict[str, str]:
    """A view in a thread, and what it leaves for after the answer: the client is bound in both."""
    name, price = _found(sku)
    later.add_task(
        tracker.added_to_cart,
        sku=sku,
        name=name,
        quantity=quantity,
        final_unit_price=Money(price, "PLN"),
        source="WEB_DESKTOP",
    )
    return {"sku": sku}


@app.post("/login")
async def login(request: Request, email: Annotated[str, Body(embed=True)], tracker: Tracked) -> dict[str, str]:
    """Signs in (a real shop asks for more), and tells the API whose the anonymous profile was."""
    request.session["email"] = email
    tracker.login(Client(email=email), source="WEB_DESKTOP")
    return {"email": email}


@app.post("/checkout")
async def check_out(number: Annotated[str, Body()], sku: Annotated[str, Body()], tracker: Tracked) -> dict[str, object]:
    """A sale: the answer says whether it is on the collector's disk."""
    name, price = _found(sku)
    receipt = tracker.transaction(
        order_id=number,
        payment_method="CARD",
        source="WEB_DESKTOP",
        products=[Product(sku=sku, name=name, quantity=1, final_unit_price=Money(price, "PLN"))],
        salt=f"shop-{number}",
    )
    return {"number": number, "recorded": await receipt.durably(1.0)}


def _found(sku: str) -> tuple[str, Decimal]:
    if sku not in PRODUCTS:
        raise HTTPException(404)
    return PRODUCTS[sku]
