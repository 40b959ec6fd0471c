//! What becomes of a legal request: the device does it, the client is told.
//!
//! Rule: a device's failure is the client's answer, not the connection's end; the error that these
//! functions return is the connection's.

use std::io;

use block::{ByteRange, ErrorKind, Extent, Fua};

use super::contexts::Context;
use super::holes::holes_of;
use super::outbox::Early;
use super::proto::{Errno, Mode};
use super::reply::{self, Head, Last, To};
use super::request::{BAD_FILTER, Command, Extents, Fragments, Refusal, StatusFilter};
use super::session::{Job, Scratch, Session};
use crate::limits::HOLE_READ_BYTES_MIN;

impl Session {
    /// Does what the client asked and answers. The error is the connection's.
    pub(super) fn perform(&self, job: &Job<'_>, scratch: &mut Scratch) -> io::Result<()> {
        let device = &*self.export.device;
        let to = job.to;
        let command = match job.verdict {
            Ok(command) => command,
            Err(refusal) => return self.send_refusal(to, refusal),
        };
        let done = match command {
            Command::Read { range, fragments } => return self.read(job, range, fragments, scratch),
            Command::BlockStatus { range, extents } => {
                return self.block_status(to, range, extents, &self.contexts);
            }
            Command::FilteredStatus { extents, .. } => {
                let payload = &scratch.bytes(job.payload_len)[..];
                return self.filtered_status(to, extents, payload);
            }
            Command::Write { range, fua } => {
                let data = scratch.bytes(job.payload_len);
                return self.write(job, data, range.start(), fua);
            }
            Command::Flush => device.flush(),
            Command::Trim { range, fua } => device.trim(range, fua),
            Command::WriteZeroes { range, options } => device.write_zeroes(range, options),
            Command::Cache { range } => device.prefetch(range),
            Command::Disconnect => unreachable!("receive ends the session"),
        };
        match done {
            Ok(()) => self.send_when(job.when, Head::done(self.terms.mode, to).bytes(), &[]),
            Err(e) => self.send_failure(to, &e),
        }
    }

    /// The client is told as soon as the device is sure, if that needs no wait.
    fn write(&self, job: &Job<'_>, data: &[u8], offset: u64, fua: Fua) -> io::Result<()> {
        let (mut failure, mut early) = (None, Ok(Early::Refused));
        let done = Head::done(self.terms.mode, job.to);
        (self.export.device).write_and_answer(data, offset, fua, &mut |outcome| match outcome {
            Ok(()) => early = self.send_early(job.when, done.bytes()),
            Err(e) => failure = Some(e),
        });
        match (failure, early?) {
            (Some(e), _) => self.send_failure(job.to, &e),
            (None, Early::Sent) => Ok(()),
            (None, Early::Held) => self.send_held(),
            (None, Early::Refused) => self.send_when(job.when, done.bytes(), &[]),
        }
    }

    fn read(
        &self,
        job: &Job<'_>,
        range: ByteRange,
        fragments: Fragments,
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        let (to, mode) = (job.to, self.terms.mode);
        let len = block::index(range.len());
        let may_split = mode != Mode::Simple && fragments == Fragments::Allowed;
        if may_split && len >= HOLE_READ_BYTES_MIN && self.hole_pace.is_worth_it() {
            let begun = self.shared.clock.monotonic();
            let found = holes_of(&*self.export.device, range);
            let took = self.shared.clock.monotonic() - begun;
            self.hole_pace.looked(took, matches!(found, Ok(Some(_))));
            match found {
                Ok(None) => {}
                Ok(Some(extents)) => return self.read_sparse(to, &extents, scratch),
                Err(e) => return self.send_failure(to, &e),
            }
        }
        let data = scratch.bytes(len);
        if let Err(e) = self.export.device.read_at(data, range.start()) {
            return self.send_failure(to, &e);
        }
        let head = match mode {
            Mode::Simple => Head::simple(to.cookie, Errno(0)),
            _ if len == 0 => Head::none(mode, to),
            _ => Head::data(mode, to, Last::Yes, range.start(), len),
        };
        self.send_when(job.when, head.bytes(), data)
    }

    /// Answers with a chunk per extent. All data is read before the first chunk goes out, so that
    /// an error is the only chunk.
    fn read_sparse(&self, to: To, extents: &[Extent], scratch: &mut Scratch) -> io::Result<()> {
        let mode = self.terms.mode;
        let data_bytes = |extents: &[Extent]| -> u64 {
            let data = extents.iter().filter(|extent| !extent.state.reads_zero());
            data.map(|extent| extent.range.len()).sum()
        };
        let mut rest = scratch.bytes(block::index(data_bytes(extents)));
        let mut chunks: Vec<(Vec<u8>, &[u8])> = Vec::with_capacity(extents.len());
        for (index, extent) in extents.iter().enumerate() {
            let last = Last::when(index + 1 == extents.len());
            let start = extent.range.start();
            if extent.state.reads_zero() {
                let len = u32::try_from(extent.range.len()).expect("reads end at 64 MiB");
                chunks.push((reply::hole(mode, to, last, start, len), &[]));
                continue;
            }
            let len = block::index(extent.range.len());
            let (data, behind) = std::mem::take(&mut rest).split_at_mut(len);
            rest = behind;
            if let Err(e) = self.export.device.read_at(data, start) {
                return self.send_failure(to, &e);
            }
            let head = Head::data(mode, to, last, start, len);
            chunks.push((head.bytes().to_vec(), data));
        }
        self.send_pieces(&chunks)
    }

    fn filtered_status(&self, to: To, extents: Extents, payload: &[u8]) -> io::Result<()> {
        let filter = match StatusFilter::decode(to.offset, self.terms.size, payload) {
            Ok(filter) => filter,
            Err(refusal) => return self.send_refusal(to, refusal),
        };
        let known = |id: &u32| self.contexts.iter().find(|context| context.id == *id);
        let chosen: Option<Vec<Context>> = filter.ids.iter().map(|id| known(id).cloned()).collect();
        match chosen {
            Some(chosen) => self.block_status(to, filter.range, extents, &chosen),
            None => self.send_refusal(to, BAD_FILTER),
        }
    }

    fn block_status(
        &self,
        to: To,
        range: ByteRange,
        extents: Extents,
        contexts: &[Context],
    ) -> io::Result<()> {
        let mut out = Vec::new();
        for (index, context) in contexts.iter().enumerate() {
            let last = Last::when(index + 1 == contexts.len());
            match context.extents(&*self.export.device, range, extents) {
                Ok(found) => {
                    reply::put_status(&mut out, self.terms.mode, to, last, context.id, &found);
                }
                Err(e) => return self.send_failure(to, &e),
            }
        }
        self.send(&out, &[])
    }

    fn send_refusal(&self, to: To, Refusal { errno, reason }: Refusal) -> io::Result<()> {
        self.send(&Head::error(self.terms.mode, to, errno, reason), &[])
    }

    /// Tells the client the kind of a device's failure, and the log the rest: it may name files of
    /// this host.
    fn send_failure(&self, to: To, e: &block::Error) -> io::Result<()> {
        let refusal = errno_of(e.kind());
        if refusal.errno == Errno::EIO
            && let Some(suppressed) = self.shared.log_gate.pass()
        {
            let export = self.export.name.as_str();
            tracing::warn!(export, error = %e, suppressed, "a request failed");
        }
        self.send_refusal(to, refusal)
    }
}

/// proto.md, "Error values".
fn errno_of(kind: ErrorKind) -> Refusal {
    let (errno, reason) = match kind {
        ErrorKind::OutOfRange => (Errno::EINVAL, "the request reaches past the end"),
        ErrorKind::ReadOnly => (Errno::EPERM, "the device is read-only"),
        ErrorKind::Unsupported => (Errno::ENOTSUP, "the device cannot do this"),
        ErrorKind::Full => (Errno::ENOSPC, "no space is left behind the device"),
        ErrorKind::Io => (Errno::EIO, "the device failed"),
        ErrorKind::Corrupt => (Errno::EIO, "what the device holds is damaged"),
        ErrorKind::Unavailable => (Errno::ESHUTDOWN, "the device is not available"),
    };
    Refusal { errno, reason }
}
