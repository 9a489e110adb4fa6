from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from planner.emit.yaml_text import yaml_text

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]))
    | st.floats(allow_nan=False, allow_infinity=False)
)  # fmt: skip
LISTS = st.lists(SCALARS, max_size=3)
MAPPINGS = st.recursive(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), SCALARS | LISTS),
    lambda inner: st.dictionaries(st.text("abc:#- ", max_size=4), inner | st.lists(inner)),
    max_leaves=8,
)


@given(MAPPINGS)
def test_what_is_written_is_read_back(data):
    assert (yaml.safe_load(yaml_text(data)) or {}) == data


@pytest.mark.parametrize("word", ["no", "off", "012", "1:30", "1e3", "2026-01-01", "=", "", "~"])
def test_words_that_yaml_would_read_as_something_else_stay_words(word):
    assert yaml_text({"a": word}) == f'a: "{word}"\n'


def test_floats_have_a_dot_and_a_signed_exponent():
    """Without the dot YAML 1.1 reads 1e-05 as a string."""
    assert yaml_text({"lr": 1e-05, "clip": 1.0, "big": 1e300}) == (
        "lr: 1.0e-05\nclip: 1.0\nbig: 1.0e+300\n"
    )
