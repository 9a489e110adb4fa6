"""Well-formed inputs of every kind, and a stream of damaged ones with commands that read them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import mutate
from harness import call

from planner.emit import EMITTER_NAMES
from planner.specs.parse import parse_yaml

ROOT = Path(__file__).resolve().parents[2]


class Case(NamedTuple):
    """A command line, and the files that stand in its folder."""

    kind: str
    words: list[str]
    files: dict[str, bytes]


MODEL = """\
name: small
layers: 4
hidden: 512
heads: 8
kv_heads: 4
head_dim: 64
ffn: 2048
vocab: 32000
max_seq_tokens: 2048
experts: {count: 8, top_k: 2, ffn: 512}
"""
DENSE = MODEL.replace("experts: {count: 8, top_k: 2, ffn: 512}\n", "")
CLUSTER = """\
accelerator: {base: h100-sxm-80gb, memory_gib: 80}
node: {gpus: 8, nics: 8, nic_gbit_per_s: 400}
scale_up: {kind: NVLink, gb_per_s: 450, domain_gpus: 8}
fabric: {kind: tor, nodes_per_leaf: 2, leaf_oversubscription: 2}
nodes: 2
"""
STUDY = """\
about: a grid
fixed: {model: small.yaml, cluster: dgx-h100, seq: 512, global_batch: 8}
axes:
  nodes: [1]
  fix: ["tp=2,pp=1", "tp=1,pp=1,zero=3"]
"""
CONFIG = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 512,
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    "intermediate_size": 2048, "vocab_size": 32000, "max_position_embeddings": 2048,
    "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": True,
    "sliding_window": None, "rope_scaling": {"type": "yarn"}, "attention_bias": False,
}  # fmt: skip
ARCH = json.dumps({
    "layers": 4, "hidden": 512, "heads": 8, "kv_heads": 4, "head_dim": 64, "ffn": 2048,
    "vocab": 32000, "glu": True, "tied": False,
})  # fmt: skip
QUOTED = '"' + ARCH.replace('"', '""') + '"'
RUNS = f"""\
id,source,framework,hardware,gpus,model,arch_json,seq,global_batch,micro_batch,dtype,tp,pp,dp,cp,\
zero_stage,recompute,step_time_s,tflops_per_gpu,peak_mem_gib
a,s,nanotron,H100-SXM-80GB,8,x,{QUOTED},512,8,1,bf16,2,1,4,1,1,none,0.5,,
b,s,megatron-lm,A100-SXM-80GB,8,x,{QUOTED},512,8,1,bf16,1,2,4,1,0,full,,100,20
"""
NODES = "# hosts\nnode[001-004]\nrack2-node7, rack2-node8\n"
SLURM = """\
SwitchName=leaf1 Nodes=node[001-002]
SwitchName=leaf2 Nodes=node[003-004],rack2-node[7-8] LinkSpeed=100
SwitchName=spine Switches=leaf[1-2]
"""
SLURM_YAML = """\
- topology: default
  cluster_default: true
  tree:
    switches:
      - switch: leaf1
        nodes: node[001-002]
      - switch: spine
        children: leaf1
"""
SCONTROL = """\
NodeName=node001 Arch=x86_64 CoresPerSocket=48
   CPUAlloc=0 CPUTot=96 CPULoad=0.10
   Gres=gpu:h100:8(S:0-1)
   State=IDLE ThreadsPerCore=1 TmpDisk=0 Weight=1
   CfgTRES=cpu=96,mem=2000G,gres/gpu=8
   AllocTRES=

NodeName=node002 Arch=x86_64
   Gres=gpu:h100:8 State=DOWN*+DRAIN Reason=xid 79
   CfgTRES=cpu=96,gres/gpu=8 AllocTRES=gres/gpu=2
"""
KUBECTL = {
    "apiVersion": "v1", "kind": "List", "items": [
        {"kind": "Node", "metadata": {"name": f"node00{i}", "labels": {"topology.leaf": "a"}},
         "spec": {"unschedulable": i == 2, "taints": [{"key": "x", "effect": "NoSchedule"}]},
         "status": {"capacity": {"nvidia.com/gpu": "8"}, "allocatable": {"nvidia.com/gpu": "8"},
                    "conditions": [{"type": "Ready", "status": "True"}]}}
        for i in (1, 2)
    ],
}  # fmt: skip
MEGATRON = (ROOT / "examples/jobs/megatron_70b.sh").read_text(encoding="utf-8")
TITAN = """\
[model]
name = "llama3"
flavor = "8B"
[training]
local_batch_size = 2
seq_len = 2048
[parallelism]
data_parallel_shard_degree = -1
tensor_parallel_degree = 2
pipeline_parallel_degree = 2
pipeline_parallel_schedule = "Interleaved1F1B"
[activation_checkpoint]
mode = "selective"
"""
DEEPSPEED = {
    "train_batch_size": 64, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4,
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"},
                          "zero_hpz_partition_size": 4, "reduce_bucket_size": 5e8},
    "bf16": {"enabled": True}, "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
    "pipeline": {"stages": 1}, "data_types": {"grad_accum_dtype": "fp32"},
}  # fmt: skip
ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_reshard_after_forward: true
  fsdp_activation_checkpointing: true
parallelism_config:
  parallelism_config_dp_replicate_size: 2
  parallelism_config_dp_shard_size: 4
mixed_precision: bf16
num_machines: 1
num_processes: 8
"""
NANOTRON = """\
parallelism: {dp: 2, pp: 2, tp: 2, pp_engine: 1f1b, tp_mode: REDUCE_SCATTER, recompute_layer: false}
tokens: {micro_batch_size: 1, batch_accumulation_per_replica: 4, sequence_length: 512}
optimizer: {zero_stage: 1, optimizer_factory: {name: adamW}}
model:
  dtype: bfloat16
  model_config: {num_hidden_layers: 4, hidden_size: 512, num_attention_heads: 8,
    num_key_value_heads: 4, intermediate_size: 2048, vocab_size: 32000}
"""
BRIDGE = """\
model: {num_layers: 4, hidden_size: 512, num_attention_heads: 8, tensor_model_parallel_size: 2,
  pipeline_model_parallel_size: 2, seq_length: 512, sequence_parallel: true}
train: {micro_batch_size: 1, global_batch_size: 16}
ddp: {use_distributed_optimizer: true}
trainer: {num_nodes: 1, devices: 8}
"""
TRAINER = """\
torchrun --nproc_per_node 8 run_clm.py --per_device_train_batch_size 2 \\
  --gradient_accumulation_steps 4 --bf16 --fsdp "full_shard auto_wrap" --gradient_checkpointing true
"""
JOBS = {
    "train.sh": MEGATRON, "job.toml": TITAN, "ds.json": json.dumps(DEEPSPEED, indent=1),
    "acc.yaml": ACCELERATE, "nano.yaml": NANOTRON, "bridge.yaml": BRIDGE, "run.sh": TRAINER,
}  # fmt: skip
SMALL = ["--seq", "512", "--global-batch", "8"]


@lru_cache
def plan_text() -> str:
    """Return a plan, made once."""
    words = ["plan", "llama-3.2-1b", "dgx-h100:1", "--seq", "512", "--global-batch", "16"]
    code, out, err = call([*words, "--fix", "tp=2,pp=2", "--top", "2", "--json"])
    assert code == 0, err
    return out


def _damaged(rng: random.Random, source: str) -> bytes:
    if rng.random() < 0.05:
        return mutate.blob(rng, source.encode())
    return mutate.text(rng, source).encode("utf-8", "surrogatepass")


def _damaged_yaml(rng: random.Random, source: str) -> bytes:
    """Return damaged text, or the tree with other values and names: JSON, and so YAML."""
    if rng.random() < 0.4:
        return _damaged(rng, source)
    return json.dumps(mutate.tree(rng, parse_yaml(source, ""))).encode()


def _damaged_json(rng: random.Random, data: object) -> bytes:
    if rng.random() < 0.3:
        return _damaged(rng, json.dumps(data))
    return json.dumps(mutate.tree(rng, data)).encode()


def model(rng: random.Random) -> Case:
    data = _damaged_yaml(rng, rng.choice((MODEL, DENSE)))
    read = [["specs", "check", "m.yaml", "--json"], ["specs", "show", "m.yaml", "--json"]]
    ranked = ["plan", "m.yaml", "dgx-h100:1", *SMALL, "--fix", "tp=2", "--top", "1", "--json"]
    return Case("model", rng.choice((*read, *read, ranked)), {"m.yaml": data})


def cluster(rng: random.Random) -> Case:
    data = _damaged_yaml(rng, CLUSTER)
    read = [
        ["specs", "check", "c.yaml"],
        ["specs", "show", "c.yaml", "--kind", "cluster", "--json"],
    ]
    layout = ["--layout", "tp=8,pp=1,zero=1,micro_batch=1", *SMALL]
    placed = ["place", "llama-3.2-1b", "c.yaml", *layout, "--global-batch", "16", "--json"]
    return Case("cluster", rng.choice((*read, *read, *read, placed)), {"c.yaml": data})


def accelerator(rng: random.Random) -> Case:
    source = (ROOT / "hardware_specs/accelerators/h100-sxm-80gb.yaml").read_text(encoding="utf-8")
    words = ["specs", "show", "a.yaml", "--kind", "accelerator", "--json"]
    return Case("accelerator", words, {"a.yaml": _damaged_yaml(rng, source)})


def config(rng: random.Random) -> Case:
    words = ["specs", "show", "config.json", "--json"]
    return Case("config", words, {"config.json": _damaged_json(rng, CONFIG)})


def study(rng: random.Random) -> Case:
    held = {"small.yaml": DENSE.encode(), "s.yaml": _damaged_yaml(rng, STUDY)}
    check = ["specs", "check", "s.yaml", "--kind", "study"]
    return Case("study", check, held)


def swept(rng: random.Random) -> Case:
    held = {"small.yaml": DENSE.encode(), "s.yaml": _damaged_yaml(rng, STUDY)}
    return Case("sweep", ["sweep", "s.yaml", "-o", "out.jsonl", "--jobs", "1", "--json"], held)


def plan_file(rng: random.Random) -> Case:
    if rng.random() < 0.3:
        data = _damaged(rng, plan_text())
    else:
        data = json.dumps(mutate.tree(rng, json.loads(plan_text()))).encode()
    target = rng.choice(EMITTER_NAMES)
    words = rng.choice((
        ["emit", "p.json", "--target", target, "-o", "out", "--json"],
        ["emit", "p.json", "--target", target, "-o", "out", "--json"],
        ["report", "p.json", "-o", "r.html", "--json"],
        ["simulate", "p.json", "--json"],
        ["import", "p.json", "--json"],
        ["place", "llama-3.2-1b", "dgx-h100:1", "--layout", "tp=2,pp=2", "--moved-from", "p.json",
         "--json", *SMALL],
    ))  # fmt: skip
    return Case("plan file", words, {"p.json": data})


def runs(rng: random.Random) -> Case:
    return Case("runs", ["validate", "r.csv", "--json"], {"r.csv": _damaged(rng, RUNS)})


def machines(rng: random.Random) -> Case:
    option, name, source = rng.choice((
        ("--nodes-file", "n.txt", NODES), ("--slurm-topology", "topology.conf", SLURM),
        ("--slurm-topology", "topology.yaml", SLURM_YAML), ("--node-state", "s.txt", SCONTROL),
        ("--node-state", "k.json", json.dumps(KUBECTL)),
    ))  # fmt: skip
    how = _damaged_json if name == "k.json" and rng.random() < 0.7 else _damaged
    held = {"n.txt": NODES.encode(), name: how(rng, KUBECTL if how is _damaged_json else source)}
    words = ["place", "llama-3.2-1b", "dgx-h100", "--layout", "tp=8,pp=1,zero=0,micro_batch=1"]
    words += ["--gpus", "8", *SMALL, option, name, "--json"]
    if option != "--nodes-file":
        words += ["--nodes-file", "n.txt"]
    return Case("machines", words, held)


def imported(rng: random.Random) -> Case:
    name = rng.choice(sorted(JOBS))
    words = ["import", name, "--json"]
    how = _damaged_yaml if name.endswith((".yaml", ".json")) else _damaged
    held = {name: how(rng, JOBS[name])}
    if rng.random() < 0.2:
        other = rng.choice(sorted(JOBS))
        held.setdefault(other, _damaged(rng, JOBS[other]))
        words.insert(2, other)
    if rng.random() < 0.03:
        words += ["--cluster", "dgx-h100", "--model", "llama-3.2-1b"]
    return Case("import", words, held)


def table(rng: random.Random) -> Case:
    suffix = rng.choice(("jsonl", "csv"))
    words = ["report", f"t.{suffix}", "-o", "r.html", "--json"]
    return Case("table", words, {f"t.{suffix}": _damaged(rng, _table(suffix))})


@lru_cache
def _table(suffix: str) -> str:
    """Return a sweep's table, made once."""
    import os
    import tempfile

    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("small.yaml").write_text(DENSE)
            Path("s.yaml").write_text(STUDY)
            code, _, err = call(["sweep", "s.yaml", "-o", f"t.{suffix}", "--jobs", "1"])
            assert code == 0, err
            return Path(f"t.{suffix}").read_text()
        finally:
            os.chdir(here)


LINES = (
    ["specs", "list", "llama", "--json"],
    ["specs", "show", "dgx-h100:4", "--json"],
    ["specs", "schema", "cluster"],
    ["specs", "check", "m.yaml"],
    ["gradient-sync", "70B", "--replicas", "64", "--bytes", "4", "--json"],
    ["explain", "m.yaml", "dgx-h100:1", "--layout", "tp=8,pp=1,micro_batch=1", *SMALL, "--json"],
    ["place", "m.yaml", "dgx-h100:1", "--layout", "tp=8", "--unhealthy", "node00001:3", *SMALL],
    ["plan", "m.yaml", "dgx-h100:1", "--fix", "tp=2,pp=2,cp=1", "--top", "1", *SMALL, "--json"],
    ["plan", "m.yaml", "dgx-h100:1", "--fix", "tp=8", "-o", "out", "--target", "megatron", *SMALL],
    ["emit", "p.json", "--target", "torchrun,slurm", "-o", "out", "--force"],
    ["simulate", "p.json", "--json", "-o", "trace.json"],
    ["report", "p.json", "-o", "r.html"],
    ["import", "train.sh", "--set", "TP=8", "--gpus", "64", "--json"],
    ["--version"],
)


def command_line(rng: random.Random) -> Case:
    words = mutate.words(rng, list(rng.choice(LINES)))
    held = {"m.yaml": DENSE.encode(), "p.json": plan_text().encode(), "train.sh": MEGATRON.encode()}
    return Case("command line", words, held)


KINDS: dict[str, tuple[Callable[[random.Random], Case], int]] = {
    "model": (model, 14),
    "cluster": (cluster, 10),
    "accelerator": (accelerator, 8),
    "config": (config, 12),
    "study": (study, 10),
    "sweep": (swept, 1),
    "plan file": (plan_file, 8),
    "runs": (runs, 5),
    "machines": (machines, 6),
    "import": (imported, 20),
    "table": (table, 2),
    "command line": (command_line, 6),
}
"""Kind -> what makes a case, and how many of a hundred are of it."""


def cases(seed: int, count: int) -> Iterator[Case]:
    """Yield so many cases; the same seed gives the same cases."""
    rng = random.Random(seed)
    makers = [maker for maker, _ in KINDS.values()]
    weights = [weight for _, weight in KINDS.values()]
    for maker in rng.choices(makers, weights, k=count):
        yield maker(random.Random(rng.getrandbits(64)))
