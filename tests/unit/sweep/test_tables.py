"""Three formats, one table: what is written is read again, and junk is refused with its place."""

from __future__ import annotations

import random

import pytest

from planner.errors import SpecError
from planner.sweep.tables import read_rows, write_rows

ROWS = [
    {"point": 0, "id": "a", "model": 'ü "x",\n=1+1', "nodes": 2, "cluster.fabric.efficiency": 0.1,
     "fix": "tp=8", "status": "ok", "reason": "", "sp": True, "step_time_s": 0.1 + 0.2,
     "time_s.compute": 1e-300, "splits": 0},
    {"point": 1, "id": "b", "model": "m", "nodes": None, "cluster.fabric.efficiency": 1,
     "fix": "", "status": "infeasible", "reason": "no room", "time_s.compute": None},
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_rows_come_back_as_they_were(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"out{suffix}"
    write_rows(out, ROWS)
    columns = list(ROWS[0])
    assert read_rows(out) == [{name: row.get(name) for name in columns} for row in ROWS]
    assert list(read_rows(out)[1]) == columns
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_a_table_without_any_answer_keeps_the_kinds_of_its_columns(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_rows(
        tmp_path / "o.parquet", [{"point": 0, "status": "refused", "nodes": None, "mfu": None}]
    )
    schema = parquet.read_schema(tmp_path / "o.parquet")
    assert {field.name: str(field.type) for field in schema} == {
        "point": "int64", "status": "string", "nodes": "int64", "mfu": "double"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("o.jsonl", b"", "no rows"),
        ("o.jsonl", b"{}\n", "row 1 has no 'status'"),
        ("o.jsonl", b'{"status":"ok"}\n[1]\n', "line 2"),
        ("o.jsonl", b'{"status":"ok"}\n{"sta', "line 2"),
        ("o.jsonl", b'{"status":"ok","nodes":"many"}\n', "'nodes' holds"),
        ("o.jsonl", b'{"status":"ok","mfu":NaN}\n', "NaN is not allowed"),
        ("o.jsonl", b'{"status":"ok","mfu":1e999}\n', "'mfu' holds"),
        ("o.jsonl", b'{"status":"ok","x":{}}\n', "'x' holds"),
        ("o.jsonl", b"[" * 100_000, "not JSON"),
        ("o.jsonl", b"\xff\xfe", "cannot be read"),
        ("o.csv", b"", "no rows"),
        ("o.csv", b"point,status\n1\n", "line 2"),
        ("o.csv", b"point,status\n1,ok,3\n", "line 2"),
        ("o.csv", b"point,status\nx,ok\n", "'point' holds 'x'"),
        ("o.csv", b"mfu,status\nnan,ok\n", "'mfu' holds 'nan'"),
        ("o.csv", b'"', "not CSV"),
        ("o.csv", b"a\0b,status\n1,ok\n", ""),
        ("o.parquet", b"PAR1junkPAR1", "not Parquet"),
        ("o.txt", b"", "ends in none of"),
        ("missing.csv", None, "no such file"),
    ],
)
def test_junk_is_refused_with_its_place(tmp_path, name, content, said):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    if not said:
        read_rows(tmp_path / name)  # odd, but a table
        return
    with pytest.raises(SpecError) as refused:
        read_rows(tmp_path / name)
    assert said in refused.value.message
    assert name in refused.value.message


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_damaged_tables_give_rows_or_one_refusal(tmp_path, suffix):
    """Bytes are replaced, dropped or added at random places."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    good = tmp_path / f"good{suffix}"
    write_rows(good, ROWS)
    raw, bad, random_ = good.read_bytes(), tmp_path / f"bad{suffix}", random.Random(7)
    refused = 0
    for _ in range(3400 if suffix != ".parquet" else 600):
        damaged = bytearray(raw)
        for _ in range(random_.randint(1, 4)):
            place = random_.randrange(len(damaged))
            damaged[place : place + random_.randint(0, 3)] = random_.randbytes(
                random_.randint(0, 3)
            )
        bad.write_bytes(damaged)
        try:
            read_rows(bad)
        except SpecError:
            refused += 1
    assert refused > 100
