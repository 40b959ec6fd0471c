#!/usr/bin/env bash
# Instructions per 4 KiB write (callgrind; the kernel's are not counted): raw file, and the same file
# tracked. Times are noise on a small shared machine; this is not, so CI compares it with
# bench/instructions.txt and fails where a way costs 10 % more. Takes some seconds.
#
#   instructions.sh [--update]    --update: writes what it found into instructions.txt. Commit that with
#                                 the change that made it dearer, and say there why it is worth it;
#                                 update also after a gain, so that the gain is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
allowed_percent=10
cargo build --release --locked --quiet -p splitter --example count_instructions
driver=${CARGO_TARGET_DIR:-target}/release/examples/count_instructions

# count WAY WRITES: all instructions of one run.
count() {
  local said
  if ! said=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null "$driver" "$1" "$2" 2>&1); then
    echo "instructions: valgrind failed: $said" >&2
    return 1
  fi
  sed -n 's/.*Collected : \([0-9]*\).*/\1/p' <<<"$said"
}

found=""
failed=0
for way in raw tracked; do
  # The difference of two runs: what starting and ending costs is in both.
  few=$(count "$way" 2000)
  many=$(count "$way" 12000)
  each=$(((many - few) / 10000))
  found+="$way $each"$'\n'
  was=$(sed -n "s/^$way //p" bench/instructions.txt)
  echo "instructions: $way: $each per write (baseline ${was:-none})"
  if [ -z "$was" ] || [ $((each * 100)) -gt $((was * (100 + allowed_percent))) ]; then failed=1; fi
done
if [ "${1:-}" = --update ]; then
  printf '%s' "$found" >bench/instructions.txt
elif [ "$failed" = 1 ]; then
  echo "instructions: more than $allowed_percent % above bench/instructions.txt; see the head of $0" >&2
  exit 1
fi
