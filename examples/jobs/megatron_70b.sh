#!/usr/bin/env bash
# A Megatron-LM job as many look: 70B on 64 GPUs, "tp 8, pp 4, recompute everything, to be safe".
GPUS_PER_NODE=8
NUM_NODES=${SLURM_NNODES:-8}
TP=8
PP=4

MODEL_ARGS=(
  --num-layers 80 --hidden-size 8192 --ffn-hidden-size 28672
  --num-attention-heads 64 --group-query-attention --num-query-groups 8
  --swiglu --normalization RMSNorm --disable-bias-linear
  --untie-embeddings-and-output-weights --vocab-size 128256
  --position-embedding-type rope --max-position-embeddings 8192
  --attention-dropout 0.0 --hidden-dropout 0.0
)
PARALLEL_ARGS=(
  --tensor-model-parallel-size "$TP" --sequence-parallel
  --pipeline-model-parallel-size "$PP"
  --use-distributed-optimizer
)
TRAINING_ARGS=(
  --seq-length 4096 --micro-batch-size 1 --global-batch-size 512 --bf16
  --recompute-granularity full --recompute-method uniform --recompute-num-layers 1
  --lr 1.5e-4 --lr-decay-style cosine --train-iters 500000
)
torchrun --nnodes "$NUM_NODES" --nproc-per-node "$GPUS_PER_NODE" pretrain_gpt.py \
  "${MODEL_ARGS[@]}" "${PARALLEL_ARGS[@]}" "${TRAINING_ARGS[@]}"
