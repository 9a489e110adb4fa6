"""Rows of measurements: what is read, what is filled in, and what a row must not lack."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from planner.errors import SpecError
from planner.specs.stack import EP_OVERLAP, stack_named
from planner.validate import PUBLISHED, predicted, read_runs
from planner.validate.machines import cluster_of
from planner.validate.predict import measured_step_s
from planner.validate.stacks import stack_of
from planner.validate.vocabulary import FRAMEWORKS, HARDWARE, longest_prefix

LLAMA_8B = {
    "layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn": 14336,
    "vocab": 128256, "glu": True, "tied": False,
}  # fmt: skip
ROW = {
    "id": "a", "source": "s", "framework": "nanotron", "hardware": "H100-SXM-80GB", "gpus": "8",
    "arch_json": json.dumps(LLAMA_8B), "seq": "4096", "global_batch": "64", "micro_batch": "1",
    "dtype": "bf16", "tp": "2", "sp": "1", "pp": "1", "dp": "4", "zero_stage": "1",
    "recompute": "none", "step_time_s": "2.0",
}  # fmt: skip


def table(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def one(tmp_path: Path, **changes: str) -> dict:
    return predicted(read_runs(table(tmp_path / "runs.csv", ROW | changes)))[0]


def test_predictions_do_not_read_what_was_measured(tmp_path):
    plain = one(tmp_path)
    other = one(tmp_path, step_time_s="99", mfu="0.9", peak_mem_gib="7", tflops_per_gpu="1")
    assert plain["step_time_s_predicted"] == other["step_time_s_predicted"]
    assert plain["peak_gib_predicted"] == other["peak_gib_predicted"]
    assert plain["error"] != other["error"]


def test_rows_scored_together_equal_rows_scored_alone(tmp_path):
    layouts = [{"tp": str(t), "dp": str(8 // t), "id": str(t)} for t in (1, 2, 4, 8)]
    together = predicted(read_runs(table(tmp_path / "all.csv", *(ROW | x for x in layouts))))
    for layout, record in zip(layouts, together, strict=True):
        assert one(tmp_path, **layout) == record


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"micro_batch": ""}, "micro_batch"),
        ({"arch_json": ""}, "arch_json"),
        ({"arch_json": "{"}, "arch_json"),
        ({"arch_json": '{"layers": ' + "9" * 5000 + "}"}, "arch_json: not JSON"),
        ({"arch_json": '{"layers": "x"}'}, "arch_json"),
        ({"arch_json": json.dumps(LLAMA_8B | {"mamba": 1})}, "arch_json"),
        ({"arch_json": json.dumps(LLAMA_8B | {"moe": [1]})}, "arch_json"),
        ({"hardware": "abacus"}, "hardware"),
        ({"dtype": "int8"}, "dtype"),
        ({"seq": ""}, "seq"),
        ({"seq": "nan"}, "seq"),
        ({"gpus": "1e300"}, "gpus"),
        ({"dp": "5"}, "dp"),
        ({"pp": "64", "gpus": "512"}, "vpp"),
        ({"offload": "planned activation offload"}, "offload"),
        ({"recompute": "sometimes"}, "recompute"),
        ({"zero_stage": "one"}, "zero_stage"),
        ({"model": "Llama2-70B-LoRA"}, "model"),
    ],
)
def test_a_row_that_lacks_something_is_skipped_and_says_what(tmp_path, changes, field):
    record = one(tmp_path, **changes)
    assert record["status"] == "skipped"
    assert record["reason"].startswith(field)


def test_a_blank_with_a_usual_value_is_filled_and_said(tmp_path):
    record = one(tmp_path, dtype="", recompute="", sp="", zero_stage="")
    assert record["status"] == "ok"
    assert set(record["assumed"]) == {"dtype", "recompute", "sp", "zero_stage"}
    assert not one(tmp_path)["assumed"]


def test_step_time_is_recovered_from_throughput(tmp_path):
    tokens = 64 * 4096 / 2.0 / 8
    measured = one(tmp_path, step_time_s="", tokens_per_s_per_gpu=str(tokens))
    assert measured["step_time_s_measured"] == pytest.approx(2.0)
    assert one(tmp_path, step_time_s="", samples_per_s="32")["step_time_s_measured"] == 2.0


def test_tflops_count_only_with_their_convention():
    run = read_runs(PUBLISHED)[0]
    base = dict.fromkeys(run.row, "") | {"gpus": "8", "tflops_per_gpu": "400", "framework": "x"}
    assert run.context
    assert measured_step_s(base, run.context) is None
    model = measured_step_s(base | {"tflops_convention": "model"}, run.context)
    bridge = base | {"tflops_convention": "model", "framework": "Megatron-Bridge"}
    causal = measured_step_s(bridge, run.context)
    assert model
    assert causal
    assert causal < model


def test_files_that_are_no_table_of_runs_are_refused(tmp_path):
    with pytest.raises(SpecError, match="cannot be read"):
        read_runs(tmp_path / "none.csv")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SpecError, match="columns missing: id"):
        read_runs(tmp_path / "x.csv")
    (tmp_path / "y.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="UTF-8"):
        read_runs(tmp_path / "y.csv")


@pytest.mark.parametrize("word", HARDWARE)
def test_every_known_machine_is_a_shipped_cluster(word):
    cluster = cluster_of({"hardware": word}, 64, {})
    assert cluster.nodes * cluster.node.gpus >= 64


def test_a_stack_s_own_name_is_a_framework():
    row = {"framework": "megatron", "hardware": "H100-SXM-80GB"}
    assert stack_of(row, {}, experts=False).split("+")[0] == "megatron"


def test_every_known_framework_is_a_shipped_profile():
    for name in FRAMEWORKS:
        row = {"framework": name, "hardware": "H100"}
        stack_named(stack_of(row, {}, experts=False))


def test_the_overlap_column_sets_flags():
    row = {
        "framework": "Megatron-Bridge",
        "framework_version": "0.5.0 (NeMo container 26.06)",
        "hardware": "GB200",
        "overlap": "grad_reduce;moe_a2a_overlap;dispatcher=deepep;cuda_graph=full_iteration:[]",
    }
    stack = stack_named(stack_of(row, {}, experts=True))
    assert (stack.dispatcher, stack.graphs, stack.ep_exposed) == ("deepep", "full", EP_OVERLAP)


@pytest.mark.parametrize(
    ("version", "hardware", "graphs"),
    [
        ("0.1.0 (NeMo container 25.09)", "GB200", "none"),
        ("0.2.0 (NeMo container 25.11)", "GB200", "partial"),
        ("0.2.0 (NeMo container 25.11)", "H100-SXM5-80GB", "none"),
        ("0.5.0 (NeMo container 26.06)", "GB200", "full"),
        ("2026-07/08", "GB300", "full"),
        ("2026-05", "GB300", "partial"),
    ],
)
def test_a_release_chooses_the_flags_of_megatron_bridge(version, hardware, graphs):
    row = {"framework": "Megatron-Bridge", "framework_version": version, "hardware": hardware}
    stack = stack_named(stack_of(row | {"dtype": "mxfp8"}, {}, experts=True))
    assert stack.graphs == graphs


@pytest.mark.parametrize(
    ("row", "flags"),
    [
        ({"dtype": "fp8-rowwise_gw_hp"}, ["fp8-rowwise"]),
        ({"overlap": "async TP"}, ["async-tp"]),
        ({"overlap": "vanilla TP"}, []),
        ({"note": "eager; peak reserved"}, ["eager"]),
        ({"note": "compile; source says 33 % for 8B eager"}, []),
        ({"framework_version": "torchtitan 2024-03 (eager)"}, ["eager"]),
        ({"framework_version": "torchtitan 2025-02"}, []),
        ({"framework_version": "torchtitan 2025-11"}, ["cudnn"]),
    ],
)
def test_a_torchtitan_row_says_its_compiler_scales_and_kernels(row, flags):
    base = {"framework": "torchtitan", "hardware": "H100-SXM-96GB"}
    assert stack_of(base | row, {}, experts=False).split("+")[1:] == flags


@pytest.mark.parametrize(
    ("row", "flags"),
    [
        ({"note": "vpp not stated; SFT on packed SQuAD sequences"}, ["packed"]),
        ({"note": "SFT fine-tuning (packed sequences); from tok/s"}, ["packed"]),
        ({"note": "SFT; GB as printed"}, ["packed"]),
        ({"note": "packed 8K; round figures"}, []),  # of what, it does not say
        ({"dtype": "nvfp4"}, ["nvfp4"]),
        ({"dtype": "mxfp8"}, ["mxfp8", "fp8-params"]),  # its recipes set fp8_param_gather
        ({"dtype": "fp8_cs"}, ["fp8-current", "fp8-params"]),
        ({"dtype": "fp8_sc"}, []),
    ],
)
def test_a_megatron_bridge_row_says_its_format_and_its_documents(row, flags):
    base = {"framework": "Megatron-Bridge", "hardware": "GB300"}
    assert stack_of(base | row, {}, experts=False).split("+")[1:] == flags


def test_recompute_that_a_table_only_infers_is_believed_of_several_nodes(tmp_path):
    """vTrain's simulator settings are alike for all its runs; on one node they cannot be true."""
    inferred = "recompute full inferred from use_checkpoint true in the validation configs"
    told = {"framework": "Megatron-DeepSpeed", "recompute": "full", "note": inferred}
    one_node = run_of(tmp_path, **told)
    assert one_node.layout["recompute"] == one_node.assumed["recompute"] == "none"
    two = run_of(tmp_path, **told, gpus="16", dp="8")
    assert two.layout["recompute"] == "full"
    assert run_of(tmp_path, **(told | {"note": ""})).layout["recompute"] == "full"


def run_of(tmp_path: Path, **changes: str):
    return read_runs(table(tmp_path / "runs.csv", ROW | changes))[0]


def test_a_recompute_list_names_what_runs_again(tmp_path):
    def modules(text: str) -> tuple[str, ...] | None:
        run = run_of(tmp_path, framework="Megatron-Bridge", recompute=text)
        return run.context.workload.recompute_modules

    assert modules("selective (mlp+core_attn)") == ("core_attn", "mlp")
    assert modules("selective:moe_act+layernorm") == ("moe_act", "layernorm")
    assert modules("moe+layernorm") == ("layernorm", "moe")
    assert modules("selective") is None
    assert modules("full") is None


def test_full_recompute_in_blocks_keeps_the_other_layers(tmp_path):
    run = run_of(tmp_path, recompute="full:block 5 layers")
    work = run.context.workload
    assert (work.recompute_method, work.recompute_layers) == ("block", 5)
    assert run.layout["recompute"] == "full"


@pytest.mark.parametrize(
    ("note", "replicas"),
    [
        ("ZeRO stage 1 (8-GPU group); micro_num=4", 2),
        ("ZeRO-1 within 8-GPU group, packed", 2),
        ("ZeRO stage 1 (4-rank group)", 4),
        ("ZeRO stage 1 (all DP)", 1),
    ],
)
def test_a_named_shard_group_makes_replicas(tmp_path, note, replicas):
    row = ROW | {"gpus": "16", "tp": "1", "dp": "16", "note": note}
    run = read_runs(table(tmp_path / "runs.csv", row))[0]
    assert run.layout["dp_replicate"] == replicas


def test_node_and_network_of_the_row_replace_the_shipped_ones():
    row = {"hardware": "A100-SXM-80GB", "inter_link": "4x100 Gb RoCE per node"}
    cluster = cluster_of(row, 16, {})
    assert (cluster.node.nics, cluster.node.nic_gbit_per_s, cluster.nodes) == (4, 100, 2)
    assumed: dict[str, str] = {}
    cluster_of({"hardware": "A100-SXM-80GB", "inter_link": "not stated"}, 16, assumed)
    assert "inter_link" in assumed


def test_the_longest_prefix_wins():
    table = {"H100": 1, "H100-SXM": 2}
    assert longest_prefix("H100-SXM-80GB", table) == 2
    assert longest_prefix("B200", table) is None


def test_activations_on_the_host_are_a_flag_with_their_layers(tmp_path):
    run = run_of(tmp_path, framework="Megatron-LM", offload="activations 10 layers to CPU")
    assert run.layout["offload"] == "none"
    assert stack_named(run.context.workload.stack).offload_layers == 10


def test_an_optimizer_on_the_host_is_read_as_offload(tmp_path):
    run = run_of(tmp_path, offload="optimizer to CPU 100%")
    assert run.layout["offload"] == "optimizer"
