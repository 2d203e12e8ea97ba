#!/usr/bin/env bash
# Train on all GPUs of this machine, then evaluate both models on one GPU.
#
#   launch/torchrun.sh RECIPE OUTPUT [--set KEY=VALUE ...]
#
# PROCESSES=2 uses two GPUs; on a machine without a GPU, it starts two processes on the CPU.
set -euo pipefail

if (($# < 2)); then
    echo "Usage: $0 RECIPE OUTPUT [--set KEY=VALUE ...]" >&2
    exit 2
fi
recipe=$1 output=$2
shift 2

torchrun --standalone --nproc-per-node "${PROCESSES:-gpu}" -m meditune train "$recipe" --output "$output" "$@"
exec meditune run "$recipe" --output "$output" "$@"
