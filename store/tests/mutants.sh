#!/usr/bin/env bash
# Breaks the store's garbage collection in one way after the other, in a copy, and expects the histories to notice.
#
#   mutants.sh [NAME...]      STANDIN_HISTORIES: histories until a mutant counts as missed (1500)
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
export STANDIN_HISTORIES=${STANDIN_HISTORIES:-1500}
export STANDIN_SEED=${STANDIN_SEED:-$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}/mutants CARGO_TERM_COLOR=never
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
(cd "$root" && git ls-files -z -c -o --exclude-standard | xargs -0 cp --parents -t "$copy") || exit 1
cd "$copy"
wanted=("$@")
missed=() count=0
echo "mutants: STANDIN_SEED=$STANDIN_SEED, at most $STANDIN_HISTORIES histories each"

# mutant NAME FILE PERL-SUBSTITUTION [TEST-BINARY FILTER]
mutant() {
  local name=$1 file=store/src/$2 change=$3 binary=${4:-collect_histories} filter=${5:-histories}
  [ "${#wanted[@]}" = 0 ] || [[ " ${wanted[*]} " == *" $name "* ]] || return
  count=$((count + 1))
  cp "$file" "$copy/original"
  perl -0pi -e "$change" "$file"
  if cmp -s "$file" "$copy/original"; then
    echo "mutants: $name does not apply any more" >&2
    missed+=("$name")
    return
  fi
  if ! cargo test --quiet --locked -p store --test "$binary" --no-run >"$copy/log" 2>&1; then
    tail -n 20 "$copy/log"
    echo "mutants: $name does not compile" >&2
    missed+=("$name")
  elif timeout 1800 cargo test --quiet --locked -p store --test "$binary" "$filter" >"$copy/log" 2>&1; then
    echo "mutants: $name was MISSED"
    missed+=("$name")
  else
    echo "mutants: $name caught: $(grep -m1 -oE 'seed [0-9]+, (life [0-9]|at the end)[^ ]*' "$copy/log" | head -c 80)"
  fi
  cp "$copy/original" "$file"
}

# --- pins
mutant refused-pin-believed image_writer.rs 's/if !pinned \|\| !self\.engine\.inventory\.lock\(\)\.has_container\(id\) \{/if false \&\& pinned {/'
mutant hit-not-pinned image_writer.rs 's/let pinned = self\.holder\.pin_container\(id\);/let pinned = true;/'
mutant base-not-pinned store.rs 's/(if held \{\n\s*)holder\.pin_image\(image\);/$1let _ = holder;/'
mutant pins-of-a-collection-not-told pins.rs 's/\.chain\(&mut self\.collection\)//'
mutant pins-from-before-a-collection-forgotten pins.rs 's/all\.take_in\(pinned\);/let _ = pinned;/'
mutant pinned-doomed pins.rs 's/let free = \|id: &ObjectId\| !pinned\.containers\.contains\(id\);/let free = |_: \&ObjectId| true;/'
mutant pinned-trees-doomed pins.rs 's/let free = \|id: &ObjectId\| !pinned\.trees\.contains\(id\);/let free = |_: \&ObjectId| true;/'
mutant pinned-images-not-marked gc.rs 's/let pinned = engine\.pins\.images_of_collection\(\);/let pinned: Vec<ImageRef> = Vec::new();/'
# --- marks
mutant seeds-are-no-roots gc.rs 's/for seed in state\.seeds\.values\(\) \{/for seed in state.seeds.values().take(0) {/'
mutant changes-not-marked gc/mark.rs 's/for run in &image\.changes \{/for run in image.changes.iter().skip(1) {/'
mutant trees-not-marked gc/mark.rs 's/if let Some\(root\) = image\.reference\.root \{/if let Some(root) = image.reference.root.filter(|_| false) {/'
mutant lists-not-counted gc/mark.rs 's/self\.record\(&list\.record\);/let _ = list;/'
mutant rest-of-a-run-forgotten gc/mark.rs 's/from = from\.max\(change\.end\(\)\);/from = run.end();/'
mutant previous-taken-for-whole gc/mark.rs 's/let just_done = same && self\.previous\.is_some_and\(all_of_it\);/let just_done = same; let _ = all_of_it;/' collect what_one_point_hides
mutant node-done-though-changed gc/mark.rs 's/if changes\.is_empty\(\) && level > 0 \{/if level > 0 {/' collect what_one_point_hides
# --- sweeps
mutant locations-not-published gc.rs 's/engine\.objects\.set_locations\(state\.sequence, locations\);/drop(locations);/'
mutant bundle-freed-with-its-first-section gc.rs 's/\(held\.sections <= \*count\)/(held.sections > 0)/'
mutant gone-keep-their-location sweep.rs 's/locations\.containers\.remove\(id\);/let _ = id;/'
mutant purged-before-it-is-committed gc/compact.rs 's/(Ok\(bytes\) => bytes,\n        \};)/$1\n        for (id, _) in \&step.sweep.moved_containers { let _ = engine.objects.opener.containers.remove(*id); }/'
mutant live-chunk-left-out gc/compact.rs 's/if !needed\(slot\) \{\n(\s*)continue;/if !needed(slot) || slot == 7 {\n$1continue;/'
mutant record-left-out gc/compact.rs 's/marks\.records\.get\(id\)\.into_iter\(\)\.flatten\(\)/marks.records.get(id).into_iter().flatten().skip(1)/'
mutant readers-are-not-told-of-moves objects.rs 's/let Some\(refresh\) = &self\.refresh else \{/let Some(refresh) = self.refresh.as_ref().filter(|_| false) else {/'
mutant numbers-of-bundles-used-twice catalog.rs 's/self\.next_bundle = self\.next_bundle\.max\(sweep\.next_bundle\);//'

echo "mutants: $((count - ${#missed[@]})) of $count caught"
[ "${#missed[@]}" = 0 ] || { echo "mutants: missed: ${missed[*]}"; exit 1; }
