#!/usr/bin/env bash
# Runs every fuzz target for SECONDS each, from its kept corpus (fuzz/corpus/TARGET, committed) and
# a fresh seed, on the stable toolchain. A crash prints the input's path; replay it with
#   cargo fuzz run --sanitizer none TARGET PATH
#
#   run.sh [SECONDS] [TARGET...]
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-10}
shift || true
targets=("$@")
[ "$#" -gt 0 ] || mapfile -t targets < <(sed -n 's/^name = "\(.*\)"$/\1/p' Cargo.toml | grep -vx fuzz)

# Beside the workspace's own output; cargo-fuzz would clobber its profile otherwise.
out=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
unset CARGO_TARGET_DIR
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# An unlisted target would be forgotten in silence.
for file in fuzz_targets/*.rs; do
  [ -e "$file" ] || continue
  name=$(basename "$file" .rs)
  grep -q "^name = \"$name\"\$" Cargo.toml || { echo "fuzz: $file is not listed in fuzz/Cargo.toml" >&2; exit 1; }
done
[ "${#targets[@]}" -gt 0 ] || { echo "fuzz: no targets"; exit 0; }

cargo fuzz build --fuzz-dir . --sanitizer none --target-dir "$out" >"$work/build" 2>&1 ||
  { cat "$work/build"; exit 1; }

failed=()
for target in "${targets[@]}"; do
  seed=${STANDIN_SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
  mkdir -p "corpus/$target" "$work/$target"
  # New inputs go to the scratch directory; the kept corpus only changes by hand.
  if cargo fuzz run --fuzz-dir . --sanitizer none --target-dir "$out" "$target" \
    "$work/$target" "corpus/$target" -- -max_total_time="$seconds" -seed="$seed" -timeout=10 \
    -rss_limit_mb=2048 -max_len=70000 -verbosity=1 -print_final_stats=1 >"$work/log" 2>&1; then
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/log")
    echo "fuzz: $target ok, $runs inputs, seed $seed"
  else
    failed+=("$target")
    tail -n 40 "$work/log"
    echo "fuzz: $target FAILED, seed $seed"
  fi
done
[ "${#failed[@]}" -eq 0 ] || { echo "fuzz: failed: ${failed[*]}"; exit 1; }
