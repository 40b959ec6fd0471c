#!/usr/bin/env bash
# The journeys in their long forms, against a release build: 1,000 cuts of four disks, 100 kills, 1,000
# points of small writes, 200 cuts of power, the seed of an 8 GiB image with 10 interruptions, the guests. About an hour;
# prints every journey's figures. Needs setup.sh and images.sh.
#
#   must-show.sh [NEXTEST-FILTER]
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked -p cli
STANDIN_BIN=$(realpath "${CARGO_TARGET_DIR:-target}/release/standin")
export STANDIN_BIN
export STANDIN_SEED=${STANDIN_SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
export STANDIN_EXACT_CUTS=${STANDIN_EXACT_CUTS:-100}
export STANDIN_GROUP_CUTS=${STANDIN_GROUP_CUTS:-1000}
export STANDIN_KILLS=${STANDIN_KILLS:-100}
export STANDIN_SMALL_POINTS=${STANDIN_SMALL_POINTS:-1000}
export STANDIN_TIMED_ROUNDS=${STANDIN_TIMED_ROUNDS:-24}
export STANDIN_POWER_CUTS=${STANDIN_POWER_CUTS:-200}
export STANDIN_INTERRUPTIONS=${STANDIN_INTERRUPTIONS:-10}
export STANDIN_TROUBLE_S=${STANDIN_TROUBLE_S:-60}
export STANDIN_SEED_IMAGE=${STANDIN_SEED_IMAGE:-${STANDIN_IMAGES:-$HOME/.cache/standin-images}/day1.raw}
echo "must-show: STANDIN_SEED=$STANDIN_SEED"
exec cargo nextest run --locked -p tests --profile must-show -E "${1:-test(/./)}"
