import pickle
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker import Client, InvalidRecord

UUID = "018f4c1e-8a7b-7c3d-9e21-5a0b6c7d8e9f"


def test_all_four_identifiers_travel_under_the_names_of_the_api():
    client = Client(id=7, uuid=UUID, custom_id="C-1", email="anna@example.com")
    assert msgspec.json.decode(msgspec.json.encode(client)) == {
        "id": 7,
        "uuid": UUID,
        "customId": "C-1",
        "email": "anna@example.com",
    }


def test_what_is_not_given_is_left_out():
    assert msgspec.json.encode(Client(custom_id="C-1")) == b'{"customId":"C-1"}'


def test_whitespace_around_an_identifier_is_trimmed_and_accents_stay():
    assert Client(custom_id="  Zoë\t").custom_id == "Zoë"
    assert Client(email=" anna@example.com \n").email == "anna@example.com"


def test_a_uuid_object_is_taken():
    assert Client(uuid=uuid.UUID(UUID)).uuid == UUID


@pytest.mark.parametrize(
    "email",
    [
        "anna@example.com",
        "a.b+c@x.co",
        '"quoted part"@example.com',
        "a@[127.0.0.1]",
        "zażółć@example.pl",
        "a@-b.pl",
    ],
)
def test_the_mail_addresses_the_api_takes_are_taken(email):
    assert Client(email=email).email == email


@pytest.mark.parametrize(
    "email",
    [
        "",
        "   ",
        "anna",
        "anna@",
        "@example.com",
        "anna@example",
        "an na@example.com",
        "anna@@example.com",
        "anna@example.com,b@c.pl",
        "anna@exämple.com",
        ".anna@example.com",
        "anna\ufeff@example.com",
        '"a\ufeff"@example.com',
        "anna\n@example.com",
    ],
)
def test_other_mail_addresses_are_refused(email):
    with pytest.raises(InvalidRecord) as refused:
        Client(email=email)
    assert refused.value.field == "email"
    assert refused.value.value == email


@pytest.mark.parametrize("text", [UUID.upper(), UUID[:-1], UUID.replace("-", ""), f"{{{UUID}}}", "x" + UUID[1:]])
def test_a_uuid_in_another_form_is_refused(text):
    with pytest.raises(InvalidRecord, match=r"uuid: must be lower-case .* 8-4-4-4-12"):
        Client(uuid=text)


@pytest.mark.parametrize(
    "character", ["\r", "\n", "\u2028", "\u2029", "\u00ad", "\ufe00", "\ufe0f", "\x00", "\U0001f600"]
)
@pytest.mark.parametrize("field", ["custom_id", "email", "uuid"])
def test_characters_the_api_forbids_are_refused(field, character):
    value = {"custom_id": f"a{character}b", "email": f'"a{character}b"@x.pl', "uuid": UUID[:8] + character + UUID[9:]}
    with pytest.raises(InvalidRecord, match=f"{field}: "):
        Client(**{field: value[field]})


def test_a_lone_surrogate_is_refused():
    with pytest.raises(InvalidRecord, match=r"custom_id: .*surrogate"):
        Client(custom_id="a\ud800b")


def test_a_client_without_identifier_is_refused():
    with pytest.raises(InvalidRecord, match=r"at least one of id, uuid, custom_id, email"):
        Client()


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, True, "7", 7.0])
def test_an_id_is_a_whole_number_of_64_bits(value):
    with pytest.raises(InvalidRecord, match=r"^id: "):
        Client(id=value)


@pytest.mark.parametrize("field", ["uuid", "custom_id", "email"])
def test_an_identifier_of_another_type_is_refused(field):
    with pytest.raises(InvalidRecord, match=f"{field}: must be a string, not int"):
        Client(**{field: 7})


@given(st.text())
def test_whatever_is_refused_is_not_in_the_message(text):
    """Messages end in logs, and identifiers must not."""
    secret = f"secret-{text}@"
    with pytest.raises(InvalidRecord) as refused:
        Client(email=secret)
    assert "secret" not in str(refused.value) + repr(refused.value)
    assert refused.value.value == secret
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


def test_a_client_shows_no_identifier():
    client = Client(email="anna@example.com", id=4711)
    assert repr(client) == str(client) == "Client(id=…, email=…)"
    assert "anna" not in repr(client.__rich_repr__())
