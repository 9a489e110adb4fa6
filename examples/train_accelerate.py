#!/usr/bin/env python3
"""Train a small stand-in of a planned model with the Hugging Face Trainer, under Accelerate.

The ranks, the batch, the sharding and recompute are those of `plan.json`, `accelerate.yaml` and
`trainer_args.json` beside this file; widths are scaled down. Runs on CUDA (nccl) and, for plain
data parallelism, on CPU (gloo): FSDP2 in Accelerate needs an accelerator.

    accelerate launch --config_file accelerate.yaml ... train_accelerate.py [--model PATH]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import preflight
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

HERE = Path(__file__).resolve().parent
HIDDEN, HEADS, VOCAB, TOKENS, SEED = 64, 4, 256, 32, 1234


class Counting(Dataset[dict[str, Tensor]]):
    """Rows of tokens that count upwards, so that there is something to learn."""

    def __init__(self, rows: int, tokens: int) -> None:
        random = torch.Generator().manual_seed(SEED)
        self.first = torch.randint(VOCAB, (rows,), generator=random)
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        ids = (self.first[row] + torch.arange(self.tokens)) % VOCAB
        return {"input_ids": ids, "labels": ids.clone()}


def stand_in(plan: dict[str, Any]) -> LlamaForCausalLM:
    """Return a Llama with the plan's layers and scaled-down widths, the same on every rank."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=plan["request"]["model"]["layers"],
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            vocab_size=VOCAB,
            max_position_embeddings=4096,
        )
    )


def agree(trainer: Trainer, layout: dict[str, Any]) -> None:
    """Stop the job unless Accelerate made the groups that the plan says."""
    accelerator = trainer.accelerator
    rank = accelerator.process_index
    found = {"cp": rank % layout["cp"], "dp": rank // layout["cp"]}
    if (mesh := accelerator.torch_device_mesh) is not None:
        at = {name: mesh.get_local_rank(name) for name in mesh.mesh_dim_names}
        shards = layout["dp"] // layout["dp_replicate"]
        found["cp"] = at.get("cp", 0)
        found["dp"] = at.get("dp_replicate", 0) * shards + at.get("dp_shard", 0)
    preflight.check_groups(found, folder=HERE)
    sharded = "FSDP" in str(accelerator.distributed_type)
    if sharded != (layout["zero"] >= 2):
        raise SystemExit(
            f"the plan has zero={layout['zero']}, Accelerate runs {accelerator.distributed_type}"
        )


def main() -> None:
    """Check the placement, build the trainer, train a few steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or name of a Hugging Face model")
    parser.add_argument("--steps", type=int, help="instead of max_steps of trainer_args.json")
    options = parser.parse_args()
    plan = json.loads((HERE / "plan.json").read_text(encoding="utf-8"))
    layout = plan["plans"][0]["layout"]

    preflight.check(HERE)
    settings = json.loads((HERE / "trainer_args.json").read_text(encoding="utf-8"))
    settings["use_cpu"] = not torch.cuda.is_available()
    (args,) = HfArgumentParser(TrainingArguments).parse_dict(settings)
    args.max_steps = options.steps or args.max_steps
    if options.model:
        model = AutoModelForCausalLM.from_pretrained(options.model)
        tokens = plan["request"]["workload"]["seq_tokens"]
    else:
        model, tokens = stand_in(plan), 2 * layout["cp"] * TOKENS
    rows = args.max_steps * plan["request"]["workload"]["global_batch"]
    trainer = Trainer(model=model, args=args, train_dataset=Counting(rows, tokens))
    agree(trainer, layout)
    trainer.train()
    if trainer.accelerator.is_main_process:
        for entry in trainer.state.log_history:
            if "loss" in entry:
                print(f"step {entry['step']} loss {float(entry['loss']):.4f}", flush=True)
    trainer.accelerator.end_training()
    preflight.leave()


if __name__ == "__main__":
    main()
