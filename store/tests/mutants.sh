#!/usr/bin/env bash
# Breaks the store's garbage collection in one way after the other, and expects the histories to notice.
#
#   mutants.sh [--check] [NAME...]      tests/mutants.sh says more
set -uo pipefail
crate=store binary=collect_histories filter=histories histories=1500
. "$(dirname "$0")/../../tests/mutants.sh"

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
mutant seeds-are-no-roots catalog/state.rs 's/for seed in self\.seeds\.values\(\) \{/for seed in self.seeds.values().take(0) {/'
mutant changes-not-marked gc/mark.rs 's/for run in &image\.changes \{/for run in image.changes.iter().skip(1) {/'
mutant trees-not-marked gc/mark.rs 's/if let Some\(root\) = image\.reference\.root \{/if let Some(root) = image.reference.root.filter(|_| false) {/'
mutant lists-not-counted gc/mark.rs 's/self\.record\(&list\.record\);/let _ = list;/'
mutant rest-of-a-run-forgotten gc/mark.rs 's/from = from\.max\(change\.end\(\)\);/from = run.end();/'
mutant previous-taken-for-whole gc/mark.rs 's/let just_done = same && self\.previous\.is_some_and\(all_of_it\);/let just_done = same; let _ = all_of_it;/' collect what_one_point_hides
mutant node-done-though-changed gc/mark.rs 's/if changes\.is_empty\(\) && level > 0 \{/if level > 0 {/' collect what_one_point_hides
# --- sweeps
mutant locations-not-published gc.rs 's/engine\.objects\.set_locations\(state\.sequence, locations\);/drop(locations);/'
mutant bundle-freed-with-its-first-section inventory.rs 's/\(held\.sections <= \*count\)/(held.sections > 0)/'
mutant gone-keep-their-location sweep.rs 's/locations\.containers\.remove\(id\);/let _ = id;/'
mutant purged-before-it-is-committed gc/compact.rs 's/(Ok\(bytes\) => bytes,\n        \};)/$1\n        for (id, _) in \&step.sweep.moved_containers { let _ = engine.objects.opener.containers.remove(*id); }/'
mutant live-chunk-left-out gc/compact.rs 's/if !needed\(slot\) \{\n(\s*)continue;/if !needed(slot) || slot == 7 {\n$1continue;/'
mutant record-left-out gc/compact.rs 's/marks\.records\.get\(id\)\.into_iter\(\)\.flatten\(\)/marks.records.get(id).into_iter().flatten().skip(1)/'
mutant readers-are-not-told-of-moves objects.rs 's/let \(sequence, locations\) = \(self\.refresh\)\(\)\?;/let (_, locations) = (self.refresh)()?;\n        let sequence = 0;/'
mutant numbers-of-bundles-used-twice catalog/state.rs 's/self\.next_bundle = self\.next_bundle\.max\(sweep\.next_bundle\);//'

verdict
