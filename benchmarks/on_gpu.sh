#!/usr/bin/env bash
# The first thing to run on a machine with a CUDA GPU: three calls of under ten minutes each.
#
#   benchmarks/on_gpu.sh tests      builds in place; every op against the CPU's; tests; sanitizers
#   benchmarks/on_gpu.sh kernels    benchmarks of the ops
#   benchmarks/on_gpu.sh training   benchmarks of the training loop, of a step, and of growth
#
# Each is of use alone, builds what is missing, and writes <gpu-name>.json with all results so far
# and <gpu-name>.tar.gz with all logs, whenever a part ends: killed, it goes on from there when it is
# run again. Options: --dry-run prints the plan; --resume FILE.tar.gz (an earlier call's, of another
# folder); --again; --budget-seconds N (560); --no-gpu rehearses it all without a GPU.
# Needs torch >= 2.11 with CUDA and nvcc, and names the Python packages that are missing; it installs
# nothing, reaches for no network, and leaves the card's settings alone.
# OUT: folder of the results (benchmarks/results); PYTHON: interpreter (python3).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHON=${PYTHON:-python3}
command -v "$PYTHON" >/dev/null || { echo "on_gpu.sh: $PYTHON is not found: set PYTHON" >&2; exit 1; }
# The checkout is used where it lies; tests start elsewhere.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
MAX_JOBS=${MAX_JOBS:-$(nproc)}
export MAX_JOBS
exec "$PYTHON" "$root/benchmarks/gpu_calls.py" "$@"
