"""``--set``: values as suites read them, and there and back again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UserError
from bench.suite.model import parse_suite
from bench.suite.settings import as_setting, parse_settings

WRITTEN = [
    "no",
    "off",
    "010",
    "1:30",
    "1_024",
    "1e-3",
    "0x10",
    "",
    "~",
    "true",
    "[1, no]",
    "sink 4+28",
    "'3'",
    "2026-01-01",
]


@pytest.mark.parametrize("text", WRITTEN)
def test_a_value_is_what_it_is_in_a_suite(text):
    suite = parse_suite(
        f"suite: a\nworkload: b\ndefaults: {{}}\ngrid:\ninclude:\n  - key: {text}\n".encode(), "a"
    )
    assert parse_settings([f"key={text}"]) == dict(suite.include[0])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a=[1", "--set a=[1: not valid YAML"),
        ("a=b: c", "mapping values are not allowed here, character 2 of the value"),
        ("a=!!python/none x", "the tag !!python/none is not allowed; no tag is, character 1 of the value"),
        ("a=1\nb: 2", "more than one value"),
        ("a=.inf", "is not a finite number, character 1 of the value"),
        ("a{=1", "not of the form key=value"),
    ],
)
def test_what_is_no_value_is_refused_with_its_place(text, told):
    with pytest.raises(UserError) as caught:
        parse_settings([text])
    assert told in str(caught.value)


def test_nothing_is_set_twice():
    with pytest.raises(UserError, match="--set a is given twice"):
        parse_settings(["a=1", "a=2"])


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


@given(SCALARS | st.lists(SCALARS, max_size=3))
def test_a_command_line_that_is_printed_sets_the_same_value(value):
    assert parse_settings([as_setting("key", value)]) == {"key": value}
