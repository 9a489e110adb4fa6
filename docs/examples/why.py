"""What a layout of one's own loses to the best, and what would mend one that does not fit."""

from planner import explain

told = explain("llama-3.1-70b", "dgx-h100:8", {"tp": 8, "pp": 4, "recompute": "full"})
print(f"{told.against.slower:.1%} slower than {told.against.best.short()}")
worst = max(told.against.time_s, key=told.against.time_s.get)
print(f"most of it in {worst}: {told.against.time_s[worst]:.2f} s")

full = explain("llama-3.1-70b", "dgx-h100:8", {"tp": 2, "pp": 4, "zero": 0})
print(full.reasons[0])
print("mend:", full.mends[0])
