"""How many nodes? All of 1 to 8 are planned; the run shall cost little and end in time."""

from datetime import timedelta

from planner import plan

found = plan(
    "llama-3.1-8b",
    "dgx-h100",
    nodes=range(1, 9),
    global_batch=256,
    objective="cost",
    price=2.5,
    tokens=200e9,
    deadline=timedelta(days=21),
)
run = found.best.run
print(f"{found.best.nodes} nodes: {run.seconds / 86400:.1f} days, {run.usd:,.0f} USD")
for size in found.sizes:
    print(size.nodes, f"{size.step_time_s:.2f} s" if size.layout else size.reason)
