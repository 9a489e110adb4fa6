"""Spec files from strangers: plain ones are read, all others are refused in one sentence."""

import contextlib
import json
import os
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, PositiveInt

from planner.errors import SpecError
from planner.specs.model import ModelSpec
from planner.specs.parse import parse_json, parse_yaml, shown
from planner.specs.read import MAX_FILE_BYTES, read_mapping, validate
from planner.specs.record import Record


class Wheel(Record):
    spokes: PositiveInt = Field(le=100)


class Bicycle(Record):
    name: str
    gears: PositiveInt = 1
    weight_kg: float | None = None
    folds: bool = False
    front: Wheel | None = None
    spare: tuple[Wheel, ...] = ()
    prices: dict[str, float] = Field(default_factory=dict)


def written(tmp_path, text, name="spec.yaml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(action, *arguments):
    with pytest.raises(SpecError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert message.isprintable() or "\nhint: " in message
    assert len(message) < 700
    return message


# --- what is read -------------------------------------------------------------------------------


def test_plain_yaml_is_read(tmp_path):
    text = "a: 1\nb: [x, 'y', 2.5]\nc: {d: true, e: null}\n# comment\nf: >-\n  two\n  lines\n"
    assert read_mapping(written(tmp_path, text)) == {
        "a": 1,
        "b": ["x", "y", 2.5],
        "c": {"d": True, "e": None},
        "f": "two lines",
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e12", 1e12),
        ("1.5e-3", 1.5e-3),
        (".5", 0.5),
        ("-7", -7),
        ("1_000_000", 1_000_000),
        ("no", "no"),
        ("12:30", "12:30"),
        ("2021-04-09", "2021-04-09"),
        ("0x10", "0x10"),
        ("~", None),
        ("True", True),
        ("'1'", "1"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_yaml_scalars_follow_the_core_schema(text, value):
    assert parse_yaml(f"a: {text}", "x") == {"a": value}


TEXT = st.text(alphabet=string.printable[:95], max_size=8)
LEAVES = st.none() | st.booleans() | st.integers() | TEXT


@given(st.dictionaries(TEXT, LEAVES | st.lists(LEAVES, max_size=3), max_size=4))
def test_json_and_its_reading_as_yaml_agree(data):
    text = json.dumps(data)
    assert parse_json(text, "x") == data
    assert parse_yaml(text, "x") == data


def test_a_byte_order_mark_is_no_obstacle(tmp_path):
    assert read_mapping(written(tmp_path, b"\xef\xbb\xbfa: 1")) == {"a": 1}


# --- what is not a file ------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    assert "nothing.yaml: no such file" in refusal(read_mapping, tmp_path / "nothing.yaml")


def test_a_directory_is_refused(tmp_path):
    assert "is a directory" in refusal(read_mapping, tmp_path)


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "not a regular file" in refusal(read_mapping, tmp_path / "pipe.yaml")


def test_a_device_is_refused(tmp_path):
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    assert "not a regular file" in refusal(read_mapping, tmp_path / "zero.yaml")


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path, "a: 1")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", denied)
    assert "cannot be read: Permission denied" in refusal(read_mapping, path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_impossible_paths_are_refused(tmp_path, name):
    assert "cannot be read" in refusal(read_mapping, tmp_path / name)


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(80_000_000)  # sparse
    message = refusal(read_mapping, path)
    assert "80,000,000 bytes" in message
    assert f"{MAX_FILE_BYTES:,}" in message


def test_the_largest_file_is_still_read(tmp_path):
    text = "a: 1\n#" + "x" * (MAX_FILE_BYTES - 6)
    assert read_mapping(written(tmp_path, text)) == {"a": 1}
    assert "at most" in refusal(read_mapping, written(tmp_path, text + "x"))


# --- what is not a plain mapping ----------------------------------------------------------------

BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

REFUSED = {
    "bomb": (BOMB, "anchors and aliases"),
    "recursive alias": ("a: &a [*a]", "anchors and aliases"),
    "unknown alias": ("a: *b", "anchors and aliases"),
    "anchor on a key": ("&k a: 1", "anchors and aliases"),
    "python tag": ("a: !!python/object/apply:os.system [ls]", "tags"),
    "own tag": ("a: !thing 1", "tags"),
    "duplicate": ("a: 1\nb: 2\na: 3", "'a' stands twice"),
    "duplicate inside": ("m: {a: 1, a: 2}", "'a' stands twice"),
    "two documents": ("a: 1\n---\nb: 2", "second document"),
    "list": ("- 1\n- 2", "holds a list"),
    "text": ("hello", "holds a text"),
    "number": ("7", "holds a number"),
    "empty": ("", "is empty"),
    "comment only": ("# nothing", "is empty"),
    "null": ("~", "is empty"),
    "nan": ("a: .nan", ".nan is not a number"),
    "infinity": ("a: -.INF", "-.INF is not a number"),
    "overflow": ("a: 1e999", "1e999 is not a number"),
    "long number": (f"a: {'9' * 5000}", "5,000 digits"),
    "complex key": ("? [a, b]\n: 1", "plain text"),
    "deep flow": ("a: " + "[" * 500_000, "nest"),
    "just too deep": ("a: " + "[" * 40 + "]" * 40, "nested too deeply"),
    "deep block": ("- " * 5000 + "1", "nest"),
    "syntax": ("a: [1, 2", "not valid YAML"),
    "indentation": ("a: 1\n  b: 2", "line 2"),
    "tab": ("a:\n\tb: 1", "line 2"),
    "control": ("a: \x07", "not valid YAML"),
    "nul": (b"a: 1\0", "binary"),
    "elf": (b"\x7fELF\x02\x01\x01\0\0\0", "binary"),
    "not utf-8": (b"a: \xff\xfe", "byte 3"),
    "latin-1": ("name: Köln".encode("latin-1"), "not UTF-8"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_yaml_that_is_not_plain_is_refused_quickly_and_by_name(tmp_path, case):
    text, why = REFUSED[case]
    start = time.process_time()
    message = refusal(read_mapping, written(tmp_path, text))
    assert why in message
    assert "spec.yaml" in message
    assert time.process_time() - start < 2


REFUSED_JSON = {
    "syntax": ('{\n "a": 1,\n "b": }', "line 3, column 7"),
    "trailing": ('{"a": 1} x', "line 1, column 10"),
    "duplicate": ('{"a": {"b": 1, "b": 2}}', "'b' stands twice"),
    "nan": ('{"a": NaN}', "NaN is not a number"),
    "infinity": ('{"a": -Infinity}', "-Infinity is not a number"),
    "overflow": ('{"a": 1e999}', "1e999 is not a number"),
    "long number": (f'{{"a": {"9" * 5000}}}', "5,000 digits"),
    "deep": ('{"a":' * 200_000, "nested too deeply"),
    "just too deep": ('{"a":' * 40 + "1" + "}" * 40, "nested too deeply"),
    "list": ("[1]", "holds a list"),
    "null": ("null", "is empty"),
    "empty": ("  ", "is empty"),
}


@pytest.mark.parametrize("case", REFUSED_JSON, ids=str)
def test_json_that_is_not_plain_is_refused(tmp_path, case):
    text, why = REFUSED_JSON[case]
    message = refusal(read_mapping, written(tmp_path, text, "spec.json"))
    assert why in message
    assert "spec.json" in message


def test_a_large_honest_file_is_read_in_time(tmp_path):
    text = "hosts:\n" + "".join(f"  - node{i:05d}\n" for i in range(60_000))
    start = time.process_time()
    assert len(read_mapping(written(tmp_path, text))["hosts"]) == 60_000
    assert time.process_time() - start < 15


@given(st.binary(max_size=60))
def test_no_bytes_make_anything_but_data_or_a_spec_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "junk.yaml"
    path.write_bytes(data)
    with contextlib.suppress(SpecError):
        assert isinstance(read_mapping(path), dict)


def test_messages_hold_no_control_characters():
    assert shown("a\x1b[31m\n\u202eb") == "a\\x1b[31m\\n\\u202eb"
    assert shown("x" * 300, 60) == "x" * 57 + "..."
    assert shown("\udcff") == "\\udcff"


# --- records ------------------------------------------------------------------------------------


def test_a_good_mapping_becomes_a_record():
    bicycle = validate(Bicycle, {"name": "b", "gears": "21", "front": {"spokes": 1e1}}, "x")
    assert bicycle == Bicycle(name="b", gears=21, front=Wheel(spokes=10))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "here: field 'name' is missing"),
        ({"name": 5}, "here: field 'name': 5 is not allowed, must be text (put it in quotes)"),
        (
            {"name": "b", "gears": -3},
            "here: field 'gears': -3 is not allowed, must be greater than 0",
        ),
        (
            {"name": "b", "gears": 1.5},
            "here: field 'gears': 1.5 is not allowed, must be a valid integer",
        ),
        (
            {"name": "b", "gears": "many"},
            "here: field 'gears': 'many' is not allowed, must be a valid integer",
        ),
        (
            {"name": "b", "gears": True},
            "here: field 'gears': true is not allowed, must be a number",
        ),
        (
            {"name": "b", "weight_kg": False},
            "here: field 'weight_kg': false is not allowed, must be a number",
        ),
        (
            {"name": "b", "spare": [{"spokes": 9}, {"spokes": True}]},
            "here: field 'spare.1.spokes': true is not allowed, must be a number",
        ),
        (
            {"name": "b", "prices": {"de": True}},
            "here: field 'prices.de': true is not allowed, must be a number",
        ),
        (
            {"name": "b", "weight_kg": float("nan")},
            "here: field 'weight_kg': nan is not allowed, must be a finite number",
        ),
        (
            {"name": "b", "front": {"spokes": 101}},
            "here: field 'front.spokes': 101 is not allowed, must be less than or equal to 100",
        ),
        (
            {"name": "b", "front": 3},
            "here: field 'front': 3 is not allowed, must be a mapping of fields",
        ),
        (
            {"name": "b", "spare": 3},
            "here: field 'spare': 3 is not allowed, must be a list",
        ),
        (
            {"name": "b", "folds": "x" * 200},
            "here: field 'folds': '" + "x" * 56 + "... is not allowed, must be a valid boolean",
        ),
        ({"name": "b", "wings": 2}, "here: unknown field 'wings'"),
    ],
)
def test_a_wrong_mapping_is_explained(data, message):
    assert refusal(validate, Bicycle, data, "here").startswith(message)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ({"name": "b", "gear": 2}, "did you mean 'gears'?"),
        ({"name": "b", "front": {"spoke": 2}}, "did you mean 'spokes'?"),
        ({"name": "b", "spare": [{"spokes": 2}, {"spooks": 2}]}, "did you mean 'spokes'?"),
        ({"name": "b", "wings": 2}, "known fields: name, gears, weight_kg, folds"),
    ],
)
def test_an_unknown_field_gets_the_nearest_known_one_of_its_level(data, hint):
    assert hint in refusal(validate, Bicycle, data, "here")


def test_a_misspelt_name_is_said_before_the_field_it_leaves_missing():
    message = refusal(validate, Bicycle, {"nam": "b", "gears": 0}, "here")
    assert message.startswith("here: unknown field 'nam' (and 2 more)")


def test_no_jargon_reaches_the_user():
    data = {"name": 1, "gears": [], "weight_kg": {}, "front": [], "spare": "x", "prices": 1}
    for name, value in data.items():
        message = refusal(validate, Bicycle, {"name": "b", **{name: value}}, "here")
        assert not any(word in message for word in ("pydantic", "Input", "dictionary", "tuple"))


@pytest.mark.parametrize("count", [10**64, -(10**64), 10**5000], ids=["64", "-64", "5000"])
def test_numbers_beyond_all_bounds_are_refused(count):
    ones = ("hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "max_seq_tokens")
    data = {"name": "x", "layers": count, **dict.fromkeys(ones, 1)}
    message = refusal(validate, ModelSpec, data, "here")
    assert message.startswith("here: field 'layers': ")
    assert "more)" not in message
