#!/usr/bin/env bash
# Breaks the splitter in one way after the other, and expects the tests to notice. Prints for each mutant in which
# history it was caught.
#
#   mutants.sh [--check] [NAME...]      tests/mutants.sh says more
set -uo pipefail
crate=splitter binary=model filter=every_cut histories=10000
. "$(dirname "$0")/../../tests/mutants.sh"

# --- the intent log
mutant intent-not-synced intent.rs 's/(offset_of\(\*sector\)\)\?;\n        \})\n        self\.file\.sync_data\(\)/$1\n        Ok(())/'
mutant intent-not-waited-for tracked.rs 's/if diff\.intent\.covers\(touched, now\)/let _ = diff.intent.covers(touched, now);\n            if true/'
mutant intent-of-the-first-region-only intent.rs 's/let regions = log\.layout\.regions\(self\.disk, granules\);/let regions = log.layout.regions(self.disk, granules);\n        let regions = regions.start..regions.start + 1;/'
mutant intent-trimmed-before-the-target-has-it intent.rs 's/round\.through <= released/round.through.0 <= released.0 + u64::MAX \/ 2/'
mutant intent-trimmed-without-a-flush group.rs 's/(return Ok\(\(\)\);\n        \};\n)        self\.flush_production\(\)\?;/$1/'
mutant intent-trimmed-while-written intent.rs 's/if active\.load\(Ordering::SeqCst\) & mask != mask \{/if false {/'
mutant intent-trimmed-before-the-header-says-so intent.rs 's/if commit\.header\.trimmed_through < round\.through && goes_on\(&commit\) \{/if false {/'
mutant ceiling-forgotten intent.rs 's/header\.ceiling\.next\(\)/header.trimmed_through.next()/'
mutant begin-without-a-flush recover.rs 's/spec\.production\.flush\(\)/{ let _ = \&spec.production; block::Result::Ok(()) }/'
mutant restart-without-a-flush restart.rs 's/(takes back\.\n)        self\.flush_production\(\)\?;/$1/'
mutant restart-before-the-record-is-gone restart.rs 's/files::remove\(&\*self\.around\.state, files::TRACKING\)\n            \.and_then\(\|\(\)\| self\.around\.state\.sync\(\)\)/Ok(())/' restart misses_a_write
mutant bits-of-a-failed-sync-believed intent.rs 's/(would look for them\.\n)        log\.rewrite\(\)\?;/$1/' power bits_whose
mutant failed-flush-forgotten tracked.rs 's/self\.gate\.enter\(\)\.intent\.suspect\(\);//' power a_failed_flush
mutant outside-change-overlooked recover.rs 's/intent\.written_until\(\)\.min\(around\.booted_at\)/around.booted_at/' power changed_between
# --- the audit
mutant audit-without-what-was-released audit.rs 's/if !known \|\| since > cut/if !known/' audit nothing_is_said
mutant audit-overlooks-the-open-generation audit.rs 's/note_touched\(&open\.map, granules, &mut touched\);//' audit what_was_written
mutant audit-overlooks-sealed-generations audit.rs 's/\|s\| s\.generation > cut/|_| false/' audit what_was_written
mutant audit-of-another-history audit.rs 's/tracking\.lineage == lineage/lineage == lineage/' audit nothing_is_said
# --- recovery
# `needed > released` has no mutant: whoever recovers removes all earlier generations before he trusts anything.
mutant recovered-regions-trusted recover.rs 's/\.try_for_each\(\|granules\| diff\.map\.mark\(granules\)\)/.try_for_each(|_| io::Result::Ok(()))/'
mutant recovered-since-too-late recover.rs 's/diff\.map\.lower_since\(since\);/let _ = since;/'
mutant recovery-believed-half-way recover.rs 's/    live\.lose\(\);\n    \/\/ Durable/    \/\/ Durable/' power begun_again
mutant clean-flag-kept-after-opening recover.rs 's/tracking\.live\.clear_clean\(\)\?;/let _ = \&tracking;/'
mutant close-without-a-sync group.rs 's/disk\.gate\.enter\(\)\.sync\(\)\?;/let _ = \&disk.gate;/'
mutant lost-maps-believed recover.rs 's/maps_are_kept\(around, lineage, live\)\?;/let _ = maps_are_kept;/'
mutant forgotten-live-state-believed-the-second-time live.rs 's/            files::doubt\(dir, lineage\)\?;\n//' power second_who_looks
# What a merge does with an older diff that lost bytes has none: each granule is checked when it is read.
mutant another-boot-believed recover.rs 's/live\.is_clean\(\) \|\| record\.boot == around\.boot/true/'
mutant relearned-without-a-last-look relearn.rs 's/            mark_regions\(&diff, &marked\)\.map_err\(self\.map_error\(\)\)\?;/            let _ = \&marked;/' concurrent while_the_log
mutant relearned-since-too-late relearn.rs 's/diff\.map\.lower_since\(tracking\.intent\.trimmed_through\(\)\);/let _ = \&diff;/'
mutant relearned-regions-trusted relearn.rs 's/diff\.map\.mark\(\*region\)\?;/let _ = region;/'
# --- maps, diffs, cuts
mutant marked-after-the-write tracked.rs 's/(        if let Err\(error\) = diff\.map\.mark\(touched\) \{.*?)return noted\(&\*self\.production\);(\n        \}\n)(        \/\/ A request that fails.*?\n        noted\(&\*self\.production\)\?;\n)/$3$1return Ok(());$2/s'
mutant stale-granules-sealed cut.rs 's/self\.heal\(\)\?;//g; s/disk\.heal_until\(until\)/Ok::<u64, crate::diff::HealError>(0)/; s/disk\.heal_older\(diff\)/Ok::<(), crate::diff::HealError>(())/'
mutant older-diff-not-completed cut.rs 's/disk\.heal_older\(diff\)/Ok::<(), crate::diff::HealError>(())/' ending a_write_that_fails_after
mutant older-diff-completed-from-newer-blocks tracked.rs 's/if !\(run\.start\.\.run\.end\)\.all/if false \&\& (run.start..run.end).all/' ending a_write_that_fails_and_is
mutant cut-listed-though-a-mark-was-lost cut.rs 's/(        \/\/ After the last look at production.*?\n        if )tracking\.live\.is_lost\(\)/$1false/' ending a_write_that_could_not
mutant waiting-cut-written-to-a-paused-device cut.rs 's/true => Lacking::LeaveAlone/true => Lacking::Complete/' ending waits_until_copies_resume
mutant cut-that-waits-left-behind-by-a-close cut.rs 's/if let Err\(CutError::Incomplete \{ \.\. \}\) = &ended/if false/' ending after_a_clean_close
mutant fold-forgets-the-cut-that-waits fold.rs 's/        \/\/ It builds on what is given up\.\n        self\.end_if_it_can\(tracking\)\?;\n//' ending is_folded_with
mutant folded-diff-forgotten fold.rs 's/            self\.gate\.enter\(\)\.map\.mark\(run\.granules\)\?;\n//'
mutant fold-keeps-its-since fold.rs 's/disk\.gate\.enter\(\)\.map\.lower_since\(since\);/let _ = (\&disk, since);/'
# --- merging sealed generations
mutant merge-keeps-its-since coalesce.rs 's/to\.open_map\(\)\.map_err\(&failed\)\?\.lower_since\(older\.since\);/let _ = (to, older);/' merge builds_on
mutant merge-not-noted coalesce.rs 's/maps\.iter\(\)\.for_each\(\|map\| map\.absorb_into\(into\)\);/let _ = (\&maps, into);/'
mutant merge-believes-what-is-stale coalesce.rs 's/matches!\(state, GranuleState::Clean \| GranuleState::Stale\)/matches!(state, GranuleState::Clean)/'
mutant merge-punches-before-it-copies coalesce.rs 's/        self\.put_granules\(\)\?;\n(        self\.done\n            \.drain\(\.\.\)\n            \.try_for_each\(\|granules\| self\.from\.1\.punch\(granules\)\))/$1?;\n        self.put_granules()/'
# --- frames of a diff
mutant settled-before-the-frame log.rs 's/(        let written = self\.write_begun\(self\.buffers\.begin\(frame\), Cache::Through\)\?;\n)(        for run in runs_of\(all\) \{\n.*?\n        \}\n)/$2$1/s'
mutant edges-not-completed diff.rs 's/let first = edge\(touched\.start, inside\.start\)\?;/let first = vec![0; index((inside.start - touched.start) * GRANULE)];/'
mutant damaged-granules-believed slots.rs 's/if crc32c::crc32c\(granule\) != slot\.check/if crc32c::crc32c(granule) != slot.check \&\& granule.is_empty()/'
mutant lost-frames-overlooked slots.rs 's/for entry in self\.identity\.decode\(position, &page\)\? \{/let Ok(entries) = self.identity.decode(position, \&page) else {\n                continue;\n            };\n            for entry in entries {/'
mutant older-granules-taken slots.rs 's/std::cmp::Reverse\(slot\.order\)/slot.order/'
mutant staged-granules-trusted-after-a-kill map\/ledger.rs 's/self\.mark\(GranuleRange \{\n\s*start: granule,\n\s*end: granule \+ 1,\n\s*\}\)\?;/let _ = granule;/'
mutant staged-granules-of-a-sealed-diff-forgotten recover.rs 's/        lacking \|= map\.lacks_staged\(\);\n//' staged a_cut_that_was_killed
mutant staged-granules-of-a-sealed-diff-not-written cut.rs 's/        diff\.log\.end\(\)\.map_err/        std::io::Result::Ok(()).map_err/' concurrent a_cut_of_a_group
mutant place-taken-back-before-the-frame log.rs 's/        let written = self\.write_frame\(frame, cache\);/        let _ = self.place_of(frame);\n        self.map.note_written(frame.slot);\n        let written = self.write_frame(frame, cache);/'
mutant granules-of-a-failed-frame-trusted log.rs 's/            granules\.try_for_each\(\|start\| \{\n\s*self\.map\.mark\(GranuleRange \{\n\s*start,\n\s*end: start \+ 1,\n\s*\}\)\n\s*\}\)\?;/            let _ = granules.next();/'
mutant waiting-frames-forgotten-by-the-end log.rs 's/            \.take\(SLOTS\)\n            \.collect\(\);/            .take(0)\n            .collect();/' staged a_cut_that_was_killed
mutant frames-in-writing-not-waited-for log.rs 's/        self\.buffers\.wait\(\);\n//' concurrent overlapping
mutant frame-that-failed-beside-the-end-overlooked log.rs 's/if !self\.map\.is_complete\(\)/if self.map.lacks_staged()/; s/if self\.buffers\.failed\(\) != failed/if false/' lib a_frame_that_fails_after
mutant begun-anew-without-making-stale log.rs 's/        self\.map\.mark_all_data\(\);\n//'
mutant place-of-a-failed-frame-used-again log.rs 's/                self\.buffers\.put_full\(frame\);\n                Err\(error\)/                self.buffers.put_free(frame);\n                Err(error)/'
mutant place-of-a-failed-frame-forgotten log.rs 's/        let frame = writing\.end\(&written\);/        let mut frame = writing.end(&written);\n        frame.place = None;/; s/                self\.buffers\.put_full\(frame\);\n                Err\(error\)/                self.buffers.put_free(frame);\n                Err(error)/'
mutant places-of-a-killed-process-forgotten log.rs 's/map\.position\(slot\)\)\)/map.position(slot).filter(|_| false)))/'
mutant guests-write-frames tracked.rs 's/true => WithoutFrame::Wait/true => WithoutFrame::Write/' frames a_guest_waits
mutant heal-lane-kept-by-a-log-begun-anew log.rs 's/let mut lanes: Vec<_> = self\.all_lanes\(\)/let mut lanes: Vec<_> = self.lanes.iter()/'
mutant heal-lane-forgotten-by-the-end log.rs 's/        self\.all_lanes\(\)\n/        self.lanes.iter()\n/'
mutant waiting-guest-deaf-to-a-lost-lineage tracked.rs 's/ \|\| diff\.live\.is_lost\(\) \{\n            return WithoutFrame/ {\n            return WithoutFrame/' frames begin
mutant heal-without-a-lane-of-its-own log.rs 's/For::Heal => \(self\.heal_lane\.lock\(\)/For::Heal => (self.lane_of(granules.start)/' lib a_heal_has_a_frame
# --- what only threads show
mutant lock-removed stripes.rs 's/granules\.start % STRIPES/std::process::id() as u64 * 0 + { use std::sync::atomic::*; static N: AtomicU64 = AtomicU64::new(0); N.fetch_add(1, Ordering::Relaxed) % STRIPES }/; s/Held::Many \{\n            _guards: ascending\(granules\)\n                \.map\(\|stripe\| self\.lock_one\(stripe\)\)\n                \.collect\(\),/Held::Many {\n            _guards: Vec::new(),/' concurrent overlapping
mutant gate-entered-without-a-second-look gate.rs 's/            if self\.epoch\.now\(\) == epoch \{/            if true {/; s/            let side = self\.side\(epoch\);\n            let guard/            let side = self.side(epoch);\n            std::thread::yield_now();\n            let guard/' concurrent a_cut_of_a_group
mutant gate-entered-before-the-stripes tracked.rs 's/let inside = \(self\.stripes\.lock\(touched\), self\.gate\.enter\(\)\);\n            let \(_, diff\)/let inside = {\n                let diff = self.gate.enter();\n                std::thread::yield_now();\n                (self.stripes.lock(touched), diff)\n            };\n            let (_, diff)/' concurrent overlapping
mutant open-generation-stored-after-the-flip cut.rs 's/        live\.set_open_generation\(generation\.next\(\)\);\n        self\.epoch\.flip\(\);/        self.epoch.flip();\n        (0..1000).for_each(|_| std::thread::yield_now());\n        live.set_open_generation(generation.next());/' kill a_killed_process

verdict
