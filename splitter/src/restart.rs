//! Beginning a new lineage while guests write.

use std::sync::Arc;

use block::BlockDevice;

use crate::files;
use crate::group::Group;
use crate::intent::IntentLog;
use crate::live::Live;
use crate::turns::Tracking;
use crate::{CutError, Generation, Lineage};

impl Group {
    /// Begins a new lineage while guests write: nothing of the old one counts any more.
    ///
    /// # Errors
    /// `Io`; the old lineage is given up even then, and a later restart tries again.
    pub fn restart_tracking(&self, why: &str) -> Result<Lineage, CutError> {
        let mut tracking = self.tracking.lock();
        tracing::warn!(group = %self.name, why, "tracking restarts; the disks are copied anew");
        // Crash: from here on an open finds the old lineage lost, or the new record.
        tracking.live.lose();
        self.discard_all(&mut tracking);
        // Crash: the old log misses what is written from the first swap on; nobody must find it.
        files::remove(&*self.around.state, files::TRACKING)
            .and_then(|()| self.around.state.sync())
            .map_err(self.state_error("remove the record of the old lineage"))?;
        let lineage = Lineage((self.around.random)());
        let live = Live::create(&*self.around.state, lineage, self.around.clock.wall())
            .map(Arc::new)
            .map_err(self.state_error("create the state of a lineage"))?;
        let sizes: Vec<_> = self.disks.iter().map(|disk| disk.size()).collect();
        let intent = IntentLog::create(&self.around, &live, lineage, &sizes)
            .map_err(self.state_error("create the intent log"))?;
        let diffs = self.create_diffs(lineage, Generation::FIRST, &live, &intent)?;
        *tracking = Tracking {
            lineage,
            live,
            intent,
            sealed: Vec::new(),
            released: Generation::NONE,
            ending: None,
        };
        // One by one: this is no cut, and a disk that hangs must not hold up the others. What is
        // written to a disk before its turn is read by the seed.
        for (disk, diff) in self.disks.iter().zip(diffs) {
            // Their files are closed with the gate open.
            drop(disk.gate.replace(diff));
        }
        self.establish(lineage).inspect_err(|_| {
            // Nobody may cut what nobody would find again.
            tracking.live.lose();
        })?;
        crate::recover::remove_debris(&self.around, lineage, &[Generation::FIRST])
            .map_err(self.state_error("remove the files of the old lineage"))?;
        Ok(lineage)
    }

    /// Makes a new lineage, into which all writes go, the one that counts.
    fn establish(&self, lineage: Lineage) -> Result<(), CutError> {
        // What was written before is in no log: the seed must not read what a power cut takes back.
        self.flush_production()?;
        self.record(lineage)
            .save(&*self.around.state)
            .map_err(self.state_error("record the new lineage"))
    }

    /// Frees what a lost lineage occupies, so that a full directory cannot keep the next one from
    /// beginning. What fails here is removed as debris later.
    pub(crate) fn discard_all(&self, tracking: &mut Tracking) {
        for sealed in tracking.sealed.drain(..) {
            let _ = self.remove_files(&sealed);
        }
        tracking.ending = None;
        for disk in &self.disks {
            if let Some(older) = disk.gate.older() {
                older.live.lose();
                let _ = older.discard();
            }
            let diff = disk.gate.enter();
            // A gate may hold a lineage that an earlier restart made and could not record.
            diff.live.lose();
            let _ = diff.discard();
        }
    }
}
