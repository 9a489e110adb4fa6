"""Settings as people write them: shell scripts, TOML, YAML, JSON, several files of one job."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest

from planner.errors import SpecError
from planner.importing import read_job
from planner.importing.words import settings_of

MEGATRON = """\
#!/bin/bash
# it's a comment, with an apostrophe
GPUS_PER_NODE=8
NUM_NODES=${SLURM_NNODES:-4}
WORLD_SIZE=$(($GPUS_PER_NODE*$NUM_NODES))
TP=2
MODEL_ARGS=(
    --num-layers 32 --hidden-size 4096  # Llama's
    --ffn-hidden-size 14336 --num-attention-heads 32
    --group-query-attention --num-query-groups 8 --kv-channels 128
    --swiglu --disable-bias-linear --normalization RMSNorm
    --untie-embeddings-and-output-weights
    --position-embedding-type rope --max-position-embeddings 8192
    --attention-dropout 0.0 --hidden-dropout 0.0
    "--vocab-size 128256"
)
if [[ "$DTYPE" == "fp8" ]]; then
    DTYPE_ARGS+=(
        "--fp8-format hybrid"
    )
fi
torchrun --nproc_per_node $GPUS_PER_NODE --nnodes $NUM_NODES pretrain_gpt.py \\
    ${MODEL_ARGS[@]} --tensor-model-parallel-size $TP \\
    --pipeline-model-parallel-size $((TP * 2)) --sequence-parallel \\
    --micro-batch-size 1 --global-batch-size 128 --seq-length 8192 --bf16 \\
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
"""


def job_of(tmp_path: Path, files: dict[str, str], **more):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return read_job([tmp_path / name for name in files], **more)


def fields(job, *names: str) -> dict[str, str]:
    return {name: job.layout[name] for name in names}


def test_a_script_s_variables_arithmetic_and_arrays_are_followed(tmp_path):
    job = job_of(tmp_path, {"train.sh": MEGATRON})
    assert fields(job, "tp", "pp", "dp", "sp", "zero") == {
        "tp": "2", "pp": "4", "dp": "4", "sp": "1", "zero": "1",
    }  # fmt: skip
    assert (job.gpus, job.seq_tokens, job.global_batch) == (32, 8192, 128)
    assert job.precision == "fp8"  # branches are not run: every option counts
    assert (job.model.layers, job.model.vocab, job.model.kv_heads) == (32, 128256, 8)


def test_a_variable_that_nothing_sets_is_named_and_can_be_given(tmp_path):
    text = MEGATRON.replace("TP=2\n", "")
    with pytest.raises(SpecError, match="nothing sets TP") as refused:
        job_of(tmp_path, {"train.sh": text})
    assert "--set TP=VALUE" in refused.value.hint
    job = job_of(tmp_path, {"train.sh": text}, given={"TP": "4"})
    assert job.layout["tp"] == "4"


def test_a_given_variable_wins_over_the_script_s(tmp_path):
    job = job_of(tmp_path, {"train.sh": MEGATRON}, given={"TP": "1"})
    assert fields(job, "tp", "pp") == {"tp": "1", "pp": "2"}


def test_a_script_is_read_and_never_run(tmp_path):
    owned = tmp_path / "owned"
    text = MEGATRON + f"\ntouch {owned}\nX=$(touch {owned}) Y=`touch {owned}`\n"
    assert job_of(tmp_path, {"train.sh": text}).gpus == 32
    assert not owned.exists()


def test_sbatch_lines_say_how_many_gpus(tmp_path):
    head = "#!/bin/bash\n#SBATCH --nodes=16\n#SBATCH --gpus-per-node=8\n"
    text = head + "python pretrain.py --tensor-model-parallel-size 8 --num-layers 8"
    assert job_of(tmp_path, {"job.sbatch": text}).layout["dp"] == "16"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--num-virtual-stages-per-pipeline-rank 4", {"vpp": "4", "schedule": "interleaved"}),
        ("--num-layers-per-virtual-pipeline-stage 2", {"vpp": "4"}),
        ("--pipeline-model-parallel-layout Et*3|(t*2|)*14t*1L", {"vpp": "4"}),
        ("--recompute-activations", {"recompute": "selective"}),
        ("--recompute-granularity full --recompute-method block", {"recompute": "full"}),
        ("--use-torch-fsdp2", {"zero": "3"}),
        ("--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads", {"zero": "2"}),
        ("--num-distributed-optimizer-instances 2", {"dp_replicate": "2"}),
        ("--optimizer-cpu-offload", {"offload": "optimizer"}),
        ("--context-parallel-size 2", {"cp": "2", "dp": "2"}),
    ],
)
def test_flags_of_megatron(flags, expected, tmp_path):
    job = job_of(tmp_path, {"train.sh": MEGATRON.replace("--bf16", f"--bf16 {flags}")})
    assert fields(job, *expected) == expected


@pytest.mark.parametrize(
    ("flag", "stack"),
    [
        ("--use-precision-aware-optimizer", "megatron+precision-aware"),
        ("--grad-reduce-in-bf16", "megatron+bf16-gradients"),
        ("--fp8-recipe mxfp8", "megatron+mxfp8"),
    ],
)
def test_what_the_stack_switches_on_comes_from_flags(flag, stack, tmp_path):
    job = job_of(tmp_path, {"t.sh": MEGATRON.replace("--bf16", f"--bf16 {flag}")})
    assert job.stack == stack


@pytest.mark.parametrize(
    ("left_out", "stack"),
    [
        (["--overlap-param-gather"], "megatron+no-gather-overlap"),
        (
            ["--overlap-grad-reduce", "--overlap-param-gather"],
            "megatron+no-dp-overlap+no-gather-overlap",
        ),
        (  # nothing is sharded: no parameters to gather
            ["--overlap-param-gather", "--use-distributed-optimizer"],
            "megatron",
        ),
    ],
)
def test_overlaps_that_a_megatron_job_leaves_out_are_seen(left_out, stack, tmp_path):
    text = MEGATRON
    for option in left_out:
        text = text.replace(option, "")
    assert job_of(tmp_path, {"t.sh": text}).stack == stack


@pytest.mark.parametrize(
    ("zero", "flags"),
    [
        ({"stage": 1}, ["no-dp-overlap"]),
        ({"stage": 2, "overlap_comm": False}, ["no-dp-overlap"]),
        ({"stage": 2, "overlap_comm": True}, []),
        ({"stage": 3, "overlap_comm": False}, []),
    ],
)
def test_overlap_of_deepspeed_is_off_below_stage_3_unless_it_is_switched_on(zero, flags, tmp_path):
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
    job = job_of(tmp_path, {"ds_config.json": json.dumps(config)}, gpus=8)
    assert job.stack.split("+")[1:] == ["bf16-gradients", *flags]
    assert any("overlap_comm" in said for said in job.assumed) == (zero["stage"] == 3)


def test_experts_and_their_dispatcher(tmp_path):
    moe = "--num-experts 8 --moe-router-topk 2 --expert-model-parallel-size 4 --moe-enable-deepep"
    job = job_of(tmp_path, {"t.sh": MEGATRON.replace("--bf16", f"--bf16 {moe}")})
    assert fields(job, "ep", "etp") == {"ep": "4", "etp": "2"}  # etp follows tp by default
    assert job.stack == "megatron+deepep"
    assert job.model.experts.count == 8


BRIDGE = """\
model:
  num_layers: 32
  hidden_size: 4096
  ffn_hidden_size: 14336
  num_attention_heads: 32
  num_query_groups: 8
  tensor_model_parallel_size: 4
  pipeline_model_parallel_size: 2
  sequence_parallel: true
  seq_length: 4096
  gated_linear_unit: true
  add_bias_linear: false
train:
  micro_batch_size: 2
  global_batch_size: 64
ddp:
  use_distributed_optimizer: true
  grad_reduce_in_fp32: false
trainer:
  num_nodes: 2
  devices: 8
  precision: bf16-mixed
"""


def test_nested_yaml_is_megatron_bridge_s(tmp_path):
    job = job_of(tmp_path, {"c.yaml": BRIDGE})
    assert fields(job, "tp", "pp", "dp", "micro_batch", "zero") == {
        "tp": "4", "pp": "2", "dp": "2", "micro_batch": "2", "zero": "1",
    }  # fmt: skip
    assert job.stack == "megatron-bridge+bf16-gradients"
    assert job.model.gated_mlp
    assert not job.model.mlp_bias


def test_overrides_on_a_command_line_are_options_too(tmp_path):
    text = "torchrun --nproc-per-node 8 pretrain.py model.tensor_model_parallel_size=4 \\\n"
    text += "  train.global_batch_size=64 train.micro_batch_size=1 model.num_layers=8\n"
    job = job_of(tmp_path, {"run.sh": text})
    assert fields(job, "tp", "dp") == {"tp": "4", "dp": "2"}
    assert job.stack.startswith("megatron-bridge")


def test_arguments_under_a_heading_as_megatron_s_tests_have_them(tmp_path):
    text = "ENV_VARS:\n  A: 1\nMODEL_ARGS:\n  --num-layers: 12\n  --hidden-size: 512\n"
    text += "  --num-attention-heads: 8\n  --tensor-model-parallel-size: 2\n  --bf16: true\n"
    job = job_of(tmp_path, {"model_config.yaml": text}, gpus=8)
    assert fields(job, "tp", "dp") == {"tp": "2", "dp": "4"}


TITAN = """\
[model]
name = "llama3"
flavor = "70B"
[training]
local_batch_size = 8
seq_len = 8192
[parallelism]
data_parallel_replicate_degree = 2
data_parallel_shard_degree = -1
tensor_parallel_degree = 8
pipeline_parallel_degree = 1
[activation_checkpoint]
mode = "full"
[compile]
enable = true
"""


def test_torchtitan_s_toml(tmp_path):
    job = job_of(tmp_path, {"llama3_70b.toml": TITAN}, gpus=64)
    assert fields(job, "tp", "dp", "dp_replicate", "zero", "recompute", "micro_batch") == {
        "tp": "8", "dp": "8", "dp_replicate": "2", "zero": "3", "recompute": "full",
        "micro_batch": "8",
    }  # fmt: skip
    assert (job.model_name, job.global_batch, job.stack) == ("llama-3.1-70b", 64, "torchtitan")


def test_the_first_torchtitan_s_toml(tmp_path):
    text = TITAN.replace("local_batch_size", "tensor_parallel_degree = 4\nbatch_size")
    text = text.replace("\ntensor_parallel_degree = 8", "")
    text += "[experimental]\npipeline_parallel_degree = 2\ncontext_parallel_degree = 1\n"
    text = text.replace("\npipeline_parallel_degree = 1", "")
    job = job_of(tmp_path, {"old.toml": text}, gpus=32)
    assert fields(job, "tp", "pp", "dp", "zero") == {"tp": "4", "pp": "2", "dp": "4", "zero": "2"}


def test_torchtitan_s_command_line(tmp_path):
    text = "torchrun --nproc-per-node 8 --nnodes 4 -m torchtitan.train --module llama3 \\\n"
    text += "  --config llama3_8b --parallelism.tensor-parallel-degree 2 \\\n"
    text += "  --parallelism.pipeline_parallel_degree=4 --training.seq_len=4096 \\\n"
    text += "  --parallelism.pipeline_parallel_schedule 1F1B --training.local_batch_size 8 \\\n"
    text += "  --training.global_batch_size 32 activation-checkpoint:selective\n"
    job = job_of(tmp_path, {"run.sh": text})
    assert fields(job, "tp", "pp", "dp", "zero", "schedule", "recompute", "micro_batch") == {
        "tp": "2", "pp": "4", "dp": "4", "zero": "2", "schedule": "1f1b",
        "recompute": "selective", "micro_batch": "1",
    }  # fmt: skip
    assert job.model_name == "llama-3.1-8b"
    assert "eager" in job.stack


DEEPSPEED = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}},
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
}
TRAINER = "torchrun --nproc_per_node 8 --nnodes 2 run_clm.py --per_device_train_batch_size 2 \\\n"
TRAINER += "  --gradient_accumulation_steps 4 --gradient_checkpointing true --block_size 4096\n"


def test_deepspeed_s_auto_is_what_the_trainer_has(tmp_path):
    job = job_of(tmp_path, {"ds.json": json.dumps(DEEPSPEED), "run.sh": TRAINER})
    assert fields(job, "dp", "zero", "micro_batch", "recompute", "offload") == {
        "dp": "16", "zero": "3", "micro_batch": "2", "recompute": "full",
        "offload": "optimizer+params",
    }  # fmt: skip
    assert (job.global_batch, job.seq_tokens, job.stack) == (128, 4096, "deepspeed")


def test_deepspeed_s_three_batch_sizes_give_the_gpus(tmp_path):
    sizes = {"train_batch_size": 64, "gradient_accumulation_steps": 4}
    job = job_of(tmp_path, {"ds.json": json.dumps(DEEPSPEED | sizes)})
    assert (job.gpus, job.layout["dp"]) == (8, "8")
    with pytest.raises(SpecError, match="16 GPUs"):
        job_of(tmp_path, {"ds.json": json.dumps(DEEPSPEED | sizes)}, gpus=16)
    with pytest.raises(SpecError, match="not a multiple"):
        job_of(tmp_path, {"ds.json": json.dumps(DEEPSPEED | sizes | {"train_batch_size": 65})})


def test_16_bit_gradient_sums_are_a_flag_of_the_stack(tmp_path):
    data = {k: v for k, v in DEEPSPEED.items() if k != "data_types"}
    job = job_of(tmp_path, {"ds.json": json.dumps(data)})
    assert job.stack == "deepspeed+bf16-gradients"


ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
downcast_bf16: 'no'
fsdp_config:
  fsdp_sharding_strategy: HYBRID_SHARD
  fsdp_activation_checkpointing: true
mixed_precision: bf16
num_machines: 2
num_processes: 16
"""


def test_accelerate_with_fsdp1_s_words(tmp_path):
    job = job_of(tmp_path, {"a.yaml": ACCELERATE, "run.sh": TRAINER})
    assert fields(job, "dp", "dp_replicate", "zero", "micro_batch", "recompute") == {
        "dp": "16", "dp_replicate": "2", "zero": "3", "micro_batch": "2", "recompute": "full",
    }  # fmt: skip
    assert job.stack == "fsdp1"
    assert job.ignored == job.without_effect


def test_accelerate_with_deepspeed_inside(tmp_path):
    text = "distributed_type: DEEPSPEED\nnum_machines: 1\nnum_processes: 8\nmixed_precision: fp16\n"
    text += "deepspeed_config:\n  zero_stage: 2\n  gradient_accumulation_steps: 4\n"
    job = job_of(tmp_path, {"a.yaml": text})
    assert fields(job, "dp", "zero") == {"dp": "8", "zero": "2"}
    assert job.precision == "fp16"


def test_the_trainer_alone(tmp_path):
    job = job_of(tmp_path, {"run.sh": TRAINER.replace("--block", "--fsdp 'full_shard' --block")})
    assert fields(job, "dp", "zero") == {"dp": "16", "zero": "3"}
    assert job.framework == "Hugging Face Trainer"


def test_what_is_not_read_is_named(tmp_path):
    job = job_of(tmp_path, {"train.sh": MEGATRON.replace("--bf16", "--bf16 --frobnicate 3")})
    assert set(job.ignored) - set(job.without_effect) == {"frobnicate"}
    assert "overlap_param_gather" not in job.ignored  # it is read: it hides traffic


def test_gpus_that_no_file_says_are_those_of_the_cluster_and_that_is_told(tmp_path):
    text = "--tensor-model-parallel-size 2\n--num-layers 8\n--bf16\n"
    job = job_of(tmp_path, {"megatron.args": text}, otherwise=16)
    assert job.layout["dp"] == "8"
    assert "16 GPUs" in job.assumed[0]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.sh", "echo hello", "no settings"),
        ("a.json", "{}", "holds no settings"),
        ("a.json", "[]", "no mapping"),
        ("a.json", "{", "not valid JSON"),
        ("a.toml", "a = [", "not valid TOML"),
        ("a.yaml", "a: &x [*x]", "anchors"),
        ("a.yaml", "k: v", "no kind"),
        ("a.sh", "--tensor-model-parallel-size many", "whole number"),
        ("a.sh", "--tensor-model-parallel-size -4", "whole number"),
        ("a.sh", "--tensor-model-parallel-size 99999999999", "whole number"),
        ("a.sh", "--tensor-model-parallel-size 3 --nnodes 1 --nproc-per-node 8", "multiple"),
        ("a.sh", "--tensor-model-parallel-size 1 --recompute-granularity some", "full or"),
        ("a.sh", "--tensor-model-parallel-size 1 --optimizer lion", "adam"),
        ("a.toml", "[parallelism]\ndata_parallel_shard_degree = 0", "-1 or from 1"),
        ("a.toml", "[parallelism]\npipeline_parallel_degree = 'x'", "whole number"),
        ("a.json", '{"zero_optimization": {"stage": 7}}', "0, 1, 2 or 3"),
        ("a.json", '{"zero_optimization": {"stage": [3]}}', "one value"),
    ],
)
def test_what_is_wrong_is_refused_by_file_and_name(name, text, said, tmp_path):
    with pytest.raises(SpecError, match=said) as refused:
        job_of(tmp_path, {name: text})
    assert name in str(refused.value)


BOMBS = {
    "doubling": "A0=xxxxxxxx\n" + "".join(f"A{i + 1}=$A{i}$A{i}\n" for i in range(60)),
    "references": "A=" + "y" * 30000 + "\n" + ("x=" + "$A" * 15000 + "\n") * 30,
    "self": "A=$A$A$A\n" * 20000,
    "quotes": "'\"" * 200_000,
    "one line": "--a b " * 150_000,
    "one word": "--" + "a" * 900_000,
    "brackets": "X=" + "$((" * 200_000,
    "defaults": "${A:-" * 150_000,
    "nested quotes": 'a="b \'c \\"d e\\" f\' g"\n' * 30_000,
    "layout": "--tensor-model-parallel-size 1 --pipeline-model-parallel-size 2 "
    "--pipeline-model-parallel-layout " + "(t|)*999999" * 1000,
    "layers": "--tensor-model-parallel-size 1 --num-experts 4 --num-layers 99999 "
    "--hidden-size 8 --num-attention-heads 1 --moe-layer-freq " + "([0]*99999+[1]*99999)*99999",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_script_made_to_hang_its_reader_does_not(name, tmp_path):
    text = BOMBS[name]
    if "--tensor" not in text:
        text += "\n--tensor-model-parallel-size 2 --num-layers 8\n"
    before = time.process_time()
    with contextlib.suppress(SpecError):
        job_of(tmp_path, {"bomb.sh": text[: 2**20]})
    assert time.process_time() - before < 5


def test_semicolons_end_assignments():
    options, variables = settings_of('TP=${TP:-8}; PP=2;DP=4\nrun --tp $TP --pp "$PP"\n', {})
    assert (variables["TP"], variables["PP"], variables["DP"]) == ("8", "2", "4")
    assert (options["tp"], options["pp"]) == ("8", "2")


def test_no_setting_of_any_file_is_dropped_in_silence(tmp_path):
    """What a file beside the telling one holds is listed too, and what may matter stands apart."""
    config = {**DEEPSPEED, "sparse_attention": {"mode": "fixed"}}
    config["zero_optimization"] = {"stage": 3, "zero_quantized_weights": True, "overlap_comm": True}
    script = TRAINER.replace("run_clm.py", "run_clm.py --lora_rank 8 --learning_rate 1e-4")
    job = job_of(tmp_path, {"ds.json": json.dumps(config), "run.sh": script})
    may_matter = set(job.ignored) - set(job.without_effect)
    unheard = {"lora_rank", "sparse_attention.mode", "zero_optimization.zero_quantized_weights"}
    assert unheard <= may_matter
    assert {"learning_rate", "zero_optimization.overlap_comm"} <= set(job.without_effect)
    assert not {"nnodes", "nproc_per_node", "gradient_accumulation_steps"} & set(job.ignored)


def test_deepspeed_says_by_which_keys_it_counts_gpus(tmp_path):
    sizes = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2}
    sizes |= {"gradient_accumulation_steps": 1, "zero_optimization": {"stage": 1}}
    job = job_of(tmp_path, {"ds.json": json.dumps(sizes)})
    keys = (
        "train_batch_size 64 / (train_micro_batch_size_per_gpu 2 x gradient_accumulation_steps 1)"
    )
    assert job.gpus == 32
    assert job.gpus_from == f"{keys} = 32 GPUs"
    with pytest.raises(SpecError, match="it is to run on 24 GPUs") as refused:
        job_of(tmp_path, {"ds.json": json.dumps(sizes)}, gpus=24)
    assert keys in refused.value.message
    assert refused.value.hint.startswith("--gpus 32, or mend")
    staged = json.dumps(sizes | {"pipeline": {"stages": 5}})
    with pytest.raises(SpecError, match=r"24 GPUs are not a multiple of pipeline.stages 5 = 5"):
        job_of(tmp_path, {"ds.json": staged}, gpus=24)


@pytest.mark.parametrize(
    ("text", "hint"), [("{}", "known are"), ('{"k": 1}', "found k; known are")]
)
def test_a_file_without_settings_lists_none_that_were_found(tmp_path, text, hint):
    with pytest.raises(SpecError) as raised:
        job_of(tmp_path, {"a.json": text})
    assert raised.value.hint.startswith(hint)
