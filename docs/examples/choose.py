"""The best layout of a model on a cluster, and what it costs in time and memory."""

from planner import plan

found = plan("llama-3.1-8b", "dgx-h100:4", global_batch=256)
best = found.best
print(best.layout.short())
print(f"{best.estimate.step_time_s:.2f} s a step, MFU {best.estimate.mfu:.1%}")
print(f"{best.estimate.memory.peak_bytes / 2**30:.1f} GiB on the fullest GPU")
print("rank 0 runs on", found.placement.ranks[0].host)
