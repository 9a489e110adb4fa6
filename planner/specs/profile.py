"""Stack: one training stack as the estimate sees it. Few numbers, each a fit or a fact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rules = Literal["any", "megatron", "deepspeed", "torchtitan", "transformers"]


@dataclass(frozen=True)
class Stack:
    """One training stack, as the estimate sees it. Factors multiply, `_s` are seconds."""

    name: str
    title: str
    attention_kernel: Literal["te", "fa2", "unfused"]
    activations: Literal["megatron", "dtensor", "hf", "eager"]
    states: Literal["megatron", "deepspeed", "fsdp2"]
    gradient_reduce_bytes: int
    vocab_split: bool = True
    """Whether tp splits the token table and the output layer."""
    pads_experts: bool = False
    """Whether experts work on buffers of one size each, full or not, where ep > 1."""
    rules: Rules = "any"
    """Whose legality rules bind its layouts."""
    version: str = ""
    """The releases that were measured."""
    source: str = ""
    """The runs that its numbers were fitted to."""
    attention: float = 1.0
    """Sustained rate of fused attention over the accelerator's figure for the kernel class (da)."""
    gemm: float = 1.0
    """Sustained matrix-multiply rate over the accelerator's training rate (dg)."""
    memory_traffic: float = 1.5
    """Bytes that norms, activations and residuals move over the minimum (mm): lack of fusion."""
    host_s: float = 2.4e-3
    """Host time per layer and micro-batch, forward + backward, without CUDA graphs."""
    host_tp: float = 1.2
    """The same where tp > 1: more kernels and collectives to launch."""
    host_wait: float = 0.0
    """Power of tp by which host time grows: a collective waits for the slowest of its hosts."""
    host_moe_s: float = 7.6e-3
    """Host time of a layer with experts, without CUDA graphs."""
    host_expert_s: float = 1e-4
    """And per local expert."""
    host_sharded_s: float = 0.0
    """And of the hooks around a layer under ZeRO-3, where the profile is for other stages too."""
    host_fallback: float = 1.0
    """Host time where micro_batch * heads / tp is no multiple of 4 (unfused softmax falls back)."""
    host_pipeline_tp_s: float = 0.0
    """Least time of a layer with tp, pp and dp over several nodes, times tp^0.73."""
    expert_s: float = 1.5e-5
    """Device time per local expert and layer: one more group in the grouped multiply."""
    expert_cast_s: float = 1.5e-5
    """The same in low precision, where each expert's inputs are cast apart."""
    tp_exposed: float = 1.0
    tp_wait_s: float = 5e-6
    """Seconds that a tensor-parallel collective waits for the slowest of its ranks, x log2(tp)."""
    dp_exposed: float = 1.0
    p2p_exposed: float = 1.0
    cp_exposed: float = 0.31
    ep_exposed: float = 1.0
    kernel_s: float = 5e-5
    """Device time of one layer's kernels beyond their work, forward (twice in backward): each
    starts, drains and leaves a gap before the next, however little it has to do."""
    step_s: float = 0.1
    """Per-step constant: data, logging, gradient norm."""
    microbatch_s: float = 6.3e-4
    accumulate: float = 1.0
    optimizer: float = 0.85
    bucket_bytes: float = 1.6e8
    """Gradients (and updated parameters) that one collective of data parallelism moves."""
    bucket_rank_bytes: float = 0.0
    """The same per rank of the group, where a stack lets its buckets grow with the group so that
    latency does not; the larger counts."""
    fsdp_contention: float = 0.4
    """Share of the hidden ZeRO-3 traffic that still slows the kernels that hide it."""
    overlap: float = 1.0
    """How much of one micro-batch's backward can hide gradient traffic (phi)."""
    gather_overlap: float = 1.0
    """What of that hides the gather of updated parameters: nothing where it is not switched on."""
    zero1: Literal["reduce-scatter", "all-reduce"] = "reduce-scatter"
    """How gradients of a sharded optimizer are summed; by all-reduce after the last backward where
    the framework has no hooks for it, and then nothing hides them."""
    dispatcher: Literal["alltoall", "deepep", "hybridep"] = "alltoall"
    """Tokens to experts: one copy an expert (alltoall), or one a rank and node (the others)."""
    graphs: Literal["none", "partial", "full"] = "none"
    """CUDA graphs over nothing, over attention and router, or over the whole iteration."""
    moe_traffic: float = 1.0
    """Memory traffic of layers with experts over that of unfused kernels."""
    document_tokens: int | None = None
    """Mean length of the documents packed into a sequence, where attention stays within one."""
    fusion: float = 1.0
    """Memory traffic of dense kernels, on top of `memory_traffic`: what a run's compiler leaves."""
    fp8_rate: float = 1.0
    """Rate of FP8 multiplies over that of scales per tensor: the price of finer scales."""
    fp4_rate: float = 1.0
    """Rate of the multiplies in FP4 over FP8, on accelerators that have it; 1: they run in FP8."""
    fp8_cast: float = 1.0
    """Bytes moved to cast to FP8 over those of delayed scales per tensor."""
    pressure: float = 0.0
    """How much slower a step is whose memory is all but full: an allocator that retries."""
    split: Literal["even", "by-cost"] = "even"
    """How layers are dealt to pipeline stages: even in number, or in multiplies with the head."""
    fragmentation: float = 0.05
    """Share of activations and buffers that the allocator reserves beyond what is asked for."""
    reserve: float = 0.0
    """Share of all tensors that the allocator keeps beyond them, and gives back when pressed: what
    is measured as reserved, and not needed to fit."""
    gradient_bytes: float | None = None
    """Bytes of a gradient as kept over the micro-batches; None: what its states keep."""
    weight_bytes: float | None = None
    """Bytes of a resident weight; None: what its states keep."""
    master_bytes: float | None = None
    """Bytes of a master weight beside it; None: what its states keep."""
    moment_bytes: float = 4.0
    """Bytes of one moment of the optimizer (8-bit optimizers have their own)."""
    low_precision_states: bool = False
    """The step takes gradients as they are kept, without an fp32 copy."""
    pads_vocab: bool = True
    """The vocabulary is padded to a multiple of 128 also where tp = 1."""
    logit_bytes: float | None = None
    """Bytes a logit at the loss; None: what its family of activations takes."""
    loss_chunks: int = 1
    """Pieces of the sequence whose logits and loss are made, and gone back through, one by one."""
    gathered_bytes: float = 2.0
    """Bytes per token and hidden channel of whole activations around the collectives of sequence
    parallelism: the gathered input of a multiply, 2, and its output before the scatter, 2 more."""
    gathered_ahead_bytes: float = 0.0
    """The same without a pipeline, whose receives keep the host from running ahead: buffers of
    collectives that are freed, and not yet reusable because the GPU has not come to them."""
    layers_ahead: float = 0.0
    """Layers of the micro-batch before whose activations are freed, and not yet reusable: eager
    stacks that free what an asynchronous collective still holds, from the second one on."""
    fp8_params: bool = False
    """With precision fp8: parameters are kept, and gathered, in FP8."""
    fp8_copy_bytes: float | None = None
    """Bytes of a weight in FP8 with its scales, by rows and by columns; None: as the GPU needs it
    with one scale per tensor."""
    fp8_gather_bytes: float = 1.0
    """Bytes per parameter that is kept in FP8 and gathered."""
    offload_fraction: float = 1.0
    """Share of the optimizer's state that is moved where the layout offloads it."""
    offload_layers: int = 0
    """Layers, the first ones, whose activations wait for their backward in the node's memory."""
    fused_step: bool = False
    """AdamW in one kernel, which needs no temporary value of every parameter at the step."""
    autocast: bool = False
    """Weights stay fp32 and torch.autocast casts for each multiply, unless FSDP2 gathers 16 bit."""
    fsdp_root: bool = False
    """FSDP2 with the embedding and the head in the root's group, reduced together at the end."""

    @property
    def permute_bytes(self) -> float:
        """Return bytes per routed token element for permute + unpermute, forward + backward."""
        return 44.0 if self.dispatcher == "alltoall" else 24.0
