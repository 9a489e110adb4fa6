"""Which runs the planner's numbers were fitted to: their errors are in-sample, and said to be.

`calibration/fit.py` writes what it was fitted to, `meshwright calibrate` what an overlay was. Both
keep a fingerprint of each run's source and id: enough to know a run again, too little to publish
somebody's table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from planner.specs.cluster import ClusterSpec

FITTED = Path(__file__).parent / "fitted.csv"
"""Fingerprints of the runs that shipped numbers were fitted to; after a header, one a line."""
HEAD = "fingerprint of source and id (planner/validate/seen.py)"
_BYTES = 5
"""40 bits: among some thousands of runs one in a hundred million is taken for another."""


def fingerprint(row: Mapping[str, str]) -> str:
    """Return what a run is known again by."""
    text = f"{row.get('source', '').strip()}|{row['id'].strip()}"
    return blake2b(text.encode("utf-8", "replace"), digest_size=_BYTES).hexdigest()


def seen(row: Mapping[str, str], cluster: ClusterSpec | None = None, stack: str = "") -> bool:
    """Return whether the shipped numbers, or those of a cluster's overlay, were fitted to a run."""
    mark = fingerprint(row)
    own = cluster.figures_of(stack) if cluster else None
    return mark in _shipped() or (own is not None and mark in own.fitted)


@lru_cache(maxsize=1)
def _shipped() -> frozenset[str]:
    return frozenset(FITTED.read_text(encoding="utf-8").split("\n")[1:])


def write_fitted(rows: Iterable[Mapping[str, str]]) -> None:
    """Write the fingerprints of the runs that a fit has used."""
    marks = sorted({fingerprint(row) for row in rows})
    FITTED.write_text("\n".join([HEAD, *marks]) + "\n", encoding="utf-8")
