"""Profiles as ``POST /v4/clients/batch`` takes them (API.md 8): checks and upsert."""

import re
from datetime import UTC, date, datetime
from typing import Any, Final

from collector.testing.rules import Problem, Record, has_forbidden_characters, is_email, is_uuid
from collector.testing.store import Identifier, Store

AGREEMENTS: Final = frozenset({"email", "sms", "push", "webPush", "webpush", "bluetooth", "rfid", "wifi"})
_AGREED: Final = (True, False, "true", "True", "false", "False")
_TEXTS: Final = (
    "firstName", "lastName", "company", "city", "address", "zipCode", "province", "avatarUrl", "displayName",
    "countryCode",
)  # fmt: skip
_SEXES: Final = ("FEMALE", "MALE", "NOT_SPECIFIED", "OTHER")
_RESERVED: Final = frozenset(
    """email clientId phone customId uuid firstName lastName displayName company address city province zipCode
    countryCode birthDate sex avatarUrl anonymous agreements tags businessProfileId time ip source newsletter_agreement
    custom_identify firstname lastname created updated last_activity_date birthdate external_avatar_url displayname
    receive_smses receive_push_messages receive_webpush_messages receive_btooth_messages receive_rfid_messages
    receive_wifi_messages confirmation_hash ownerId anonymous_type country_id geo_loc_city geo_loc_country geo_loc_as
    geo_loc_country_code geo_loc_isp geo_loc_lat geo_loc_lon geo_loc_org geo_loc_query geo_loc_region
    geo_loc_region_name geo_loc_status geo_loc_timezone geo_loc_zip club_card_id type confirmed facebookId status
    deletedAt""".split()  # noqa: SIM905 - a list of 68 would be a page
)
_PHONE = re.compile(r"\+[0-9 \-()/]{6,19}|[0-9 \-()/]{6,20}", re.ASCII)
_BIRTH_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_NAME_FORBIDDEN = re.compile("[\r\n\u2028\u2029\u00ad\x00\ufe00-\ufe0f]")


def check_profile(record: Any) -> list[Problem]:
    """Problems of one profile; null resets a field and is legal here, an empty string is not."""
    if type(record) is not dict:
        return [Problem("", "must be an object", record)]
    problems = [Problem(key, "must not be empty", "") for key, value in record.items() if value == ""]
    if not any(record.get(key) is not None for key in ("email", "phone", "customId", "uuid", "clientId")):
        problems.append(Problem("", "needs one of email, phone, customId, uuid, clientId"))
    for key, is_good in (("email", is_email), ("uuid", is_uuid), ("customId", _is_id), ("phone", _is_phone)):
        value = record.get(key)
        if value and (type(value) is not str or has_forbidden_characters(value) or not is_good(value)):
            problems.append(Problem(key, "is not well-formed", value))
    if record.get("clientId") is not None and type(record["clientId"]) is not int:
        problems.append(Problem("clientId", "must be an int64", record["clientId"]))
    for key in _TEXTS:
        value = record.get(key)
        if value is not None and (type(value) is not str or "\x00" in value):
            problems.append(Problem(key, "must be a string", value))
    if record.get("sex") is not None and record["sex"] not in _SEXES:
        problems.append(Problem("sex", "must be one of " + ", ".join(_SEXES), record["sex"]))
    if record.get("birthDate") is not None and not _is_birth_date(record["birthDate"]):
        problems.append(Problem("birthDate", "must be yyyy-mm-dd, from 1900-01-01 to today", record["birthDate"]))
    _check_agreements(record.get("agreements"), problems)
    _check_attributes(record.get("attributes"), problems)
    tags = record.get("tags")
    if tags is not None and (type(tags) is not list or not all(type(tag) is str and tag for tag in tags)):
        problems.append(Problem("tags", "must be an array of strings", tags))
    return problems


def upsert(store: Store, record: Record) -> None:
    """Creates or updates the profile a checked record names; left out is unchanged, null is reset."""
    keys: list[Identifier] = [
        ("id" if key == "clientId" else key, record[key].strip() if type(record[key]) is str else record[key])
        for key in ("clientId", "uuid", "customId", "email")
        if record.get(key) is not None
    ]
    if not keys:
        keys = [("phone", record["phone"].strip())]  # it identifies only when alone
    if len(keys) == 1 and keys[0][0] == "id" and store.find(keys[0]) is None:
        return  # clientId is for updates only: accepted, and nothing happens
    attributes = store.resolve(keys).attributes
    custom = {key: value for key, value in (record.get("attributes") or {}).items() if key not in _RESERVED}
    native = {key: value for key, value in record.items() if key not in ("attributes", "clientId")}
    for key, value in (*native.items(), *custom.items()):
        if value is None:
            attributes.pop(key, None)
        elif key == "agreements":
            attributes[key] = {**attributes.get(key, {}), **value}
        else:
            attributes[key] = value


def _check_agreements(agreements: Any, problems: list[Problem]) -> None:
    if agreements is None:
        return
    if type(agreements) is not dict:
        problems.append(Problem("agreements", "must be an object", agreements))
        return
    for key, value in agreements.items():
        if key not in AGREEMENTS:
            problems.append(Problem(f"agreements.{key}", "is not a known agreement", value))
        elif value is not None and (type(value) is float or value not in _AGREED):  # 1 and 0 equal True and False
            problems.append(Problem(f"agreements.{key}", "must be true or false", value))


def _check_attributes(attributes: Any, problems: list[Problem]) -> None:
    if attributes is None:
        return
    if type(attributes) is not dict:
        problems.append(Problem("attributes", "must be an object", attributes))
        return
    for key, value in attributes.items():
        if not key or _NAME_FORBIDDEN.search(key):
            problems.append(Problem("attributes", "has a name with forbidden characters", key))
        elif value == "":
            problems.append(Problem(f"attributes.{key}", "must not be empty", ""))


def _is_id(value: str) -> bool:
    return bool(value.strip())


def _is_phone(value: str) -> bool:
    return _PHONE.fullmatch(value) is not None


def _is_birth_date(value: Any) -> bool:
    if type(value) is not str or not _BIRTH_DATE.fullmatch(value):
        return False
    try:
        day = date.fromisoformat(value)
    except ValueError:
        return False
    return date(1900, 1, 1) <= day <= datetime.now(UTC).date()
