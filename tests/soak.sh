#!/usr/bin/env bash
# The long run behind `make soak`, against a release build; prints its report, and writes it beside. Exit
# code 0: nothing was wrong and nothing grew.
#
#   soak.sh HOURS [ARGUMENT...]    SEED in the environment replays the events of another run
set -euo pipefail
cd "$(dirname "$0")/.."
hours=$1
shift
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
cargo build --release --locked -p cli
cargo build --release --locked -p tests --bin soak
mkdir -p "$target/soak"
export STANDIN_BIN=$target/release/standin
export STANDIN_SEED=${SEED:-${STANDIN_SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}}
exec "$target/release/soak" --hours "$hours" --report "$target/soak/report.txt" --json "$target/soak/report.json" "$@"
