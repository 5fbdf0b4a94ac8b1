"""The table of switches: from Python and from text, with errors that help."""

from typing import Any

import pytest

from collector.testing import FakeUpstream, Switches


def test_switches_come_from_text_as_from_python() -> None:
    text = {"one_mb": "1048576", "basic": "false", "denied": "a, b", "bad_transactions": "207", "max_rate": "2.5"}
    values = {"one_mb": 1048576, "basic": False, "denied": {"a", "b"}, "bad_transactions": 207, "max_rate": 2.5}
    assert Switches.from_strings(text) == Switches.of(values)
    assert Switches.from_strings({}) == Switches()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("one_mbb", "1", "unknown switch 'one_mbb'; did you mean one_mb?"),
        ("zzz", "1", "known: token_life_s"),
        ("one_mb", "much", "switch one_mb: Expected `int`, got `str`; a whole number"),
        ("nulls", "keep", "refuse or ignore"),
        ("basic", "maybe", "true or false"),
        ("token_life_s", "0", "switch token_life_s"),
    ],
)
def test_a_wrong_switch_is_named_with_its_positions(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Switches.from_strings({name: text})
    assert message in str(caught.value)


def test_a_wrong_keyword_argument_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="did you mean error_shape"):
        FakeUpstream(error_shap="bare")
    wrong: dict[str, Any] = {"basic": "false"}
    with pytest.raises(ValueError, match="switch basic: Expected `bool`"):
        FakeUpstream(**wrong)


def test_the_table_has_a_row_with_a_meaning_for_every_switch() -> None:
    rows = Switches.table()
    assert [row[0] for row in rows] == list(Switches.__struct_fields__)
    assert all(positions and meaning for _, _, positions, meaning in rows)
    assert ("nulls", "refuse", "refuse or ignore") in [row[:3] for row in rows]
