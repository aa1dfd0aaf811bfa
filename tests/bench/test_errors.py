"""What a user may type or a file may hold is told back inert, in a few lines, and never as a traceback."""

import time

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.errors import CombinedError, UserError, inert, there
from bench.suite.conditions import parse as condition
from bench.suite.model import parse_suite
from bench.suite.settings import parse_settings

HEAD = "suite: s\nworkload: stream\n"


def refusal(text):
    with pytest.raises(UserError) as caught:
        parse_suite((HEAD + text).encode(), "s.yaml")
    return str(caught.value)


@pytest.mark.parametrize("text", ["1_.5", "1__e5", "1__5", "1_", "_1", "1_e5", "1e5_0", "1._5"])
def test_underscores_that_part_no_digits_make_a_word(text):
    assert parse_settings([f"x={text}"]) == {"x": text}


@pytest.mark.parametrize(
    ("text", "number"), [("1_000", 1000), ("1_000.5", 1000.5), ("-1_0e2", -1000.0), (".5", 0.5), ("1.", 1.0)]
)
def test_underscores_between_digits_make_a_number(text, number):
    assert parse_settings([f"x={text}"]) == {"x": number}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (r'defaults: {x: "\UFFFFFFFF"}', "the number of no character"),
        (r'defaults: {x: "\U00110000"}', "the number of no character"),
        (r'defaults: {x: "\ud800"}', "half a character"),
        (r'defaults: {"\udfff": 1}', "half a character"),
        (f"defaults: {{x: 'sink 4+{'9' * 5000}'}}", "more than 400 digits in a row"),
        (f"defaults: {{x: sink 4+{'9' * 5000}}}", "more than 400 digits in a row"),
        (f"memory_limit: {10**30}", "should be less than or equal to 1152921504606846976"),
        ("memory_limit: 1e300", "should be"),
        (f"memory_limit: {'9' * 400}GiB", "memory_limit: should be"),
        ("memory_limit: 1__0GiB", "is not a size"),
    ],
)
def test_values_that_cannot_be(text, told):
    message = refusal(text)
    assert told in message
    assert "sys." not in message  # Python's advice is for programmers
    assert len(message) < 1000


def test_a_setting_that_is_no_text():
    with pytest.raises(UserError, match="not UTF-8 text"):
        parse_settings(["x=\udcff"])  # a byte that the command line could not decode


@pytest.mark.parametrize("value", ["[" * 100_000, "{a: " * 50_000, "- " * 50_000, '"' + "x" * 100_000])
def test_a_huge_value_is_refused_in_a_few_lines(value):
    with pytest.raises(UserError) as caught:
        parse_settings([f"x={value}"])
    assert len(str(caught.value)) < 2000


def test_conditions_with_many_stars_do_not_go_back():
    started = time.process_time()
    for stars in ("*" * 5000 + "b", "a*" * 5000 + "b", "*a" * 20 + "*b"):
        assert not condition(stars).holds(["a" * 10_000])
    assert time.process_time() - started < 10  # a regular expression does not end


@pytest.mark.parametrize(
    ("glob", "text", "fits"),
    [
        ("sink *", "sink 4+28", True),
        ("*", "", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*b*", "abc", True),
        ("a*b*c", "acbc", True),
        ("a*b*c", "acb", False),
        ("a**c", "abc", True),
        ("*ab*b", "ab", False),
    ],
)
def test_globs(glob, text, fits):
    assert condition(glob).holds([text]) is fits


def test_errors_obey_nobody():
    shown = str(UserError("a\x1b[31m\x07b\u202ec\ud800", hint="\x9b2J", where="x\n:1:1"))
    assert shown == "x\\n:1:1: a\\x1b[31m\\x07b\\u202ec\\ud800\n  hint: \\x9b2J"
    many = str(CombinedError([UserError("\x1b]0;"), UserError("b")]))
    assert many == "\\x1b]0;\nb"
    assert inert("Ünïcode · → 漢字") == "Ünïcode · → 漢字"
    cut = str(UserError("x" * 100_000 + "end"))
    assert len(cut) < 1000
    assert cut.endswith("end")


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        [LONG],
        ["plan", LONG],
        ["plan", f"{LONG}/{LONG}"],
        ["plan", "a\x1b[2Jb"],
        ["plan", "suites/smoke.yaml", "--only", LONG * 100],
        ["plan", "suites/smoke.yaml", "--only", "*" * 5000 + "z"],
        ["plan", "suites/smoke.yaml", "--set", "x=" + "[" * 50_000],
        ["plan", "suites/smoke.yaml", "--set", "\x1b[31m=1"],
        ["plan", "suites/smoke.yaml", "--\x1b[31mred"],
        ["\x1b[31mred"],
        ["report", LONG],
        ["report", "a\x00b"],
        ["compare", LONG, LONG],
        ["history", LONG],
        ["publish", LONG, LONG],
        ["gate", "suites/smoke.yaml", "--baseline", LONG],
        ["gate", "suites/smoke.yaml", "--against", LONG],
        ["gate", "suites/smoke.yaml", "--against", "HEAD", "--noise", LONG],
        ["gate", "suites/smoke.yaml", "--baseline", "a", "--export", f"junit={LONG}/x"],
        ["run", "suites/smoke.yaml", "--results", LONG],
        ["label", LONG],
        ["verify", LONG],
        ["generate", LONG],
        ["plan", "suites/smoke.yaml", "--set", f"corpus=txt:{LONG}"],
    ],
)
def test_every_command_answers_in_a_sentence(words):
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (2, 3)
    said = done.output + (done.stderr or "")
    assert "Traceback" not in said
    assert "\x1b" not in said
    assert "\x00" not in said
    assert len(said) < 6000


def test_what_cannot_be_a_name_is_not_there(tmp_path):
    assert there(tmp_path)
    assert not there(tmp_path / LONG)
    assert not there("a\x00b")
    assert not there("\ud800")
