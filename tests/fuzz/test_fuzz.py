"""A few hundred damaged inputs of every kind; `benchmarks/fuzz.py` runs twelve thousand."""

from __future__ import annotations

import random

import mutate
import pytest
from cases import KINDS, cases
from harness import LIMIT_S, broken

EACH = {"sweep": 3, "table": 8, "plan file": 16, "machines": 14, "command line": 16, "import": 40}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_breaks_no_promise(kind):
    make, _ = KINDS[kind]
    for seed in range(EACH.get(kind, 30)):
        case = make(random.Random(f"{kind} {seed}"))
        assert broken(case.words, case.files) == [], (seed, case)


def test_the_stream_is_the_same_for_the_same_seed_and_holds_every_kind():
    first, again = list(cases(3, 200)), list(cases(3, 200))
    assert first == again
    assert {case.kind for case in first} == set(KINDS)
    assert first != list(cases(4, 200))


def test_the_harness_sees_a_hang_a_leak_and_a_half_written_file(monkeypatch):
    def hang(*_: object) -> int:
        while True:
            pass

    def leak(*_: object) -> int:
        raise ZeroDivisionError

    def litter(*_: object) -> int:
        with open("half", "w") as file:
            file.write("x")
        return 2

    monkeypatch.setattr("harness.LIMIT_S", 0.05)
    for wrong, said in ((hang, "takes more"), (leak, "ZeroDivisionError"), (litter, "half")):
        monkeypatch.setattr("planner.cli.app.main", wrong)
        assert any(said in promise for promise in broken(["specs", "list"], {}))
    assert LIMIT_S == 5


def test_damage_changes_what_it_is_given():
    rng = random.Random(0)
    assert (
        sum(
            mutate.text(rng, "layers: 4\nhidden: 8\n") != "layers: 4\nhidden: 8\n"
            for _ in range(99)
        )
        > 80
    )
    assert sum(mutate.tree(rng, {"a": [1, 2]}) != {"a": [1, 2]} for _ in range(99)) > 60
