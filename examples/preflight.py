#!/usr/bin/env python3
"""Check, on every rank, that the job stands where the plan says it does.

A job whose ranks stand elsewhere still runs, only slower, so this is the one place that says so.
Reads `rank_map.json` beside this file (or in the folder MESHWRIGHT_BUNDLE); needs only the
standard library. With torch, the ranks also compare notes, and rank 0 prints one message for all.

    torchrun ... preflight.py                    # by itself
    row = preflight.check()                      # in a script, before init_process_group
    preflight.check_groups({"tp": 0, "dp": 1})   # after it: the coordinates this rank really has
    preflight.leave()                            # at the very end

MESHWRIGHT_HOSTNAME overrides the host name (for containers whose names say nothing), and
MESHWRIGHT_PREFLIGHT_TIMEOUT_S the 600 s that ranks wait for each other.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

EXIT_CODE = 3
SCHEMA = "meshwright.rank_map/1"
_held: dict[str, Any] = {}  # the store must outlive the check: rank 0 may be serving it


def check(folder: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Compare this process with its row of the rank map, and the hosts of all ranks with the plan.

    Returns the row: rank, host, gpu, and a coordinate for each axis. Ends the process with exit
    code 3 after one message on stderr when something differs.
    """
    where = Path(folder or os.environ.get("MESHWRIGHT_BUNDLE") or Path(__file__).parent)
    plan = _read(where / "rank_map.json")
    seen = _process(where)
    reports = _gather("start", seen)
    if reports is None:  # without torch every rank speaks for itself
        _stop_on([_misplaced(plan, seen)])
    elif reports:
        problem = _first([_misplaced(plan, r) for r in reports])
        _publish("start", problem or _scattered(plan, reports))
    _obey("start")
    return dict(plan["ranks"][seen["rank"]])


def check_groups(
    coordinates: Mapping[str, int], *, folder: str | os.PathLike[str] | None = None
) -> None:
    """Compare this rank's coordinates (axis -> index in its group) with the rank map.

    Only the axes given are compared. Ends the process as `check` does.
    """
    where = Path(folder or os.environ.get("MESHWRIGHT_BUNDLE") or Path(__file__).parent)
    plan = _read(where / "rank_map.json")
    seen = {"rank": _number("RANK"), "coordinates": dict(coordinates)}
    reports = _gather("groups", seen)
    if reports is None:
        _stop_on([_misgrouped(plan, seen)])
    elif reports:
        _publish("groups", _first([_misgrouped(plan, r) for r in reports]))
    _obey("groups")


def leave() -> NoReturn:
    """End this process with code 0, its work done: take the groups down, flush, go.

    Frameworks keep groups alive (each of DeepSpeed's ZeRO-3 parameters holds one); their threads
    then meet a finished interpreter, which now and then aborts a job that has trained well.
    """
    dist = importlib.import_module("torch.distributed")
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def same_host(planned: str, seen: str) -> bool:
    """Return whether two names mean one host: equal, or equal but for a domain that one lacks."""
    a, b = planned.lower().rstrip("."), seen.lower().rstrip(".")
    if "." in a and "." in b:
        return a == b
    return a.split(".")[0] == b.split(".")[0]


def _read(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_bytes())
        if plan["schema"] == SCHEMA and plan["world_size"] == len(plan["ranks"]):
            return dict(plan)
        problem = f"is not a whole {SCHEMA} document"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"cannot be read ({error})"
    raise SystemExit(_say(f"{path} {problem}"))


def _process(where: Path) -> dict[str, Any]:
    """Return what this process sees of itself; digests show nodes that hold another bundle."""
    files = sorted(p for p in (where / "plan.json", where / "rank_map.json") if p.is_file())
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()
    host = os.environ.get("MESHWRIGHT_HOSTNAME") or socket.gethostname()
    seen = {name.lower(): _number(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return {**seen, "host": host, "bundle": digest}


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        shown = repr(value) if value else "not set"
        raise SystemExit(_say(f"{name} is {shown}; start this under torchrun or another launcher"))
    return int(value)


def _misplaced(plan: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    """Return what is wrong with one rank by itself, or nothing."""
    rank, world = seen["rank"], seen["world_size"]
    if world != plan["world_size"]:
        return f"rank {rank} expected WORLD_SIZE {plan['world_size']}, saw {world}"
    row = plan["ranks"][rank]
    if row["rank"] != rank:
        return f"rank {rank} expected its own row in rank_map.json, saw that of rank {row['rank']}"
    if row["gpu"] != seen["local_rank"]:
        saw = f"LOCAL_RANK {seen['local_rank']}"
        return f"rank {rank} expected GPU {row['gpu']} of its host, saw {saw}"
    if not plan["hosts_are_placeholders"] and not same_host(row["host"], seen["host"]):
        return f"rank {rank} expected host {row['host']}, saw {seen['host']}"
    return ""


def _scattered(plan: Mapping[str, Any], reports: list[dict[str, Any]]) -> str:
    """Return where ranks share a host otherwise than planned, or hold another bundle."""
    host_seen: dict[str, dict[str, Any]] = {}
    host_planned: dict[str, dict[str, Any]] = {}
    for seen in reports:
        rank = seen["rank"]
        row = plan["ranks"][rank]
        first = host_seen.setdefault(row["host"], seen)
        if first["host"] != seen["host"]:
            return (
                f"rank {rank} expected to share a host with rank {first['rank']} ({row['host']} in "
                f"the plan), saw {seen['host']} where that one saw {first['host']}"
            )
        other = host_planned.setdefault(seen["host"], row)
        if other["host"] != row["host"]:
            return (
                f"rank {rank} expected another host than rank {other['rank']} ({row['host']} and "
                f"{other['host']} in the plan), saw both on {seen['host']}"
            )
        if seen["bundle"] != reports[0]["bundle"]:
            return f"rank {rank} expected the bundle that rank 0 has, saw another on {seen['host']}"
    return ""


def _misgrouped(plan: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    if seen["rank"] >= plan["world_size"]:
        return f"rank {seen['rank']} expected WORLD_SIZE {plan['world_size']}, saw more"
    row = plan["ranks"][seen["rank"]]
    wrong = {a: v for a, v in seen["coordinates"].items() if row.get(a) != v}
    if not wrong:
        return ""
    expected = " ".join(f"{axis}={row.get(axis)}" for axis in wrong)
    saw = " ".join(f"{axis}={value}" for axis, value in wrong.items())
    return f"rank {seen['rank']} expected coordinates {expected}, saw {saw}"


def _store() -> Any:
    """Return the key-value store of the job's rendezvous, or nothing where there is none."""
    if "store" not in _held:
        _held["store"] = None
        if "MASTER_ADDR" not in os.environ:
            return None
        try:
            dist = importlib.import_module("torch.distributed")
        except ImportError:
            return None
        limit = datetime.timedelta(seconds=_timeout_s())
        # init_process_group may follow: env:// shares one server within a process
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=limit)))
        _held["store"] = dist.PrefixStore("meshwright/preflight", store)
        _held["store"].set_timeout(limit)
    return _held["store"]


def _timeout_s() -> float:
    return float(os.environ.get("MESHWRIGHT_PREFLIGHT_TIMEOUT_S", "600"))


def _gather(topic: str, seen: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return all reports on rank 0, none on the others, and None where ranks cannot talk."""
    store = _store()
    if store is None:
        return None
    store.set(f"{topic}/{seen['rank']}", json.dumps(seen))
    if seen["rank"] != 0:
        return []
    keys = [f"{topic}/{rank}" for rank in range(_number("WORLD_SIZE"))]
    try:
        store.wait(keys)
    except RuntimeError:
        late = [k.split("/")[1] for k in keys if not store.check([k])]
        raise SystemExit(
            _say(f"rank 0 waited {_timeout_s():.0f} s in vain for ranks {', '.join(late[:8])}")
        ) from None
    return [json.loads(text) for text in store.multi_get(keys)]


def _publish(topic: str, problem: str) -> None:
    """Print on rank 0, then let the others know: a launcher kills all once one process ends."""
    if problem:
        _say(problem)
    _held["store"].set(f"{topic}/verdict", problem)


def _obey(topic: str) -> None:
    """End this process when rank 0 says so, or has itself ended and taken its store along."""
    if (store := _store()) is None:
        return
    try:
        verdict = store.get(f"{topic}/verdict")
    except RuntimeError:
        raise SystemExit(EXIT_CODE) from None
    if verdict:
        sys.exit(EXIT_CODE)


def _first(problems: list[str]) -> str:
    """Return the first problem, and how many ranks have one."""
    found = [p for p in problems if p]
    return found[0] + (f" (and {len(found) - 1} more)" if found[1:] else "") if found else ""


def _stop_on(problems: list[str]) -> None:
    if problem := _first(problems):
        sys.exit(_say(problem))


def _say(problem: str) -> int:
    """Print the one message and return the exit code."""
    print(f"preflight: {problem}; the job does not stand as planned", file=sys.stderr, flush=True)
    return EXIT_CODE


if __name__ == "__main__":
    place = check()
    _gather("done", place)  # rank 0 may serve the store: it leaves last
    if place["rank"] == 0:
        print(f"preflight: all {_number('WORLD_SIZE')} ranks stand as planned", flush=True)
