from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import bash_bundle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_grid import LATENT, MODELS, model, plan, renamed

from planner.emit.base import Artifact
from planner.emit.megatron import EMITTER
from planner.emit.megatron_flags import flags
from planner.emit.megatron_pipeline import layout_string, pipeline_flags
from planner.errors import SpecError
from planner.plan import Plan

TABLE = Path(__file__).parents[1] / "measured" / "megatron_flags.csv"
EVERY_KIND = [
    plan(spec, tp=2, dp=8, ep=4 if spec.experts else 1, recompute="selective", **more)
    for spec in MODELS.values()
    for more in ({}, {"precision": "fp8"}, {"pp": 2, "vpp": 2}, {"zero": 0})
] + [
    plan(MODELS["dense"], dp=16, zero=z, dp_replicate=r, recompute="full")
    for z, r in ((1, 1), (2, 1), (3, 1), (3, 2))
]


def files(answer: Plan) -> dict[str, Artifact]:
    return {artifact.path: artifact for artifact in EMITTER.emit(answer)}


def allowed() -> dict[str, dict[str, str]]:
    lines = [x for x in TABLE.read_text("utf-8").splitlines() if not x.startswith("#")]
    return {row["flag"]: row for row in csv.DictReader(lines)}


@pytest.mark.parametrize("answer", EVERY_KIND, ids=lambda p: p.best.layout.short())
def test_every_flag_is_known_and_takes_as_many_values(answer):
    known, seen = allowed(), set()
    for _, rows in flags(answer):
        for name, values in rows:
            row = known[name]
            assert {"0": 0, "": 1}.get(row["nargs"], len(values)) == len(values), name
            assert not row["choices"] or set(values) <= set(row["choices"].split("|"))
            assert name not in seen, f"{name} twice"
            seen.add(name)


def test_the_flag_table_holds_nothing_that_is_never_written():
    written = {name for answer in EVERY_KIND for _, rows in flags(answer) for name, _ in rows}
    written |= set(re.findall(r"--[a-z-]+", files(EVERY_KIND[0])["run.sh"].text))
    source = "".join(
        p.read_text("utf-8")
        for p in (Path(__file__).parents[2] / "planner" / "emit").glob("megatron*.py")
    )
    assert {f for f in allowed() if f not in written and f'"{f}"' not in source} == set()


def expand(layout: str) -> list[str]:
    """Return the stages of a layout, read by Megatron's published grammar, one symbol a layer."""
    layout = re.sub(r"\(([^)]+)\)\*(\d+)", lambda m: m[1] * int(m[2]), layout)
    return re.sub(r"(.)\*(\d+)", lambda m: m[1] * int(m[2]), layout).split("|")


@given(
    chunks=st.lists(st.integers(1, 40), min_size=2, max_size=24),
    ends=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    mtp=st.integers(0, 2),
)
def test_a_layout_string_says_every_chunk(chunks, ends, mtp):
    chunks[0], chunks[-1] = ends
    stages = expand(layout_string(chunks, mtp))
    assert [s.count("t") for s in stages] == chunks
    flat = "".join(stages)
    assert flat == "E" + "t" * sum(chunks) + "m" * mtp + "L"
    assert stages[-1].endswith("m" * mtp + "L")


@pytest.mark.parametrize(
    ("chunks", "vpp", "wanted"),
    [
        ([8, 8, 8, 8], 1, ""),
        ([4] * 8, 2, "--num-virtual-stages-per-pipeline-rank 2"),
        (
            [7, 8, 8, 7],
            1,
            "--account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split",
        ),
        ([7, 8, 8, 8], 1, "--account-for-embedding-in-pipeline-split"),
        ([8, 8, 8, 7], 1, "--account-for-loss-in-pipeline-split"),
        ([0, 1, 1, 0], 1, "--account-for-embedding-in-pipeline-split"
         " --account-for-loss-in-pipeline-split"),
        ([6, 9, 9, 6], 1, "--pipeline-model-parallel-layout Et*6|(t*9|)*2t*6L"),
        # the last row: as Megatron's own parser was seen to read it (3, 4 on every rank)
        ([3, 4, 4, 4, 4, 4, 4, 4], 2, "--num-virtual-stages-per-pipeline-rank 2"
         " --account-for-embedding-in-pipeline-split"),
        ([3, 3, 3, 3, 4, 4, 4, 4], 2, "--pipeline-model-parallel-layout Et*3|(t*3|)*3(t*4|)*3t*4L"),
    ],
)  # fmt: skip
def test_the_plainest_way_to_say_a_split_is_used(chunks, vpp, wanted):
    rows = pipeline_flags(chunks, pp=4, vpp=vpp, mtp_layers=0)
    assert " ".join(w for name, values in rows for w in (name, *values)) == wanted


DENSE, MOE = MODELS["dense"], MODELS["moe"]
REFUSED = [
    (plan(model(norms_per_layer=4), dp=8), "2 norms"),
    (plan(model(qk_norm="full"), dp=8), "head by head"),
    (plan(model(embedding_norm=True), dp=8), "after the embedding"),
    (plan(model(final_norm=False), dp=8), "ends with a norm"),
    (plan(model(mlp_bias=True), dp=8), "biases"),
    (plan(model(attention_output_bias=True, mlp_bias=True), dp=8), "biases"),
    (plan(model(learned_positions=1024), dp=8), "1024 learned positions"),
    (plan(model(learned_positions=8192, mtp_layers=1), dp=8), "rotary"),
    (plan(DENSE, tp=64), "64"),
    (plan(DENSE, tp=3, dp=2, seq=4098), "32 heads are not divisible by tp=3"),
    (plan(model(heads=48, kv_heads=6), tp=4, dp=2), "6 kv heads"),
    (plan(model(ffn=11008 + 1), tp=2, dp=4), "ffn=11009"),
    (plan(DENSE, tp=4, dp=2, seq=4098), "4098 tokens a rank are not divisible by tp=4"),
    (plan(DENSE, tp=2, cp=8, dp=1, seq=4096 + 8), "2*cp=16"),
    (plan(MODELS["qkv-bias"], cp=2, dp=4), "sliding-window"),
    (plan(DENSE, dp=8, ep=2), "needs a model with experts"),
    (plan(MOE, dp=12, ep=12), "16 experts are not divisible by ep=12"),
    (plan(MOE, dp=4, ep=8), "ranks of a stage"),
    (plan(MOE, tp=2, sp=False, dp=8, ep=4), "sequence parallelism"),
    (plan(model(experts={"count": 8, "top_k": 2, "ffn": 2049}), tp=2, dp=8, etp=2), "etp=2"),
    (plan(MODELS["moe-bias"], tp=2, dp=8, ep=4, etp=2), "biases only with etp=1"),
    (plan(DENSE, pp=2, dp=4, schedule="gpipe"), "GPipe"),
    (plan(DENSE, vpp=2, dp=8), "pp > 1"),
    (plan(DENSE, pp=4, vpp=2, dp=2, num_microbatches=6), "6 micro-batches"),
    (plan(DENSE, pp=4, dp=2, stage_layers=[[4], [4], [4], [3]]), "stage_layers"),
    (plan(DENSE, pp=4, dp=2, stage_layers=[[8], [0], [4], [4]]), "first and the last"),
    (plan(DENSE, dp=8, dp_sync="parameter-server"), "parameter-server"),
    (plan(DENSE, pp=2, dp=4, zero=2), "Megatron-FSDP (zero=2)"),
    (plan(DENSE, dp=8, zero=0, dp_replicate=2), "zero >= 1"),
    (plan(DENSE, dp=8, zero=1, dp_replicate=3), "dp_replicate=3"),
    (plan(MOE, dp=8, ep=8, zero=1, dp_replicate=2), "experts' data parallelism 1"),
    (plan(model(ffn=14336 + 8), tp=1, dp=8, precision="fp8"), "ffn/tp is 14344"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "words"), REFUSED, ids=[w for _, w in REFUSED])
def test_what_megatron_cannot_run_is_said(answer, words):
    sentences = EMITTER.unsupported(answer)
    assert any(words in s for s in sentences), sentences
    assert all(s.endswith(".") and s[0].isprintable() for s in sentences)


@pytest.mark.parametrize("answer", EVERY_KIND[:3])
def test_what_megatron_can_run_is_not_refused(answer):
    assert EMITTER.unsupported(answer) == []


def test_a_batch_that_does_not_add_up_is_said():
    answer = plan(DENSE, dp=8)
    work = answer.request.workload.model_copy(update={"global_batch": 17})
    request = answer.request.model_copy(update={"workload": work})
    sentences = EMITTER.unsupported(answer.model_copy(update={"request": request}))
    assert sentences == ["micro_batch*num_microbatches*dp = 16, but global_batch is 17."]


def start(folder: Path, answer: Plan, **variables: str) -> tuple[list[str], dict[str, str]]:
    code = folder / "Megatron LM"
    code.mkdir()
    (code / "pretrain_gpt.py").touch()
    fixed = {"MEGATRON_PATH": str(code), "NODE_RANK": "0", "SKIP_PREFLIGHT": "1"}
    variables = fixed | variables
    return bash_bundle.started(folder, EMITTER.emit(answer), "torchrun", **variables)


def test_bash_hands_every_word_over_as_it_stands(tmp_path):
    answer = plan(
        MODELS["mla"], tp=2, pp=4, dp=8, ep=16, recompute="selective",
        stage_layers=[[2], [5], [5], [2]],
    )  # fmt: skip
    argv, _ = start(tmp_path, answer)
    words = [w for _, rows in flags(answer) for name, values in rows for w in (name, *values)]
    assert "Et*2|(t*5|)*2t*2mL" in words
    assert "([0]*3+[1]*11)" in words
    script = argv.index(str(tmp_path / "Megatron LM" / "pretrain_gpt.py"))
    assert argv[script + 1 : script + 1 + len(words)] == words
    assert argv[:8] == [
        "--nnodes", "8", "--nproc-per-node", "8", "--node-rank", "0", "--master-addr",
        answer.placement.hosts[0],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("degrees", "inherited", "wanted"),
    [
        ({"tp": 2, "dp": 4}, "8", "1"),
        ({"cp": 2, "dp": 4}, "8", "1"),
        ({"dp": 8, "zero": 3}, "1", None),
        ({"tp": 2, "dp": 4, "zero": 2}, "1", None),
        ({"dp": 8}, "1", "8"),
    ],
)
def test_the_hardware_queues_are_set_whatever_was_inherited(degrees, inherited, wanted, tmp_path):
    _, env = start(tmp_path, plan(DENSE, **degrees), CUDA_DEVICE_MAX_CONNECTIONS=inherited)
    assert env.get("CUDA_DEVICE_MAX_CONNECTIONS") == wanted


def test_a_node_finds_its_rank_in_the_plans_order(tmp_path):
    answer = plan(DENSE, dp=24, hosts=("b2", "a10.example.org", "a9"))
    argv, _ = start(tmp_path, answer, NODE_RANK="", HOSTNAME="A10.example.org")
    assert argv[argv.index("--node-rank") + 1] == "1"
    assert argv[argv.index("--master-addr") + 1] == "b2"


@pytest.mark.parametrize(
    ("name", "hosts", "rank"),
    [
        ("n1.rack.example", ("n2", "n1"), "1"),
        ("n1", ("n2.rack", "n1.rack"), "1"),
        ("n1", ("n1", "n1.rack"), "0"),
    ],
)
def test_a_domain_that_one_name_lacks_is_ignored(name, hosts, rank, tmp_path):
    answer = plan(DENSE, dp=16, hosts=hosts)
    argv, _ = start(tmp_path, answer, NODE_RANK="", MESHWRIGHT_HOSTNAME=name)
    assert argv[argv.index("--node-rank") + 1] == rank


@pytest.mark.parametrize(
    ("name", "found"), [("stranger", "0 lines"), ("n1", "2 lines"), ("n1.c", "0 lines")]
)
def test_a_node_that_is_not_one_of_the_plans_does_not_start(name, found, tmp_path):
    answer = plan(DENSE, dp=16, hosts=("n1.a", "n1.b"))
    with pytest.raises(AssertionError, match=found):
        start(tmp_path, answer, NODE_RANK="", HOSTNAME=name)


def test_placeholder_hosts_need_an_address(tmp_path):
    answer = plan(DENSE, dp=16, placeholders=True)
    with pytest.raises(AssertionError, match="MASTER_ADDR"):
        start(tmp_path, answer)


def test_the_preflight_runs_first(tmp_path):
    argv, _ = start(tmp_path, plan(DENSE, dp=8), SKIP_PREFLIGHT="", only_first="1")
    assert argv[-1].endswith("/preflight.py")
    assert argv[argv.index("--master-port") + 1] == "29501"


HOSTILE = "x$(touch owned)`id`'\"; rm -rf /\nexport EVIL=1 # *|"


def test_a_hostile_model_name_reaches_no_shell(tmp_path):
    answer = plan(model(name=HOSTILE), dp=8)
    for artifact in EMITTER.emit(answer):
        assert not artifact.path.endswith((".sh", ".args")) or "owned" not in artifact.text
    _, env = start(tmp_path, answer)
    assert "EVIL" not in env
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize("host", ["a b", "a;b", "$(id)", "-oProxyCommand=x", "a\nb", "a_b", ""])
def test_a_host_that_is_no_host_name_is_refused(host):
    with pytest.raises(SpecError, match="not a host name"):
        EMITTER.emit(renamed(plan(DENSE, dp=16), host))


def test_the_scripts_are_shell(tmp_path):
    for name in ("run.sh", "env.sh"):
        (tmp_path / name).write_text(files(plan(DENSE, dp=8))[name].text, "utf-8")
        subprocess.run(["bash", "-n", str(tmp_path / name)], check=True)


def test_only_the_launcher_is_executable():
    runnable = {a.path for a in EMITTER.emit(plan(DENSE, dp=8)) if a.executable}
    assert runnable == {"run.sh"}


def test_latent_attention_names_its_ranks():
    rows = dict(rows for _, group in flags(plan(MODELS["mla"], dp=8, ep=8)) for rows in group)
    assert rows["--kv-lora-rank"] == (str(LATENT["kv_lora_rank"]),)
    assert "--group-query-attention" not in rows
