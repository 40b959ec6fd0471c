//! The handshake (proto.md, "Newstyle negotiation" and "Option haggling"): from a new connection
//! to an export and the terms it is served on.
//!
//! ```text
//!   greeting -> client flags -> option* -> EXPORT_NAME | GO -> transmission
//!                                 |  ^
//!                             STARTTLS: TLS handshake; everything negotiated before is forgotten
//! ```
//!
//! Rule: an option that is unknown, malformed or too long is answered with an error and read to
//! its end, so that the next one is understood. Only what breaks the framing ends the connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use block::Clock;

use super::contexts::{self, Context};
use super::option::{InfoRequest, Malformed, MetaRequest, OPTION_HEAD_LEN, OptionHead, put_reply};
use super::proto::{IHAVEOPT, Mode, NBDMAGIC, export_flag, handshake_flag, info, opt, rep};
use super::receiver::{Filled, Receiver};
use crate::exports::STRING_LEN_MAX;
use crate::limits::{
    OPTION_BYTES_MAX, OPTION_BYTES_SKIPPED_MAX, OPTIONS_MAX, REQUEST_BYTES_ADVERTISED,
};
use crate::tls::{TlsError, TlsPolicy};
use crate::transport::Transport;
use crate::{Export, Exports};

/// What a handshake needs to know of the server.
pub(crate) struct House<'a> {
    pub(crate) exports: &'a Exports,
    pub(crate) tls: &'a TlsPolicy,
    pub(crate) clock: &'a dyn Clock,
    /// By this moment of `clock` it must be over.
    pub(crate) deadline: Duration,
}

/// What was agreed.
pub(crate) struct Negotiated {
    pub(crate) transport: Transport,
    /// May hold the first requests already.
    pub(crate) receiver: Receiver,
    pub(crate) export: Arc<Export>,
    pub(crate) mode: Mode,
    pub(crate) contexts: Vec<Context>,
}

/// Why there was no agreement.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the client took too long")]
    Deadline,
    #[error("the connection failed")]
    Socket(#[source] io::Error),
    #[error("the client sent something else than an option")]
    Magic,
    #[error("the client set unknown flags {0:#x}")]
    Flags(u32),
    #[error("the client sent an option of {0} bytes")]
    OptionLength(u32),
    #[error("the client sent more than {OPTIONS_MAX} options")]
    Options,
    #[error("the client asked for an export that does not exist")]
    UnknownExport,
    #[error("the client asked for an export without TLS")]
    TlsRequired,
    #[error("the client sent plain bytes after it asked for TLS")]
    PlainAfterTls,
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl From<io::Error> for HandshakeError {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::TimedOut => Self::Deadline,
            _ => Self::Socket(e),
        }
    }
}

/// Negotiates with a new client. `None`: the client left in good order.
pub(crate) fn negotiate(
    transport: Transport,
    house: &House<'_>,
) -> Result<Option<Negotiated>, HandshakeError> {
    let mut haggling = Haggling {
        house,
        transport,
        receiver: Receiver::new(),
        zeroes: true,
        mode: Mode::Simple,
        contexts: None,
        out: Vec::new(),
    };
    haggling.greet()?;
    loop {
        match haggling.options()? {
            Step::Next => {}
            Step::StartTls => haggling = haggling.start_tls()?,
            Step::Leave => return Ok(None),
            Step::Serve(export) => return Ok(Some(haggling.finish(export))),
        }
    }
}

enum Step {
    Next,
    StartTls,
    Leave,
    Serve(Arc<Export>),
}

struct Haggling<'a> {
    house: &'a House<'a>,
    transport: Transport,
    receiver: Receiver,
    /// Whether the client wants `NBD_OPT_EXPORT_NAME`'s 124 zeroes.
    zeroes: bool,
    mode: Mode,
    /// What the last `NBD_OPT_SET_META_CONTEXT` selected, and of which export.
    contexts: Option<(Arc<Export>, Vec<Context>)>,
    /// Replies not sent yet.
    out: Vec<u8>,
}

impl Haggling<'_> {
    fn greet(&mut self) -> Result<(), HandshakeError> {
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        self.out.extend(NBDMAGIC.to_be_bytes());
        self.out.extend(IHAVEOPT.to_be_bytes());
        self.out.extend(flags.to_be_bytes());
        self.send()?;
        // A port scanner that leaves here is no news.
        let flags = u32::from_be_bytes(self.head()?);
        if flags & !u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES) != 0 {
            return Err(HandshakeError::Flags(flags));
        }
        self.zeroes = flags & u32::from(handshake_flag::NO_ZEROES) == 0;
        Ok(())
    }

    /// Reads options and answers them, until one ends the haggling.
    fn options(&mut self) -> Result<Step, HandshakeError> {
        for _ in 0..OPTIONS_MAX {
            let head: [u8; OPTION_HEAD_LEN] = self.head()?;
            let head = OptionHead::decode(&head).ok_or(HandshakeError::Magic)?;
            let Some(data) = self.data(head)? else {
                continue;
            };
            match self.answer(head.code, &data)? {
                Step::Next => self.send()?,
                step => return Ok(step),
            }
        }
        Err(HandshakeError::Options)
    }

    fn answer(&mut self, code: u32, data: &[u8]) -> Result<Step, HandshakeError> {
        let before_tls =
            matches!(self.house.tls, TlsPolicy::Required(_)) && !self.transport.is_tls();
        match code {
            opt::ABORT => {
                self.ack(code);
                // The client may be gone already, which is what it said.
                let _ = self.send();
                return Ok(Step::Leave);
            }
            opt::STARTTLS => return self.answer_start_tls(data),
            opt::EXPORT_NAME if before_tls => return Err(HandshakeError::TlsRequired),
            _ if before_tls => {
                self.refuse(code, rep::ERR_TLS_REQD, "this server wants STARTTLS first");
            }
            opt::EXPORT_NAME => return self.export_name(data).map(Step::Serve),
            opt::LIST => self.list(data),
            opt::INFO => drop(self.info(code, data)),
            opt::GO => {
                if let Some(export) = self.info(code, data) {
                    self.send()?;
                    return Ok(Step::Serve(export));
                }
            }
            opt::STRUCTURED_REPLY => self.raise(code, data, Mode::Structured),
            opt::EXTENDED_HEADERS => self.raise(code, data, Mode::Extended),
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => self.meta_context(code, data),
            _ => self.refuse(code, rep::ERR_UNSUP, "this server does not know the option"),
        }
        Ok(Step::Next)
    }

    /// "`NBD_OPT_EXPORT_NAME` (1)": no way to say no but to hang up.
    fn export_name(&mut self, data: &[u8]) -> Result<Arc<Export>, HandshakeError> {
        let export = std::str::from_utf8(data)
            .ok()
            .filter(|name| name.len() <= STRING_LEN_MAX)
            .and_then(|name| self.house.exports.find(name))
            .ok_or(HandshakeError::UnknownExport)?;
        self.out.extend(export.device.size().to_be_bytes());
        (self.out).extend(transmission_flags(&export, self.mode).to_be_bytes());
        if self.zeroes {
            self.out.extend([0; 124]);
        }
        self.send()?;
        Ok(export)
    }

    /// "`NBD_OPT_LIST` (3)".
    fn list(&mut self, data: &[u8]) {
        if !data.is_empty() {
            return self.refuse(opt::LIST, rep::ERR_INVALID, "LIST takes no data");
        }
        for export in self.house.exports.list() {
            let name = export.name.as_bytes();
            let len = u32::try_from(name.len()).expect("Exports bounds names");
            let parts = [&len.to_be_bytes(), name, export.description.as_bytes()];
            put_reply(&mut self.out, opt::LIST, rep::SERVER, &parts);
        }
        self.ack(opt::LIST);
    }

    /// "`NBD_OPT_INFO` (6) and `NBD_OPT_GO` (7)".
    fn info(&mut self, code: u32, data: &[u8]) -> Option<Arc<Export>> {
        let request = match InfoRequest::decode(data) {
            Ok(request) => request,
            Err(e) => {
                self.malformed(code, e);
                return None;
            }
        };
        let Some(export) = self.house.exports.find(request.name) else {
            self.refuse(code, rep::ERR_UNKNOWN, "there is no export of this name");
            return None;
        };
        let wants = |kind| request.wanted.contains(&kind);
        let size = export.device.size().to_be_bytes();
        let flags = transmission_flags(&export, self.mode).to_be_bytes();
        self.put_info(code, info::EXPORT, &[&size, &flags]);
        // Any alignment is served; 4096 is what the splitter tracks in.
        let sizes = [1, 4096, REQUEST_BYTES_ADVERTISED].map(u32::to_be_bytes);
        self.put_info(code, info::BLOCK_SIZE, &[sizes.as_flattened()]);
        if wants(info::NAME) {
            self.put_info(code, info::NAME, &[export.name.as_bytes()]);
        }
        if wants(info::DESCRIPTION) && !export.description.is_empty() {
            self.put_info(code, info::DESCRIPTION, &[export.description.as_bytes()]);
        }
        self.ack(code);
        Some(export)
    }

    fn put_info(&mut self, code: u32, kind: u16, parts: &[&[u8]]) {
        let (kind, data) = (kind.to_be_bytes(), parts.concat());
        put_reply(&mut self.out, code, rep::INFO, &[&kind, &data]);
    }

    /// "`NBD_OPT_STRUCTURED_REPLY` (8)" and "`NBD_OPT_EXTENDED_HEADERS` (11)".
    fn raise(&mut self, code: u32, data: &[u8], to: Mode) {
        if !data.is_empty() {
            self.refuse(code, rep::ERR_INVALID, "the option takes no data");
        } else if self.mode == to {
            self.refuse(code, rep::ERR_INVALID, "this is negotiated already");
        } else if self.mode > to {
            let reason = "extended headers are negotiated, which include this";
            self.refuse(code, rep::ERR_EXT_HEADER_REQD, reason);
        } else {
            self.mode = to;
            self.ack(code);
        }
    }

    /// "`NBD_OPT_LIST_META_CONTEXT` (9)" and "`NBD_OPT_SET_META_CONTEXT` (10)".
    fn meta_context(&mut self, code: u32, data: &[u8]) {
        if code == opt::SET_META_CONTEXT {
            // Whatever comes of it, the former selection is void.
            self.contexts = None;
        }
        let request = match MetaRequest::decode(data) {
            Ok(request) => request,
            Err(e) => return self.malformed(code, e),
        };
        if self.mode == Mode::Simple {
            let reason = "negotiate structured replies first";
            return self.refuse(code, rep::ERR_INVALID, reason);
        }
        let Some(export) = self.house.exports.find(request.name) else {
            return self.refuse(code, rep::ERR_UNKNOWN, "there is no export of this name");
        };
        let mut chosen = contexts::all_of(&export);
        if code == opt::SET_META_CONTEXT {
            chosen.retain(|context| request.queries.iter().any(|q| context.is_named_by(q)));
        } else if !request.queries.is_empty() {
            chosen.retain(|context| request.queries.iter().any(|q| context.is_listed_by(q)));
        }
        for context in &chosen {
            let parts = [&context.id.to_be_bytes(), context.name.as_bytes()];
            put_reply(&mut self.out, code, rep::META_CONTEXT, &parts);
        }
        self.ack(code);
        if code == opt::SET_META_CONTEXT {
            self.contexts = Some((export, chosen));
        }
    }

    /// "`NBD_OPT_STARTTLS` (5)".
    fn answer_start_tls(&mut self, data: &[u8]) -> Result<Step, HandshakeError> {
        let code = opt::STARTTLS;
        if matches!(self.house.tls, TlsPolicy::Off) {
            self.refuse(code, rep::ERR_UNSUP, "this server has no TLS");
        } else if self.transport.is_tls() {
            self.refuse(code, rep::ERR_INVALID, "TLS is on already");
        } else if !data.is_empty() {
            self.refuse(code, rep::ERR_INVALID, "STARTTLS takes no data");
        } else {
            // Bytes that came before the handshake were not protected by it, whoever sent them.
            if !self.receiver.is_empty() {
                return Err(HandshakeError::PlainAfterTls);
            }
            self.ack(code);
            self.send()?;
            return Ok(Step::StartTls);
        }
        Ok(Step::Next)
    }

    fn start_tls(self) -> Result<Self, HandshakeError> {
        let (TlsPolicy::Offered(config) | TlsPolicy::Required(config)) = self.house.tls else {
            unreachable!("answer_start_tls refuses it");
        };
        let socket = self.transport.socket().clone();
        let house = self.house;
        let transport = self.transport.into_tls(config, || {
            let rest = house.rest().ok_or(io::ErrorKind::TimedOut)?;
            socket.set_recv_timeout(rest)
        })?;
        Ok(Self {
            transport,
            receiver: Receiver::new(),
            mode: Mode::Simple,
            contexts: None,
            out: Vec::new(),
            ..self
        })
    }

    /// Contexts count for the export they were selected for only.
    fn finish(self, export: Arc<Export>) -> Negotiated {
        let contexts = match self.contexts {
            Some((of, contexts)) if Arc::ptr_eq(&of, &export) => contexts,
            _ => Vec::new(),
        };
        Negotiated {
            transport: self.transport,
            receiver: self.receiver,
            export,
            mode: self.mode,
            contexts,
        }
    }

    fn ack(&mut self, code: u32) {
        put_reply(&mut self.out, code, rep::ACK, &[]);
    }

    fn refuse(&mut self, code: u32, kind: u32, reason: &str) {
        put_reply(&mut self.out, code, kind, &[reason.as_bytes()]);
    }

    fn malformed(&mut self, code: u32, e: Malformed) {
        let kind = match e {
            Malformed::TooLong => rep::ERR_TOO_BIG,
            Malformed::Short | Malformed::Long | Malformed::NotText => rep::ERR_INVALID,
        };
        self.refuse(code, kind, &e.to_string());
    }

    fn send(&mut self) -> Result<(), HandshakeError> {
        let rest = self.house.rest().ok_or(HandshakeError::Deadline)?;
        self.transport.socket().set_send_timeout(rest)?;
        self.transport.send_all(&self.out, &[])?;
        self.out.clear();
        Ok(())
    }

    fn head<const N: usize>(&mut self) -> Result<[u8; N], HandshakeError> {
        self.fill(N)?;
        let bytes = self.receiver.take(N).first_chunk();
        Ok(*bytes.expect("take gives what it is asked for"))
    }

    /// The option's data; `None` if it was too long, which is answered here.
    fn data(&mut self, head: OptionHead) -> Result<Option<Vec<u8>>, HandshakeError> {
        let OptionHead { code, data_len } = head;
        if data_len > OPTION_BYTES_SKIPPED_MAX {
            return Err(HandshakeError::OptionLength(data_len));
        }
        let fits = data_len <= OPTION_BYTES_MAX;
        let mut data = Vec::new();
        let mut left = block::index(u64::from(data_len));
        while left > 0 {
            let piece = left.min(PIECE_BYTES);
            self.fill(piece)?;
            let bytes = self.receiver.take(piece);
            if fits {
                data.extend_from_slice(bytes);
            }
            left -= piece;
        }
        if fits {
            return Ok(Some(data));
        }
        if code == opt::EXPORT_NAME {
            return Err(HandshakeError::UnknownExport);
        }
        self.refuse(code, rep::ERR_TOO_BIG, "the option's data is too long");
        self.send()?;
        Ok(None)
    }

    /// Gets `len` bytes into the receiver's buffer before the deadline.
    fn fill(&mut self, len: usize) -> Result<(), HandshakeError> {
        let rest = self.house.rest().ok_or(HandshakeError::Deadline)?;
        self.transport.socket().set_recv_timeout(rest)?;
        match self.receiver.fill(&self.transport, len)? {
            Filled::Yes => Ok(()),
            Filled::Idle => Err(HandshakeError::Deadline),
            Filled::Ended => Err(HandshakeError::Socket(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

/// Options are read in pieces of this size, so that a trickle meets the deadline.
const PIECE_BYTES: usize = 4096;

impl House<'_> {
    /// Time left, `None` if it is up.
    fn rest(&self) -> Option<Duration> {
        let rest = self.deadline.saturating_sub(self.clock.monotonic());
        (!rest.is_zero()).then_some(rest)
    }
}

/// "Transmission flags": what the export's clients may send.
fn transmission_flags(export: &Export, mode: Mode) -> u16 {
    let features = export.device.features();
    let when = |on: bool, flags: u16| if on { flags } else { 0 };
    export_flag::HAS_FLAGS
        | export_flag::SEND_FLUSH
        | export_flag::SEND_FUA
        | export_flag::SEND_CACHE
        | when(!features.writable, export_flag::READ_ONLY)
        | when(features.writable && features.trim, export_flag::SEND_TRIM)
        // A device that cannot zero fast says so to each request, which is the flag's meaning.
        | when(
            features.writable,
            export_flag::SEND_WRITE_ZEROES | export_flag::SEND_FAST_ZERO,
        )
        | when(features.rotational, export_flag::ROTATIONAL)
        | when(export.multi_conn, export_flag::CAN_MULTI_CONN)
        | when(mode >= Mode::Structured, export_flag::SEND_DF)
        | when(mode == Mode::Extended, export_flag::BLOCK_STATUS_PAYLOAD)
}
