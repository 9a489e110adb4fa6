"""Whose each value of a bundle's files is: the plan's, or the user's to change.

What we write is the plan's unless it stands here as the user's: then no edit of a planned value
goes unseen because somebody forgot to list it. `ours` names what the user cannot add beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.emit.facts import (
    Kind,
    command_facts,
    json_facts,
    line_facts,
    megatron_facts,
    override_facts,
    script_facts,
    titan_facts,
    yaml_facts,
)

QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"
"""Belongs to the layout also where it is unset (`megatron_rules.queue_text`)."""
ADDRESS = ("MASTER_ADDR", "master_addr", "NODE_RANK", "node_rank")
"""Variables of run.sh that are the user's where the hosts' names are placeholders."""
SCRIPT = Kind(
    script_facts,
    yours=(
        *("MASTER_PORT", "master_port", "TRAIN_SCRIPT", "TRAIN", "PYTHONPATH", "LD_LIBRARY_PATH"),
        *("MEGATRON_PATH", "NANOTRON_PATH", "RECIPE", "DATA", "DATA_ARGS", "DATASET*", "HF_*"),
        *("#SBATCH --job-name", "#SBATCH --output", "#SBATCH --open-mode", "#SBATCH --requeue"),
        "#SBATCH --mem",
    ),
    ours=(QUEUES,),
)
KINDS: Mapping[str, Kind] = {
    "rank_map.json": Kind(json_facts, yours=("planned",), ours=("*",)),
    "hosts.txt": Kind(line_facts, ours=("*",)),
    "hostfile": Kind(line_facts, ours=("*",)),
    "commands.txt": Kind(command_facts, ours=("*",)),
    "run.sh": SCRIPT,
    "node.sh": SCRIPT,
    "env.sh": SCRIPT,
    "job.sbatch": SCRIPT,
    "ds_config.json": Kind(
        json_facts,
        yours=(
            *("optimizer.params.*", "gradient_clipping", "steps_per_print", "*.nvme_path"),
            "tensor_parallel.partition_config.*",  # the stand-in's
            *("wall_clock_breakdown", "zero_optimization.stage3_gather_16bit_weights_*"),
        ),
        ours=(
            *("zero_optimization.*", "bf16.enabled", "fp16.enabled", "pipeline.*", "amp.enabled"),
            *("tensor_parallel.*", "sequence_parallel_size", "data_types.*", "fp16.fp16_master_*"),
            "zero_allow_untested_optimizer",
        ),
    ),
    "accelerate.yaml": Kind(
        yaml_facts,
        yours=(
            *("compute_environment", "debug", "machine_rank", "main_training_function"),
            "fsdp_config.fsdp_state_dict_type",
            "fsdp_config.fsdp_cpu_ram_efficient_loading",  # the README says when
        ),
        ours=(
            *("parallelism_config.*", "fp8_config.*", "deepspeed_config.*", "gpu_ids"),
            *("fsdp_config.fsdp_min_num_params", "fsdp_config.fsdp_transformer_layer_cls_*"),
            *("fsdp_config.fsdp_sharding_strategy", "gradient_accumulation_steps", "fsdp_config"),
        ),
    ),
    "trainer_args.json": Kind(
        json_facts,
        yours=(
            *("output_dir", "max_steps", "learning_rate", "adam_*", "weight_decay", "seed"),
            *("max_grad_norm", "lr_scheduler_type", "logging_steps", "save_strategy", "report_to"),
            *("disable_tqdm", "dataloader_*", "remove_unused_columns"),
        ),
        ours=(
            *("fsdp*", "deepspeed", "parallelism_config*", "gradient_checkpointing", "tf32"),
            *("auto_find_batch_size", "accelerator_config*", "optim_args", "bf16*", "fp16*"),
        ),
    ),
    "torchtitan.args": Kind(
        titan_facts,
        yours=("training.steps", "metrics.*"),
        ours=(
            *("parallelism.*", "training.*batch_size", "training.seq_len", "training.dtype"),
            *("training.mixed_precision_*", "training.*_cpu_offload", "activation*checkpoint*"),
        ),
    ),
    "megatron.args": Kind(
        megatron_facts,
        yours=(
            *("--lr", "--min-lr", "--clip-grad", "--train-iters", "--eval-iters", "--log-*"),
            *("--moe-aux-loss-coeff", "--moe-router-load-balancing-type"),
        ),
        ours=(
            *("--*-parallel-size", "--sequence-parallel", "--num-virtual-stages-*", "--fp16"),
            *("--pipeline-model-parallel-layout", "--account-for-*", "--decoder-*-num-layers"),
            *("--num-layers*", "--ffn-hidden-size", "--num-query-groups", "--kv-channels"),
            *("--group-query-attention", "--swiglu", "--normalization", "--num-experts", "--bf16"),
            *("--untie-embeddings-and-output-weights", "--moe-router-topk", "--fp8-*"),
            *("--moe-ffn-hidden-size", "--moe-shared-expert-*", "--moe-layer-freq", "--optimizer"),
            *("--use-distributed-optimizer", "--use-megatron-fsdp", "--use-torch-fsdp2"),
            *("--data-parallel-sharding-strategy", "--num-distributed-optimizer-instances"),
            *("--recompute-*", "--optimizer-cpu-offload", "--optimizer-offload-fraction"),
            *("--use-precision-aware-optimizer", "--exp-avg-*", "--main-grads-dtype", "--*-dtype"),
            *("--use-tp-pp-dp-mapping", "--multi-latent-attention", "--*-lora-rank"),
            *("--overlap-*", "--tp-comm-overlap", "--moe-expert-capacity-factor", "--moe-pad-*"),
            *("--cpu-offloading*", "--cp-comm-type", "--hierarchical-context-*"),
        ),
    ),
    "model.overrides": Kind(override_facts, ours=("model.*",)),
    "plan.overrides": Kind(
        override_facts,
        yours=(
            *("optimizer.lr", "optimizer.min_lr", "optimizer.clip_grad", "train.train_iters"),
            *("validation.*", "logger.*"),
        ),
        ours=(
            *("model.*", "ddp.*", "dist.*", "mixed_precision*", "dataset.seq_length"),
            *("train.*_batch_size", "optimizer.optimizer", "optimizer.*_dtype"),
            *("optimizer.use_*", "optimizer.*offload*", "checkpoint.ckpt_format"),
            *("comm_overlap.*", "optimizer.overlap_*"),
        ),
    ),
    "nanotron.yaml": Kind(
        yaml_facts,
        yours=(
            *("general.*", "tokens.train_steps", "tokens.val_*", "tokens.limit_*"),
            *("model.init_method.*", "optimizer.weight_decay", "optimizer.clip_grad"),
            *("optimizer.optimizer_factory.adam_*", "optimizer.learning_rate_scheduler.*"),
            *("checkpoints.*", "data_stages.*", "logging.*"),
        ),
        ours=("parallelism.*", "optimizer.zero_stage", "model.model_config.*", "model.dtype"),
    ),
    "jobset.yaml": Kind(
        yaml_facts,
        yours=(
            *("metadata.*", "spec.network.*", "spec.failurePolicy.*", "*.hostNetwork"),
            *("*.dnsPolicy", "*.restartPolicy", "*.backoffLimit", "*.image", "*.volumes.*"),
            *(
                "*.volumeMounts.*",
                "*.command.*",
                "*.annotations.*",
                "*.name",
                "*.env.MASTER_PORT.*",
            ),
            *("*.jobset-name", "*.securityContext.*"),
        ),
        ours=("*/gpu", "*/efa", "*.nodeName", "*.nodeSelector.*", f"*.env.{QUEUES}.*"),
    ),
    "trainjob.yaml": Kind(
        yaml_facts,
        yours=(
            *("metadata.*", "spec.runtimeRef.*", "*.image", "*.volumes.*", "*.volumeMounts.*"),
            *("*.command.*", "*.annotations.*", "*.name", "*.manager", "*.securityContext.*"),
        ),
        ours=("*/gpu", "*/efa", "*.nodeSelector.*", f"*.env.{QUEUES}.*"),
    ),
}
"""By file name: no two targets use one name for different things."""
