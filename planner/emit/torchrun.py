"""torchrun: static rendezvous, so that ranks stand where the plan puts them.

The c10d rendezvous ignores `--node-rank` and numbers nodes by the string order of their names
(node10 before node2), which undoes a placement. Static rendezvous keeps it: each node learns its
rank from `hosts.txt`, or is told.
"""

from __future__ import annotations

import re

from planner.emit.base import Artifact, hosts_are_placeholders, one_line, placed, shell_line
from planner.emit.capabilities import ALL, job_refusals, refusals, usual
from planner.emit.fabric import fabric_text
from planner.emit.nodes import ADDRESS, at_address, start_lines, start_notes
from planner.emit.shared import example, shared_artifacts
from planner.emit.threads import threads
from planner.plan import Layout, Plan
from planner.specs.model import ModelSpec
from planner.specs.workload import Workload

PARTS = ("tiny_model.py", "tiny_experts.py", "tiny_split.py")
"""What train.py imports."""
CAN = usual("train.py", dp_sync=ALL)


class Torchrun:
    """`run.sh` on every node, and a training script that applies the layout with PyTorch alone."""

    name = "torchrun"
    stack = "torchtitan"
    tested_with = "PyTorch 2.13.0"
    can = CAN

    def never(self, model: ModelSpec, work: Workload) -> list[str]:
        """Return one sentence for each thing of the job that no layout mends."""
        return list(job_refusals(work, CAN))

    def unsupported(self, plan: Plan) -> list[str]:
        """Return one sentence for each part of the layout that `train.py` cannot apply."""
        lay = plan.best.layout
        return [
            *_not_in_the_example(plan),
            *_split_unevenly(plan),
            *_no_such_schedule(lay),
            *refusals(plan, CAN),
        ]

    def emit(self, plan: Plan) -> list[Artifact]:
        """Return run.sh, env.sh, commands.txt, train.py, its model and what bundles share."""
        return [
            *shared_artifacts(
                plan,
                target=self.name,
                framework=f"torchrun ({self.tested_with})",
                start=_start(plan),
            ),
            Artifact("run.sh", _run(plan), executable=True),
            Artifact("env.sh", HEAD + threads(plan) + ENVIRONMENT + fabric_text(plan)),
            Artifact("commands.txt", _commands(plan)),
            Artifact("train.py", example("train_tiny.py"), executable=True),
            *(Artifact(name, example(name)) for name in PARTS),
        ]


EMITTER = Torchrun()


def _not_in_the_example(plan: Plan) -> list[str]:
    """Return what the training script has no code for."""
    lay = plan.best.layout
    out = []
    if lay.zero < 2 and lay.dp_replicate > 1:
        out.append(f"dp_replicate={lay.dp_replicate} needs fully_shard, that is, zero 2 or 3.")
    if lay.dp_sync == "parameter-server" and (lay.zero or lay.tp * lay.pp * lay.cp * lay.ep > 1):
        out.append("A parameter server holds whole weights: tp, pp, cp, ep are 1 and zero is 0.")
    return [*out, *_experts(plan)]


def _experts(plan: Plan) -> list[str]:
    """Return what its layers of experts cannot do: ep over neighbours, or else slices over tp."""
    lay = plan.best.layout
    if plan.request.model.experts is None:
        return [f"ep={lay.ep} needs a model with experts."] if lay.ep > 1 else []
    out = []
    if lay.etp != (held := lay.tp if lay.ep == 1 else 1):
        out.append(f"train.py splits an expert over etp={held} with ep={lay.ep}, not {lay.etp}.")
    if lay.ep > 1 and lay.tp > 1 and not lay.sp:
        out.append(f"train.py exchanges tokens (ep={lay.ep}) under tp={lay.tp} only with sp=true.")
    if (lay.dp // lay.dp_replicate * lay.cp * lay.tp) % lay.ep:
        out.append(f"ep={lay.ep} does not divide the ranks that shard a stage.")
    return out


def _split_unevenly(plan: Plan) -> list[str]:
    """Return what does not divide: torch splits heads and sequences evenly or not at all."""
    lay, model = plan.best.layout, plan.request.model
    tokens, slices = plan.request.workload.seq_tokens, lay.cp * (lay.tp if lay.sp else 1)
    out = []
    if model.kv_heads % lay.tp:
        out.append(f"tp={lay.tp} does not divide the {model.kv_heads} key-value heads.")
    if tokens % slices:
        out.append(f"{tokens} tokens do not divide into {slices} slices of the sequence.")
    return out


def _no_such_schedule(lay: Layout) -> list[str]:
    """Return what `torch.distributed.pipelining` refuses."""
    micro, rounds = lay.num_microbatches, max(1, lay.num_microbatches // lay.pp)
    if lay.pp == 1:
        return []
    if lay.schedule != "interleaved" and (lay.vpp > 1 or lay.schedule not in ("gpipe", "1f1b")):
        return [f"train_tiny.py has no {lay.schedule} schedule for vpp={lay.vpp} chunks a stage."]
    if lay.vpp > 1 and micro % rounds:
        return [
            f"Interleaved 1F1B in torch needs a multiple of {rounds} micro-batches, not {micro}."
        ]
    if lay.vpp == 1 and lay.schedule != "gpipe" and micro < lay.pp:
        return [f"1F1B in torch needs a micro-batch a stage; {micro} do not fill pp={lay.pp}."]
    return []


def _start(plan: Plan) -> str:
    """Return the README's section on starting."""
    nodes = len(placed(plan).hosts)
    if nodes == 1:
        how = f"On the node:\n\n{start_lines(plan)}"
    elif hosts_are_placeholders(plan):
        how = (
            f"On every node its own line; `commands.txt` has them all:\n\n{start_lines(plan)}\n\n"
            + "".join(start_notes(plan))
        )
    else:
        how = (
            "With this folder on every node (or a shared file system), on each of them:\n\n"
            f"{start_lines(plan)}\n\nIt finds its node rank by its host name in `hosts.txt`; "
            "`commands.txt` has the same with the rank\nspelt out."
        )
    return f"""{how}

`train.py` trains a tiny stand-in of the model with the planned layout, to see that the job starts.
For your own script: `TRAIN_SCRIPT=my_script.py ./run.sh --its-options`; the preflight then runs by
itself first (SKIP_PREFLIGHT=1 leaves it out). `MASTER_PORT` (29500; the preflight takes the next
one), `MASTER_ADDR`, `NODE_RANK` and `TORCHRUN` override what `run.sh` finds; `env.sh` holds the
environment."""


def _commands(plan: Plan) -> str:
    """Return one line to paste on each node, in node-rank order."""
    hosts = placed(plan).hosts
    prefix = [f"MASTER_ADDR={ADDRESS}"] if at_address(plan) else []
    words = [[*prefix, f"NODE_RANK={rank}", "bash", "./run.sh"] for rank in range(len(hosts))]
    return "".join(
        f"{shell_line(line)}  # {host}\n" for line, host in zip(words, hosts, strict=True)
    )


def _run(plan: Plan) -> str:
    """Return the script that starts one node's ranks."""
    place = placed(plan)
    nodes = len(place.hosts)
    title = one_line(f"{plan.request.model.name} on {plan.request.cluster.name}")
    if nodes == 1:
        rank, address = 'node_rank="${NODE_RANK:-0}"', "127.0.0.1"
    elif hosts_are_placeholders(plan):
        rank = (
            'node_rank="${NODE_RANK:?set NODE_RANK to the line of this node in hosts.txt, from 0}"'
        )
        address = ""
    else:
        rank, address = FIND_RANK.strip(), place.hosts[0]
    master = f":-{address}" if address else ":?set MASTER_ADDR to the address of the node of rank 0"
    values = {
        "TITLE": title,
        "NODES": str(nodes),
        "GPUS": str(place.gpus_per_node),
        "RANK": rank,
        "MASTER": f"${{MASTER_ADDR{master}}}",
    }
    # one pass: a title that holds a mark stays as it is
    return re.sub(r"@([A-Z]+)@", lambda mark: values[mark[1]], RUN)


RUN = r"""#!/usr/bin/env bash
# @TITLE@: start this node's share of the job.
set -euo pipefail

case "${BASH_SOURCE[0]}" in
*/*) folder="${BASH_SOURCE[0]%/*}" ;;
*) folder=. ;;
esac
here="$(CDPATH='' cd -- "${folder:-/}" && printf '%s.' "$PWD")"
here="${here%.}" # the dot keeps a newline at the end of the name
source "$here/env.sh"
export MESHWRIGHT_BUNDLE="$here"
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$here" # for scripts that import preflight

nodes=@NODES@
gpus_per_node=@GPUS@
@RANK@
master_addr="@MASTER@"
master_port="${MASTER_PORT:-29500}"

start() { # port, script, its options; static rendezvous keeps the node ranks given
  local port="$1"
  shift
  "${TORCHRUN:-torchrun}" \
    --nnodes "$nodes" \
    --nproc-per-node "$gpus_per_node" \
    --node-rank "$node_rank" \
    --master-addr "$master_addr" \
    --master-port "$port" \
    "$@"
}

if [[ -n "${TRAIN_SCRIPT:-}" && -z "${SKIP_PREFLIGHT:-}" ]]; then
  start "$((master_port + 1))" "$here/preflight.py"
fi
start "$master_port" "${TRAIN_SCRIPT:-$here/train.py}" "$@"
"""

FIND_RANK = r"""
find_rank() { # print the line of hosts.txt that names this host, counted from 0
  local name="${MESHWRIGHT_HOSTNAME:-$(hostname)}" host index same=() short=()
  name="${name,,}"
  mapfile -t hosts <"$here/hosts.txt"
  for index in "${!hosts[@]}"; do
    host="${hosts[index],,}"
    if [[ "$host" == "$name" ]]; then
      same+=("$index")
    elif [[ "${host%%.*}" == "${name%%.*}" && ("$host" != *.* || "$name" != *.*) ]]; then
      short+=("$index")
    fi
  done
  if ((${#same[@]} == 0)); then same=(${short[@]+"${short[@]}"}); fi
  if ((${#same[@]} != 1)); then
    echo "run.sh: ${#same[@]} lines of $here/hosts.txt name this host ($name); set NODE_RANK" >&2
    return 2
  fi
  echo "${same[0]}"
}
node_rank="${NODE_RANK:-}"
if [[ -z "$node_rank" ]]; then node_rank="$(find_rank)"; fi
"""

HEAD = """\
# shellcheck shell=bash
# Environment of every rank; what is already set wins.

"""
ENVIRONMENT = """\
# a failed collective ends the job instead of hanging it
export TORCH_NCCL_ASYNC_ERROR_HANDLING="${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}"
# the caching allocator reserves segments that grow: less fragmentation near the memory limit
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"
# CUDA_DEVICE_MAX_CONNECTIONS stays unset: FSDP needs several hardware queues to overlap its
# gathers with compute (Megatron-LM's tensor parallelism, which wants 1, is not used here)

"""
