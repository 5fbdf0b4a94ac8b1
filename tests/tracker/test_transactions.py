import json
from decimal import Decimal

import pytest

from tracker import Client, InvalidRecord, MissingArgument, Money, Product, Tracker, Transaction
from tracker.testing import FrozenClock, capture_events, numbered_salts

ANNA = Client(custom_id="C-1")
TEA = Product(sku="A-1", name="Tea", quantity=2, final_unit_price=Money("12.50", "PLN"))
SALE = {"order_id": "T-07/000123", "payment_method": "CASH", "source": "POS", "products": [TEA]}


def sale(**more: object) -> dict[str, object]:
    with capture_events(clock=FrozenClock(), salts=numbered_salts()) as tracked:
        tracked.tracker.transaction(ANNA, **{**SALE, **more})
    assert tracked.transactions == tracked
    return tracked[0]


def test_a_sale_reaches_the_wire_in_the_words_of_the_api():
    assert sale() == {
        "client": {"customId": "C-1"},
        "orderId": "T-07/000123",
        "recordedAt": "2026-05-04T09:53:56.999Z",
        "eventSalt": "salt-1",
        "source": "POS",
        "paymentInfo": {"method": "CASH"},
        "revenue": {"amount": 25, "currency": "PLN"},
        "value": {"amount": 25, "currency": "PLN"},
        "products": [
            {"sku": "A-1", "name": "Tea", "quantity": 2, "finalUnitPrice": {"amount": 12.5, "currency": "PLN"}}
        ],
    }


def test_every_optional_field_reaches_the_wire():
    money = Money("1.10", "PLN")
    on_wire = {"amount": 1.1, "currency": "PLN"}
    line = Product(
        sku="B",
        name="Mug",
        quantity="0.5",
        final_unit_price=money,
        regular_price=money,
        net_unit_price=money,
        discount_price=money,
        discount_percent=Decimal("12.5"),
        tax=23,
        url="https://shop.example/mug",
        image="https://shop.example/mug.png",
        categories=["Kitchen"],
        extra={"serial": "77", "parts": [1, 2]},
    )
    record = sale(
        products=[TEA, line],
        revenue=Money(30, "PLN"),
        value=Money("24.39", "PLN"),
        discount_amount=money,
        metadata={"storeId": "W-3"},
        salt="T-07/000123",
    )
    assert record["products"][1] == {
        "sku": "B",
        "name": "Mug",
        "quantity": 0.5,
        "finalUnitPrice": on_wire,
        "regularPrice": on_wire,
        "netUnitPrice": on_wire,
        "discountPrice": on_wire,
        "discountPercent": 12.5,
        "tax": 23,
        "url": "https://shop.example/mug",
        "image": "https://shop.example/mug.png",
        "categories": ["Kitchen"],
        "serial": "77",
        "parts": [1, 2],
    }
    assert record["revenue"] == {"amount": 30, "currency": "PLN"}
    assert record["value"] == {"amount": 24.39, "currency": "PLN"}
    assert record["discountAmount"] == on_wire
    assert record["metadata"] == {"storeId": "W-3"}
    assert record["eventSalt"] == "T-07/000123"


def test_value_follows_a_revenue_that_is_given():
    assert sale(revenue=Money(30, "PLN"))["value"] == {"amount": 30, "currency": "PLN"}


def test_none_means_not_given():
    nothing = dict.fromkeys(["revenue", "value", "discount_amount", "metadata", "time", "salt"])
    assert "null" not in json.dumps(sale(**nothing))


@pytest.mark.parametrize("name", SALE)
def test_a_required_argument_left_out_or_none_is_refused(name):
    with pytest.raises(InvalidRecord, match=f"^{name}: is required"):
        Transaction(ANNA, **{**SALE, name: None})
    with pytest.raises(MissingArgument, match=f"^{name}: is required"):
        Tracker().transaction(ANNA, **{key: value for key, value in SALE.items() if key != name})


@pytest.mark.parametrize("name", ["sku", "name", "quantity", "final_unit_price"])
def test_a_product_needs_its_fields(name):
    fields = {"sku": "A", "name": "Tea", "quantity": 1, "final_unit_price": Money(1, "PLN"), name: None}
    with pytest.raises(InvalidRecord, match=f"^{name}: is required"):
        Product(**fields)


@pytest.mark.parametrize(
    ("products", "field"),
    [
        ([], "products"),
        (None, "products"),
        ("A-1", "products"),
        ({"sku": "A"}, "products"),
        ([TEA, {"sku": "A"}], "products[1]"),
        (7, "products"),
    ],
)
def test_products_are_a_list_of_at_least_one_product(products, field):
    with pytest.raises(InvalidRecord) as refused:
        Transaction(ANNA, **{**SALE, "products": products})
    assert refused.value.field == field


def test_products_may_come_from_a_generator():
    assert len(Transaction(ANNA, **{**SALE, "products": (line for line in [TEA, TEA])}).products) == 2


EURO = Money(1, "EUR")
EURO_LINE = Product(sku="A", name="Tea", quantity=1, final_unit_price=EURO)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"products": [TEA, EURO_LINE]}, r"products\[1\]\.final_unit_price\.currency"),
        ({"revenue": EURO}, r"revenue\.currency"),
        ({"value": EURO}, r"value\.currency"),
        ({"discount_amount": EURO}, r"discount_amount\.currency"),
    ],
)
def test_all_amounts_of_a_sale_share_one_currency(more, field):
    with pytest.raises(InvalidRecord, match=f"^{field}: must be PLN"):
        Transaction(ANNA, **{**SALE, **more})


@pytest.mark.parametrize("name", ["regular_price", "net_unit_price", "discount_price"])
def test_all_amounts_of_a_product_share_one_currency(name):
    with pytest.raises(InvalidRecord, match=rf"^{name}\.currency: must be PLN"):
        Product(sku="A", name="Tea", quantity=1, final_unit_price=Money(1, "PLN"), **{name: EURO})


def test_a_discount_is_more_than_nothing():
    with pytest.raises(InvalidRecord, match=r"^discount_amount: must be more than 0, or be left out"):
        Transaction(ANNA, **SALE, discount_amount=Money(0, "PLN"))


@pytest.mark.parametrize("name", ["discount_percent", "tax"])
@pytest.mark.parametrize("value", [-1, float("nan"), "5", True])
def test_a_percentage_is_a_number_of_0_or_more(name, value):
    with pytest.raises(InvalidRecord, match=f"^{name}: must be"):
        Product(sku="A", name="Tea", quantity=1, final_unit_price=EURO, **{name: value})


@pytest.mark.parametrize("quantity", [1.5, -1, "-2", True, "a", Decimal("Infinity")])
def test_a_quantity_is_exact_and_not_negative(quantity):
    with pytest.raises(InvalidRecord, match=r"^quantity: must"):
        Product(sku="A", name="Tea", quantity=quantity, final_unit_price=EURO)


def test_a_free_key_of_a_product_that_has_an_argument_is_refused():
    with pytest.raises(InvalidRecord, match=r"^extra\.finalUnitPrice: has an argument of its own: give final_unit"):
        Product(sku="A", name="Tea", quantity=1, final_unit_price=EURO, extra={"finalUnitPrice": 1})


@pytest.mark.parametrize("value", [{"a": None}, {"a": float("nan")}, [1], {1: 2}])
def test_metadata_and_extra_hold_what_json_can_say(value):
    with pytest.raises(InvalidRecord, match=r"^metadata"):
        Transaction(ANNA, **SALE, metadata=value)
    with pytest.raises(InvalidRecord, match=r"^extra"):
        Product(sku="A", name="Tea", quantity=1, final_unit_price=EURO, extra=value)


def test_transactions_show_no_values():
    transaction = Transaction(ANNA, **SALE)
    assert "T-07" not in repr(transaction) + repr(transaction.__rich_repr__()) + repr(TEA)
