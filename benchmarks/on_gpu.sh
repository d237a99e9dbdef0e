#!/usr/bin/env bash
# Builds in place, tests, benchmarks and sanitizes on a machine with a CUDA GPU, in under ten
# minutes, and writes one JSON, <gpu-name>.json:
#
#   benchmarks/on_gpu.sh [--dry-run]
#
# Needs torch >= 2.11 with CUDA, nvcc, and Python packages that it names where they are missing; it
# installs nothing, reaches for no network, and leaves the card's settings alone.
# OUT: folder of the JSON (benchmarks/results); PYTHON: interpreter (python3); TOTAL: seconds (570).
# What does not fit is cut, and named in the JSON.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

dry=
case "${1:-}" in
  "") ;;
  --dry-run) dry=1 ;;
  *) echo "usage: benchmarks/on_gpu.sh [--dry-run]" >&2; exit 2 ;;
esac
python=${PYTHON:-python3}
total=${TOTAL:-570}
out=${OUT:-benchmarks/results}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The checkout is used where it lies; tests start elsewhere.
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export MAX_JOBS=${MAX_JOBS:-$(nproc)}

stop() { echo "on_gpu.sh: $*" >&2; exit 1; }

has() { "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }

require() {
  local missing=0 module
  command -v "$python" >/dev/null || stop "$python is not found: set PYTHON"
  has torch || stop "torch is missing: install a CUDA build of torch >= 2.11"
  "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    stop "torch $("$python" -c 'import torch; print(torch.__version__)') sees no CUDA GPU"
  command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ] ||
    stop "nvcc is missing: install the CUDA toolkit, or set CUDA_HOME"
  for module in pybind11 ninja setuptools numpy pytest pytest_benchmark; do
    has "$module" || { echo "on_gpu.sh: $module is missing: pip install ${module/_/-}" >&2; missing=1; }
  done
  [ "$missing" = 0 ] || exit 1
  for module in hypothesis scipy sklearn matplotlib PIL codecarbon tqdm; do
    has "$module" || echo "on_gpu.sh: $module is missing: what needs it is left out"
  done
}

# note NAME STATUS EXIT SECONDS LIMIT
note() { (IFS=$'\t'; echo "$*") >>"$work/parts.tsv"; }

# part NAME LIMIT COMMAND...: runs it for at most LIMIT seconds, and never past the total.
part() {
  local name=$1 limit=$2 left=$((total - SECONDS)) begin=$SECONDS status code
  shift 2
  ((limit <= left)) || limit=$left
  if [ -n "$dry" ]; then
    printf '%-28s at most %3d s: %s\n' "$name" "$limit" "$*"
    return
  fi
  if ((limit < 10)); then
    note "$name" cut "" 0 "$limit"
    return
  fi
  echo "== $name, at most $limit s"
  timeout --signal=INT --kill-after=10 "$limit" "$@" >"$work/$name.log" 2>&1
  code=$?
  case $code in
    0) status=done ;;
    124 | 130 | 137) status=cut ;;
    *) status=failed ;;
  esac
  note "$name" "$status" "$code" $((SECONDS - begin)) "$limit"
  [ "$status" = done ] || { echo "   $status (exit $code):"; tail -n 15 "$work/$name.log"; }
}

# bench NAME LIMIT: bench_NAME.py in a process of its own, since a fault ends a process's CUDA.
bench() {
  local limit=$2 left=$((total - SECONDS))
  ((limit <= left)) || limit=$left
  part "bench_$1" "$limit" "$python" -m pytest -q -p no:cacheprovider "benchmarks/bench_$1.py" \
    -k cuda --seconds $((limit - 15)) --benchmark-json="$work/bench_$1.json"
}

sanitize() {
  if [ -z "$dry" ] && ! command -v compute-sanitizer >/dev/null; then
    note "$1" "not installed" "" 0 "$2"
    echo "on_gpu.sh: compute-sanitizer is missing: no $1"
    return
  fi
  # Without the caching allocator, a read beyond a tensor is one beyond an allocation.
  part "$1" "$2" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" \
    --error-exitcode 9 "$python" benchmarks/on_gpu_ops.py
}

if [ -z "$dry" ]; then
  require
  # For this GPU alone, which takes a third of the time.
  export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$("$python" -c \
    'import torch; print("%d.%d" % torch.cuda.get_device_capability())')}
fi
export CPFAST_CUDA=1
part build 150 "$python" setup.py -q build_ext --inplace
part ops 40 "$python" benchmarks/on_gpu_ops.py
part tests 100 "$python" -m pytest -q -m cuda -p no:cacheprovider tests \
  --continue-on-collection-errors --junitxml="$work/tests.xml"
bench training_loop 200
bench layer_statistics 80
bench scored_cross_entropy 110
bench select_samples 40
sanitize memcheck 60
sanitize racecheck 60
bench record_scores 25
bench augment_batch 30
bench training_step 50
bench growth 60
[ -z "$dry" ] || exit 0

mkdir -p "$out"
"$python" benchmarks/gpu_report.py "$work" "$out" || stop "the JSON could not be written"
# Some may have failed, and the JSON says which; the build must not have.
grep -q $'^build\tdone' "$work/parts.tsv"
