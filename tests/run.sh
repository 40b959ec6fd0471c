#!/usr/bin/env bash
# The test command behind `make test`, in phases; each prints its seconds. A phase that fails does
# not hide the later ones, but the whole fails. Needs what setup.sh installs.
#
#   run.sh [PHASE...]    default: all, in the order below
set -uo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never
# Fresh seeds for each run; a failing test prints the one it used, and this replays all of them.
export STANDIN_SEED=${STANDIN_SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
echo "run: STANDIN_SEED=$STANDIN_SEED"

phase_format() { cargo fmt --all --check; }

phase_lints() { cargo clippy --workspace --all-targets --locked -- -D warnings; }

# Every crate's own tests, then the journeys: black-box, with real peers and guests.
phase_tests() {
  cargo build --locked -p cli || return 1
  cargo nextest run --workspace --locked --profile ci --no-fail-fast
}

phase_docs() { cargo test --workspace --locked --doc --quiet; }

# More seeds for the simulated worlds than the one run above.
phase_simulation() {
  local seed i
  for i in 1 2 3; do
    seed=$((STANDIN_SEED + i * 7919))
    echo "run: simulation, STANDIN_SEED=$seed"
    # The whole workspace, filtered: another selection of packages would be another build.
    STANDIN_SEED=$seed cargo nextest run --workspace --locked --profile ci \
      -E 'binary(model) + binary(crash) + binary(kill) + binary(collect_histories) + binary(collect_threads) + binary(bucket)' || return 1
  done
}

# What a write costs, in instructions: the only cost that does not depend on the neighbours.
phase_instructions() { bash bench/instructions.sh; }

# The server's API, by its own page, with everything at once and with as little as a stranger has.
phase_api() {
  cargo build --locked -p cli || return 1
  EXAMPLES=${API_EXAMPLES:-5} SEED=$STANDIN_SEED bash tests/schemathesis.sh all ship none
}

phase_fuzz() { bash fuzz/run.sh "${FUZZ_SECONDS:-6}"; }

phases=("$@")
[ "$#" -gt 0 ] || phases=(format lints tests docs simulation instructions api fuzz)
failed=()
summary=""
for phase in "${phases[@]}"; do
  echo "run: === $phase"
  started=$SECONDS
  if "phase_$phase" </dev/null; then verdict=ok; else verdict=FAILED; failed+=("$phase"); fi
  summary+=$(printf '%-12s %-6s %5d s' "$phase" "$verdict" $((SECONDS - started)))$'\n'
done
printf '\nrun: phases (STANDIN_SEED=%s, %d s)\n%s' "$STANDIN_SEED" "$SECONDS" "$summary"
echo "phases: $((${#phases[@]} - ${#failed[@]})) passed, ${#failed[@]} failed"
if [ "${#failed[@]}" -gt 0 ]; then
  echo "run: failed: ${failed[*]}"
  exit 1
fi
