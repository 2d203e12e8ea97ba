#!/usr/bin/env bash
# Train on several machines. Start the same command on each of them:
#
#   NODES=2 HEAD=first-machine launch/nodes.sh RECIPE OUTPUT [--set KEY=VALUE ...]
#
# HEAD is the name or address of one machine; the others must reach it at PORT (default: 29500). OUTPUT must be on a
# file system that all machines share. After training, run `meditune run RECIPE --output OUTPUT` on one machine to
# evaluate both models.
set -euo pipefail

if (($# < 2)) || [[ -z "${NODES:-}" || -z "${HEAD:-}" ]]; then
    echo "Usage: NODES=COUNT HEAD=MACHINE $0 RECIPE OUTPUT [--set KEY=VALUE ...]" >&2
    exit 2
fi
recipe=$1 output=$2
shift 2

exec torchrun --nnodes "$NODES" --nproc-per-node "${PROCESSES:-gpu}" \
    --rdzv-backend c10d --rdzv-id "${ID:-meditune}" --rdzv-endpoint "$HEAD:${PORT:-29500}" \
    -m meditune train "$recipe" --output "$output" "$@"
