"""Views: none of them passes a client around."""

from decimal import Decimal

from django.contrib.auth import authenticate, login
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_POST

from shop.models import Order
from tracker import Money, Product
from tracker.integrations.django import tracker

PRODUCTS = {"A-1": ("Tea", Decimal("12.50")), "B-9": ("Mug", Decimal("29.90"))}


class Declined(Exception):
    """The bank said no."""


def product(request: HttpRequest, sku: str) -> HttpResponse:
    """A product page: for the signed-in customer, else for the anonymous profile of the web tracker's cookie."""
    name, price = _found(sku)
    tracker.product_view(product_id=sku, name=name, source="WEB_DESKTOP", url=request.build_absolute_uri())
    return JsonResponse({"sku": sku, "name": name, "price": str(price)})


async def search(request: HttpRequest) -> HttpResponse:
    """An asynchronous view: nothing is awaited, for nothing waits."""
    query = request.GET.get("q", "")
    tracker.searched(source="WEB_DESKTOP", params={"query": query})
    return JsonResponse([sku for sku, (name, _) in PRODUCTS.items() if query.lower() in name.lower()], safe=False)


@require_POST
def sign_in(request: HttpRequest) -> HttpResponse:
    """Signs in, and tells the API that the anonymous profile of this browser is this customer."""
    user = authenticate(request, username=request.POST["username"], password=request.POST["password"])
    if user is None:
        return JsonResponse({"error": "unknown"}, status=403)
    login(request, user)
    tracker.login(tracker.client_of(user), source="WEB_DESKTOP")
    return JsonResponse({"user": user.username})


@require_POST
def add_to_cart(request: HttpRequest) -> HttpResponse:
    """Puts a product into the cart."""
    sku, quantity = request.POST["sku"], int(request.POST.get("quantity", "1"))
    name, price = _found(sku)
    tracker.added_to_cart(
        sku=sku, name=name, quantity=quantity, final_unit_price=Money(price, "PLN"), source="WEB_DESKTOP"
    )
    return JsonResponse({"sku": sku, "quantity": quantity})


@require_POST
def check_out(request: HttpRequest) -> HttpResponse:
    """Stores an order and takes the money. What is declined is rolled back, and its event with it."""
    number, sku, quantity = request.POST["number"], request.POST["sku"], int(request.POST.get("quantity", "1"))
    name, price = _found(sku)
    try:
        with transaction.atomic():
            order = Order.objects.create(number=number, sku=sku, quantity=quantity)
            tracker.on_commit.transaction(
                order_id=number,
                payment_method="CARD",
                source="WEB_DESKTOP",
                products=[Product(sku=sku, name=name, quantity=quantity, final_unit_price=Money(price, "PLN"))],
                salt=f"shop-{number}",  # the order is its natural key
            )
            pay(order, request.POST.get("card", ""))
    except Declined:
        return JsonResponse({"error": "declined"}, status=402)
    return JsonResponse({"number": number})


def pay(order: Order, card: str) -> None:
    """Stands for the bank."""
    if card == "declined":
        raise Declined
    order.paid = True
    order.save()


def _found(sku: str) -> tuple[str, Decimal]:
    try:
        return PRODUCTS[sku]
    except KeyError:
        raise Http404(sku) from None
