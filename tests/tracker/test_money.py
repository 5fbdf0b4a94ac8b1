import json
from decimal import Decimal, localcontext

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker import Client, InvalidRecord, Money, Product, Transaction

encode = msgspec.json.Encoder(decimal_format="number").encode
amounts = st.decimals(min_value=0, max_value=Decimal("1e12"), allow_nan=False, places=4)
quantities = st.one_of(st.integers(0, 10_000), st.decimals(min_value=0, max_value=1000, places=3))


@pytest.mark.parametrize(
    ("given", "wire"),
    [
        ("12.50", b"12.50"),
        (12, b"12"),
        (Decimal("0.1"), b"0.1"),
        (Decimal("1E+3"), b"1000"),
        (Decimal("-0"), b"0"),
        ("-0", b"0"),
        ("-0.00", b"0.00"),
        (0, b"0"),
        ("0.0000001", b"1E-7"),
    ],
)
def test_amounts_are_numbers_in_json(given, wire):
    assert encode(Money(given, "PLN")) == b'{"amount":' + wire + b',"currency":"PLN"}'


@pytest.mark.parametrize("amount", [12.5, 0.0, float("nan")])
def test_a_float_is_refused_with_the_reason(amount):
    with pytest.raises(InvalidRecord, match=r"amount: must not be a float, .* exactly .*Decimal") as refused:
        Money(amount, "PLN")
    assert refused.value.field == "amount"


@pytest.mark.parametrize("amount", ["-1", -1, Decimal("-0.01")])
def test_a_negative_amount_is_refused_and_the_message_says_what_a_return_is(amount):
    with pytest.raises(InvalidRecord, match=r"a return is a cancelled transaction"):
        Money(amount, "PLN")


@pytest.mark.parametrize(
    "amount",
    [
        *("", " ", "12,50", "1 000", "1_000", "1e3", "NaN", "Infinity", "12.", ".5", "+1", "١٢", "12.50\n", "zł 5"),
        *(Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal("1E+101"), Decimal("1E-101"), "9" * 101),
        *(None, True, b"1", 2**63),
    ],
)
def test_what_is_no_amount_is_refused(amount):
    with pytest.raises(InvalidRecord, match=r"^amount: must"):
        Money(amount, "PLN")


@pytest.mark.parametrize("currency", ["", "pln", "PL", "PLNN", "PL1", "ŁŁŁ", "PLN\n", None, 985])
def test_a_currency_has_three_letters(currency):
    with pytest.raises(InvalidRecord, match=r"currency: must be a three-letter ISO 4217 code"):
        Money(1, currency)


@given(st.lists(st.tuples(amounts, quantities), min_size=1, max_size=20))
def test_revenue_is_the_exact_sum_of_price_times_quantity(lines):
    sale = Transaction(
        Client(id=1),
        order_id="1",
        payment_method="CASH",
        source="POS",
        products=[Product(sku="A", name="A", quantity=q, final_unit_price=Money(p, "PLN")) for p, q in lines],
    )
    with localcontext(prec=500):
        expected = sum((p * q for p, q in lines), Decimal(0))
    assert sale.revenue is not None
    assert sale.revenue.amount == expected
    assert sale.value == sale.revenue


def test_revenue_is_not_rounded_where_python_would():
    """Python's own context keeps 28 digits."""
    line = Product(sku="A", name="A", quantity=1, final_unit_price=Money("0." + "1" * 40, "PLN"))
    whole = Product(sku="B", name="B", quantity=3, final_unit_price=Money("1" * 40, "PLN"))
    sale = Transaction(Client(id=1), order_id="1", payment_method="CASH", source="POS", products=[line, whole])
    assert str(sale.revenue.amount) == "3" * 40 + "." + "1" * 40


@given(amounts)
def test_an_amount_arrives_as_it_left(amount):
    sent = json.loads(encode(Money(amount, "EUR")), parse_float=Decimal, parse_int=Decimal)
    assert sent == {"amount": amount, "currency": "EUR"}
