"""Slurm: a batch script that puts every node rank where the plan has it.

Slurm sorts the nodes of `--nodelist`, whatever their order there, and numbers tasks by that. So
one task starts on each node, finds its rank by the node's name in the plan's order, and starts the
framework's own launcher with it.
"""

from __future__ import annotations

import re

from planner.emit.base import Artifact, hosts_are_placeholders, placed
from planner.emit.capabilities import ANYTHING
from planner.emit.wrapped import inner_of, inner_problems, never_inside, node_ranks_by_leaf, wrapped
from planner.plan import Plan
from planner.specs.model import ModelSpec
from planner.specs.workload import Workload


class Slurm:
    """`job.sbatch` around the run.sh of a framework that can express the layout."""

    name = "slurm"
    stack = "any"
    tested_with = "Slurm 22.05"
    can = ANYTHING

    def never(self, model: ModelSpec, work: Workload) -> list[str]:
        """Return, for each framework that Slurm could start, why it never can."""
        return never_inside(model, work)

    def unsupported(self, plan: Plan) -> list[str]:
        """Return, for each framework that Slurm could start, why it cannot run the plan."""
        return inner_problems(plan)

    def emit(self, plan: Plan) -> list[Artifact]:
        """Return job.sbatch, node.sh and the bundle of the framework that they start."""
        return [
            *wrapped(plan, target=self.name, title=self.tested_with, start=start_text(plan)),
            Artifact("job.sbatch", job_text(plan), executable=True),
            Artifact("node.sh", NODE, executable=True),
        ]


def job_name(plan: Plan) -> str:
    """Return the model's name as one word; #SBATCH lines know no quoting worth the name."""
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", plan.request.model.name)[:60].strip("-.")
    return word or "meshwright"


def job_text(plan: Plan) -> str:
    """Return `job.sbatch`; every #SBATCH line stands before the first command."""
    place = placed(plan)
    return f"""\
#!/usr/bin/env bash
# Submit from this folder: sbatch job.sbatch
#SBATCH --job-name={job_name(plan)}
#SBATCH --nodes={len(place.hosts)}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={place.gpus_per_node}
#SBATCH --exclusive
#SBATCH --mem=0
{where_text(plan)}
# after a node failure Slurm starts the job again: let your script resume from its checkpoint
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#
# Yours to set, here (one # less) or on the command line of sbatch:
##SBATCH --partition=NAME
##SBATCH --account=NAME
##SBATCH --time=24:00:00
set -euo pipefail

NODES={len(place.hosts)}
# sbatch runs a copy of this script, so the bundle is where the job was submitted
HERE="${{MESHWRIGHT_BUNDLE:-${{SLURM_SUBMIT_DIR:-$PWD}}}}"
if [[ ! -f "$HERE/node.sh" ]]; then
  echo "job.sbatch: no bundle in $HERE; submit from its folder, or set MESHWRIGHT_BUNDLE" >&2
  exit 2
fi
export MESHWRIGHT_BUNDLE="$HERE"

{hosts_text(plan)}
export MESHWRIGHT_HOSTS="${{HOSTS[*]}}"
export MASTER_ADDR="${{MASTER_ADDR:-${{HOSTS[0]}}}}"
export MASTER_PORT="${{MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}}"

# one task a node with all of its cores and GPUs; when one fails, all end
srun --nodes="$NODES" --ntasks="$NODES" --ntasks-per-node=1 --whole --cpu-bind=none \\
  --kill-on-bad-exit=1 bash "$HERE/node.sh" "$@"
"""


def where_text(plan: Plan) -> str:
    """Return the lines that ask for the plan's nodes, or for as few leafs as it has."""
    place = placed(plan)
    if not hosts_are_placeholders(plan):
        return """\
# the plan's nodes; Slurm sorts them, their order in hosts.txt is kept by node.sh
#SBATCH --nodelist=./hosts.txt"""
    leafs = len({row.leaf for row in place.ranks})
    return f"""\
# the plan fills {leafs} {"leafs" if leafs > 1 else "leaf"}; after this time, any nodes will do
#SBATCH --switches={leafs}@01:00:00"""


def hosts_text(plan: Plan) -> str:
    """Return the lines that set HOSTS, node names by node rank."""
    if not hosts_are_placeholders(plan):
        return 'mapfile -t HOSTS < "$HERE/hosts.txt"'
    order = " ".join(map(str, node_ranks_by_leaf(plan)))
    return f"""\
# The cluster file lists no hosts: nodes are taken as Slurm gives them, those under one switch
# together, and fill the node ranks leaf by leaf as the plan has them.
BY_LEAF=({order})
# shellcheck disable=SC2016
mapfile -t found < <(srun --nodes="$NODES" --ntasks="$NODES" --ntasks-per-node=1 \\
  bash -c 'echo "${{SLURM_TOPOLOGY_ADDR:-}} $SLURMD_NODENAME"' | sort -V)
if [[ ${{#found[@]}} -ne "$NODES" ]]; then
  echo "job.sbatch: ${{#found[@]}} nodes answered, the plan has $NODES" >&2
  exit 2
fi
HOSTS=()
for i in "${{!found[@]}}"; do HOSTS[BY_LEAF[i]]="${{found[i]##* }}"; done"""


NODE = r"""#!/usr/bin/env bash
# Runs on every node, started by job.sbatch: finds this node's rank and starts its share.
set -euo pipefail

HERE="${MESHWRIGHT_BUNDLE:?job.sbatch sets it}"
name="${SLURMD_NODENAME:?srun sets it}"
read -r -a hosts <<<"${MESHWRIGHT_HOSTS:?job.sbatch sets it}"
ranks=()
for i in "${!hosts[@]}"; do
  host="${hosts[i],,}"
  if [[ "$host" == "${name,,}" ]]; then
    ranks=("$i")
    break
  fi
  short="${name,,}"
  if [[ "${host%%.*}" == "${short%%.*}" && ("$host" != *.* || "$name" != *.*) ]]; then
    ranks+=("$i")
  fi
done
if [[ ${#ranks[@]} -ne 1 ]]; then
  echo "node.sh: ${#ranks[@]} hosts of the plan are called $name; the job cannot be placed" >&2
  exit 2
fi
export NODE_RANK="${ranks[0]}"
export MESHWRIGHT_HOSTNAME="$name"
exec bash "$HERE/run.sh" "$@"
"""


def start_text(plan: Plan) -> str:
    """Return the README's section on how to start."""
    inner = inner_of(plan)
    name = inner.name if inner else ""
    nodes = (
        "The cluster lists no hosts, so Slurm chooses them: `--switches` asks for as few leafs as "
        "the plan\nfills, and nodes under one switch get the node ranks of one leaf."
        if hosts_are_placeholders(plan)
        else "The job asks for the plan's hosts. Slurm sorts them, so every node finds its rank "
        "by its name in\n`hosts.txt`; a node that is not there stops the job."
    )
    return f"""\
From this folder, on a file system that all nodes see:

```
sbatch job.sbatch
```

Partition, account and time limit are at the top of `job.sbatch`. Words after it reach `run.sh`.
{nodes}

Each node runs the `run.sh` of a {name} bundle. `FRAMEWORK.md` says what it trains and what it needs
in the environment, which Slurm passes on from where you submit. For another framework, plan with
`--stack` megatron, megatron-bridge, nanotron, deepspeed, torchtitan or transformers. Without
`plan.json` having changed, a requeued job takes the same places; whether it resumes is up to
your training script."""


EMITTER = Slurm()
