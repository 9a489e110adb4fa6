"""Laws are tried on the same examples every time, and a busy machine fails none of them."""

from __future__ import annotations

import contextlib

with contextlib.suppress(ImportError):  # a bare pytest may run the tests that need no hypothesis
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "repeatable",
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("repeatable")
