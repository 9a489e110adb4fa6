"""Ranked plans as a data frame (polars), to filter and to keep."""

from planner import plan

frame = plan("llama-3.1-8b", "dgx-h100:4", global_batch=256, top=50).to_frame()
light = frame.filter(frame["memory.peak_bytes"] < 60 * 2**30)
print(light.select("rank", "tp", "pp", "dp", "recompute").head(3).write_csv(), end="")
