# What the mutants.sh of the crates share: a crate is broken in one way after the other, in a copy, and its tests are
# expected to notice. A test that catches nothing proves nothing.
#
#   CRATE/tests/mutants.sh [--check] [NAME...]
#     --check            only looks whether every mutant still changes what it is to change; builds nothing
#     STANDIN_HISTORIES  histories until a mutant counts as missed
#     STANDIN_SEED       where they begin
#
# Sourced, with the script's arguments, after these are set: crate; binary and filter, the test that catches a mutant
# which names no other; histories, the default.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export STANDIN_HISTORIES=${STANDIN_HISTORIES:-$histories}
export STANDIN_SEED=${STANDIN_SEED:-$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}/mutants CARGO_TERM_COLOR=never
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
(cd "$root" && git ls-files -z -c -o --exclude-standard | xargs -0 cp --parents -t "$copy") || exit 1
cd "$copy" || exit 1
only_check=
[ "${1-}" != --check ] || { only_check=yes && shift; }
wanted=("$@")
missed=() count=0
[ -n "$only_check" ] || echo "mutants: STANDIN_SEED=$STANDIN_SEED, at most $STANDIN_HISTORIES histories each"

# mutant NAME FILE PERL-SUBSTITUTIONS [TEST-BINARY FILTER]   (FILE in the crate's src; the binary `lib`: the unit tests)
mutant() {
  local name=$1 file=$crate/src/$2 change=$3 test=${4:-$binary} only=${5:-$filter}
  [ "${#wanted[@]}" = 0 ] || [[ " ${wanted[*]} " == *" $name "* ]] || return
  count=$((count + 1))
  cp "$file" "$copy/original" && mutate "$name" "$file" "$change" && judge "$name" "$test" "$only" || missed+=("$name")
  cp "$copy/original" "$file"
}

# Each of the substitutions must change something: half a mutant may be none.
mutate() {
  local name=$1 file=$2 change=$3 one
  while IFS= read -r one; do
    cp "$file" "$copy/before"
    perl -0pi -e "$one" "$file"
    if cmp -s "$file" "$copy/before"; then
      echo "mutants: $name does not apply any more: $one" >&2
      return 1
    fi
  done <<<"${change//; s\//$'\n's/}"
}

judge() {
  local name=$1 test=$2 only=$3 said
  local tests=(--test "$test")
  [ "$test" != lib ] || tests=(--lib)
  [ -z "$only_check" ] || return 0
  if ! cargo test --quiet --locked -p "$crate" "${tests[@]}" --no-run >"$copy/log" 2>&1; then
    tail -n 20 "$copy/log"
    echo "mutants: $name does not compile" >&2
    return 1
  fi
  if timeout 1800 cargo test --quiet --locked -p "$crate" "${tests[@]}" "$only" >"$copy/log" 2>&1; then
    echo "mutants: $name was MISSED"
    return 1
  fi
  said=$(grep -m1 -oE '^history [0-9]+|seed [0-9]+, (life [0-9]+|at the end)' "$copy/log")
  echo "mutants: $name caught: ${said:-test $test}"
}

# After the last mutant.
verdict() {
  local what=caught
  [ -z "$only_check" ] || what=apply
  echo "mutants: $((count - ${#missed[@]})) of $count $what"
  [ "$count" -gt 0 ] || { echo "mutants: there is none of that name"; exit 1; }
  [ "${#missed[@]}" = 0 ] || { echo "mutants: missed: ${missed[*]}"; exit 1; }
}
