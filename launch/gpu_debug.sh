#!/usr/bin/env bash
# Check a GPU: its driver, what JAX sees, and training of both debug models on it:
#   launch/gpu_debug.sh [key.path=value ...]
# $PYTHON is the Python that has bertjax with its cuda13 or cuda12 extra (else that of .venv), $CUDA_VISIBLE_DEVICES the
# GPU (0). Exits with 0, or the code of the first failure.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}

fail() {
    echo "gpu_debug: $*" >&2
    exit 2
}

show() {
    echo "+ $*"
    "$@"
}

command -v nvidia-smi >/dev/null || fail "nvidia-smi not found: install NVIDIA's driver, or run on a machine with a GPU"
[ -x "$(command -v "$PYTHON")" ] || fail "no $PYTHON here; set PYTHON, or run 'make test' once"
show nvidia-smi --query-gpu=index,name,driver_version,memory.total,memory.used --format=csv ||
    fail "nvidia-smi does not work: the driver is not loaded, or this container has no GPU (docker run --gpus all)"

echo "+ $PYTHON: does JAX see it?"
"$PYTHON" -c '
import sys
import jax
found = [d for d in jax.devices() if d.platform == "gpu"]
print("jax", jax.__version__, "|", ", ".join(d.device_kind for d in found) or "no GPU")
sys.exit(not found)
' || fail "JAX sees no GPU; install its support: pip install '.[cuda13]' (or cuda12)"
show "$PYTHON" -P -m bertjax doctor

for config in configs/debug/gpu.yaml configs/debug/t5_gpu.yaml; do
    show "$PYTHON" -P -m bertjax train "$config" "$@"
done
echo "gpu_debug: both models trained on GPU $CUDA_VISIBLE_DEVICES"
