#!/usr/bin/env bash
# The comparisons behind the headline, on CIFAR-10 and a CUDA GPU:
#
#   benchmarks/headline.sh [OPTION...] DATA [EXPERIMENT...]
#
# DATA: a folder with train/<class>/* and test/<class>/*; a .tar of one, compressed or not; or
# "cifar10" (after cpfast train --data cifar10 --download). EXPERIMENT: of resnet20 resnet56 falsify
# oracle deficit window warm-start early-phase enlightenment frontier-resnet20 frontier-resnet56;
# all, in this order, if none is named. Each takes the recipe of 2506.15954 at batch 256 (lr scaled
# linearly to .08), over three seeds, and is stored epoch by epoch: interrupted, it goes on when the
# script is run again. The frontiers begin from cosine decay (--preset fast) and tune the rest at
# 10, 20 and 40 % of EPOCHS. Where no cpfast is installed, the checkout is built in place.
#   --budget-seconds N  stop after N seconds, and half a minute more at most, with all stored
#   --pack FILE.tar.gz  keep what going on needs in this file, for a machine that keeps nothing
#   --resume FILE.tar.gz  begin with what --pack has kept
# OUT: folder of the results (runs/headline); EPOCHS (200), SEEDS (3), DEVICE (cuda:0); PYTHON:
# interpreter (python3); where it is named, that one's checkout build, and not an installed cpfast.
set -euo pipefail

python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "headline.sh: $python is not found: set PYTHON" >&2; exit 1; }
exec "$python" "$(dirname "${BASH_SOURCE[0]}")/headline.py" "$@"
