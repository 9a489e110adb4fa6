"""Lets the tests of this folder import the helpers beside them; importlib mode does not."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parents[1]
for folder in (HERE, TESTS / "unit" / "estimate", TESTS / "emit"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
