#!/usr/bin/env bash
# Makes the table of bench/README.md: protected beside our own plain export, qemu-nbd and nbdkit under
# the same fio load, in turn; then seed, ship, cut pause and stored bytes on the images of
# tests/lab/images.sh. Takes about half an hour; ROUNDS=1 RUNTIME=3 makes it a rehearsal.
#
#   first-figures.sh [front|store]...    default: both; prints the table, and writes it with --write
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked -p cli
cargo build --release --locked -p tests --example plain_export
target=$(realpath "${CARGO_TARGET_DIR:-target}")
exec /usr/bin/python3 bench/first_figures.py --target "$target" \
  --images "${STANDIN_IMAGES:-$HOME/.cache/standin-images}" "$@"
