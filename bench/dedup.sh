#!/usr/bin/env bash
# Three disk images through Standin, restic, rustic and borg, in turn: times, CPU, memory, stored bytes and the ratios.
# Needs the images (`make images`), 25 GiB, about ten minutes; installs the peers.
set -euo pipefail
cd "$(dirname "$0")/.."
missing=()
for package in restic borgbackup; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok' || missing+=("$package")
done
[ "${#missing[@]}" = 0 ] || { apt-get update -q; DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}" </dev/null; }
command -v rustic >/dev/null || cargo install --locked --quiet rustic-rs --version 0.11.4 --no-default-features
cargo build --release --quiet --locked -p cli
exec python3 bench/dedup.py --standin "${CARGO_TARGET_DIR:-target}/release/standin" \
  --images "${STANDIN_IMAGES:-$HOME/.cache/standin-images}" "$@"
