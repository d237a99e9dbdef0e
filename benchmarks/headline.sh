#!/usr/bin/env bash
# The comparisons behind the headline, on CIFAR-10 and a CUDA GPU:
#
#   benchmarks/headline.sh DATA [EXPERIMENT...]
#
# DATA: a folder with train/<class>/* and test/<class>/*, or "cifar10" (after cpfast train --data
# cifar10 --download). EXPERIMENT: of resnet20 resnet56 falsify oracle; all, in this order, if none
# is named. Each takes the recipe of 2506.15954 at batch 256 (lr scaled linearly to .08), over
# three seeds, and is stored run by run: interrupted, it goes on when the script is run again.
# OUT: folder of the results (runs/headline); EPOCHS (200), SEEDS (3), DEVICE (cuda:0), TOTAL:
# seconds after which it stops (none).
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: benchmarks/headline.sh DATA [EXPERIMENT...]" >&2; exit 2; }
data=$1
shift
[ $# -ge 1 ] || set -- resnet20 resnet56 falsify oracle
out=${OUT:-runs/headline}
device=${DEVICE:-cuda:0}
common=(--data "$data" --epochs "${EPOCHS:-200}" --batch-size 256 --lr 0.08 --seeds "${SEEDS:-3}"
  --device "$device")
if [ "$device" != cpu ]; then common+=(--step compile+graph); fi

run() {
  local name=$1 code=0 limit=()
  shift
  if [ -n "${TOTAL:-}" ]; then
    local left=$((TOTAL - SECONDS))
    ((left > 0)) || { echo "== $name: no time left"; return; }
    limit=(timeout --foreground --signal=INT "$left")
  fi
  echo "== $name"
  "${limit[@]}" cpfast compare "${common[@]}" "$@" --out "$out/$name" || code=$?
  case $code in
    0) ;;
    124 | 130) echo "== $name: stopped; run again to go on" ;;
    *) exit "$code" ;;
  esac
}

for experiment; do
  case $experiment in
    resnet20 | resnet56) run "$experiment" --model "$experiment" \
      --arms full,detector,k1,k1_matched,shortened,rs2,infobatch,k1+infobatch,detector+infobatch ;;
    falsify) run falsify --model resnet20 --falsify ;;
    oracle) run oracle --model resnet20 --oracle ;;
    *) echo "headline.sh: no experiment '$experiment'" >&2; exit 2 ;;
  esac
done
