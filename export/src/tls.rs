//! TLS under NBD: certificates or pre-shared keys, by OpenSSL (docs/decisions/0002).
//!
//! ```text
//!  receiver: socket --recv--> incoming --\                  no lock is held in recv or send
//!                                         SSL object (mutex)
//!  sender:   socket <--send-- outgoing --/
//! ```
//!
//! The SSL object sees two byte queues instead of the socket, so that a receiver that waits for
//! the client does not keep the sender from sending.
//!
//! Rule: what OpenSSL put into `outgoing` is sent in that order, under the sender's lock. What a
//! read produced (an answer to a key update) waits there for the next reply, as TLS 1.3 allows.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openssl::error::ErrorStack;
use openssl::ssl::{
    ErrorCode, Ssl, SslAcceptor, SslAcceptorBuilder, SslContext, SslFiletype, SslMethod, SslMode,
    SslOptions, SslSessionCacheMode, SslStream, SslVerifyMode, SslVersion,
};
use parking_lot::Mutex;

use crate::transport::Socket;

/// Whether clients use TLS.
#[derive(Clone, Debug, Default)]
pub enum TlsPolicy {
    /// Nobody does.
    #[default]
    Off,
    /// Who asks for it.
    Offered(TlsConfig),
    /// Everybody; others see no export.
    Required(TlsConfig),
}

/// How the server proves who it is, and whom it lets in.
#[derive(Clone)]
pub struct TlsConfig {
    context: SslContext,
}

/// PEM files.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// The server's certificate, followed by those that lead to its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// With it, clients must show a certificate that it signed.
    pub client_authority: Option<PathBuf>,
}

/// What is wrong with the configuration, or with a handshake.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A certificate or key that OpenSSL refuses.
    #[error("OpenSSL refuses `{}`", path.display())]
    Refused {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ErrorStack,
    },
    /// A line of a key file.
    #[error("line {line} of `{}` is not USER:HEXADECIMAL-KEY", path.display())]
    KeyLine {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// A key file with no key.
    #[error("`{}` holds no key", .0.display())]
    NoKey(PathBuf),
    /// OpenSSL failed.
    #[error("OpenSSL failed")]
    OpenSsl(#[from] ErrorStack),
    /// The client did not complete the handshake.
    #[error("the TLS handshake failed")]
    Handshake(#[source] openssl::ssl::Error),
    /// The socket failed meanwhile.
    #[error("the connection failed in the TLS handshake")]
    Socket(#[from] io::Error),
}

/// TLS 1.2 suites for keys without certificates, forward secret ones first. GnuTLS (libnbd, QEMU)
/// knows them all; TLS 1.3 has its own list.
const PSK_CIPHERS: &str = "ECDHE-PSK-CHACHA20-POLY1305:DHE-PSK-AES256-GCM-SHA384:\
DHE-PSK-AES128-GCM-SHA256:DHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384:\
ECDHE-PSK-AES128-CBC-SHA256:PSK-AES256-GCM-SHA384:PSK-AES128-GCM-SHA256";
/// A pre-shared key in TLS 1.3 goes with SHA-256 suites (RFC 8446, section 4.2.11).
const PSK_SUITES: &str = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";

impl TlsConfig {
    /// X.509: the server shows a certificate, and may demand one.
    ///
    /// # Errors
    /// If a file cannot be read, or is refused, or key and certificate do not match.
    pub fn certificates(files: &CertificateFiles) -> Result<Self, TlsError> {
        let mut builder = builder()?;
        let refused = |path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::Refused { path, source }
        };
        readable(&files.certificate)?;
        readable(&files.key)?;
        builder
            .set_certificate_chain_file(&files.certificate)
            .map_err(refused(&files.certificate))?;
        builder
            .set_private_key_file(&files.key, SslFiletype::PEM)
            .and_then(|()| builder.check_private_key())
            .map_err(refused(&files.key))?;
        if let Some(authority) = &files.client_authority {
            readable(authority)?;
            builder.set_ca_file(authority).map_err(refused(authority))?;
            builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        }
        Ok(Self::of(builder))
    }

    /// Pre-shared keys from a file of `USER:HEXADECIMAL-KEY` lines, as `psktool` makes it.
    ///
    /// # Errors
    /// If the file cannot be read or has no key or an illegal line.
    pub fn psk(file: &Path) -> Result<Self, TlsError> {
        let keys = Arc::new(Keys::read(file)?);
        let mut builder = builder()?;
        builder.set_cipher_list(PSK_CIPHERS)?;
        builder.set_ciphersuites(PSK_SUITES)?;
        builder.set_psk_server_callback(move |_, identity, buf| Ok(keys.copy(identity, buf)));
        Ok(Self::of(builder))
    }

    fn of(builder: SslAcceptorBuilder) -> Self {
        Self {
            context: builder.build().into_context(),
        }
    }
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsConfig(***)")
    }
}

/// TLS 1.2 and later, no renegotiation, no compression, no resumption: a disk connects once and
/// stays, so tickets would only be one thing more to get wrong.
fn builder() -> Result<SslAcceptorBuilder, ErrorStack> {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    builder.set_options(
        SslOptions::NO_RENEGOTIATION | SslOptions::NO_TICKET | SslOptions::NO_COMPRESSION,
    );
    builder.set_num_tickets(0)?;
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_mode(SslMode::RELEASE_BUFFERS);
    Ok(builder)
}

/// OpenSSL's own message for a missing file is unreadable.
fn readable(path: &Path) -> Result<(), TlsError> {
    fs::File::open(path)
        .map(drop)
        .map_err(|source| read_error(path, source))
}

fn read_error(path: &Path, source: io::Error) -> TlsError {
    let path = path.to_owned();
    TlsError::Read { path, source }
}

/// Keys by user. Never printed.
struct Keys(HashMap<Vec<u8>, Vec<u8>>);

impl Keys {
    fn read(path: &Path) -> Result<Self, TlsError> {
        let text = fs::read_to_string(path).map_err(|source| read_error(path, source))?;
        let mut keys = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (user, key) = key_line(line).ok_or_else(|| TlsError::KeyLine {
                path: path.to_owned(),
                line: index + 1,
            })?;
            keys.insert(user, key);
        }
        if keys.is_empty() {
            return Err(TlsError::NoKey(path.to_owned()));
        }
        Ok(Self(keys))
    }

    /// Copies the user's key to `buf` and returns its length; 0 if there is none, which OpenSSL
    /// answers like a wrong key.
    fn copy(&self, identity: Option<&[u8]>, buf: &mut [u8]) -> usize {
        let Some(key) = identity.and_then(|user| self.0.get(user)) else {
            return 0;
        };
        let Some(place) = buf.get_mut(..key.len()) else {
            return 0;
        };
        place.copy_from_slice(key);
        key.len()
    }
}

fn key_line(line: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let (user, hex) = line.rsplit_once(':')?;
    let digits: Option<Vec<u8>> = hex
        .chars()
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    let digits = digits.filter(|digits| !digits.is_empty() && digits.len() % 2 == 0)?;
    let key = digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect();
    (!user.is_empty()).then(|| (user.as_bytes().to_vec(), key))
}

/// The two queues that OpenSSL takes for a socket.
#[derive(Default)]
struct Queues {
    incoming: Vec<u8>,
    taken: usize,
    outgoing: Vec<u8>,
}

impl Queues {
    fn feed(&mut self, bytes: &[u8]) {
        if self.taken == self.incoming.len() {
            self.incoming.clear();
            self.taken = 0;
        }
        self.incoming.extend_from_slice(bytes);
    }
}

impl Read for Queues {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let ready = &self.incoming[self.taken..];
        if ready.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let n = ready.len().min(buf.len());
        buf[..n].copy_from_slice(&ready[..n]);
        self.taken += n;
        Ok(n)
    }
}

impl Write for Queues {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Ciphertext read from the socket at once.
const RECV_BYTES: usize = 64 << 10;
/// Plaintext encrypted in one go: bounds `outgoing` and the time the SSL object is locked.
const SEND_BYTES: usize = 64 << 10;
/// Head and payload up to this length go out as one record.
const RECORD_BYTES: usize = 16 << 10;

/// The TLS state of one connection.
pub(crate) struct TlsLayer {
    ssl: Mutex<SslStream<Queues>>,
    /// Of the one receiver.
    ciphertext_in: Mutex<Vec<u8>>,
    /// Of the one sender.
    scratch: Mutex<Scratch>,
}

#[derive(Default)]
struct Scratch {
    plain: Vec<u8>,
    ciphertext: Vec<u8>,
}

impl TlsLayer {
    /// As [`Transport::into_tls`](crate::transport::Transport::into_tls).
    pub(crate) fn accept(
        config: &TlsConfig,
        socket: &Socket,
        mut before_recv: impl FnMut() -> io::Result<()>,
    ) -> Result<Self, TlsError> {
        let mut stream = SslStream::new(Ssl::new(&config.context)?, Queues::default())?;
        let mut buf = vec![0; RECV_BYTES];
        loop {
            let accepted = stream.accept();
            // An alert that says what is wrong goes out too.
            let outgoing = std::mem::take(&mut stream.get_mut().outgoing);
            socket.send_all(&outgoing, &[])?;
            match accepted {
                Ok(()) => break,
                Err(e) if e.code() == ErrorCode::WANT_READ => {}
                Err(e) => return Err(TlsError::Handshake(e)),
            }
            before_recv()?;
            let n = socket.recv(&mut buf)?;
            if n == 0 {
                return Err(TlsError::Socket(io::ErrorKind::UnexpectedEof.into()));
            }
            stream.get_mut().feed(&buf[..n]);
        }
        Ok(Self {
            ssl: Mutex::new(stream),
            ciphertext_in: Mutex::new(buf),
            scratch: Mutex::default(),
        })
    }

    pub(crate) fn recv(&self, socket: &Socket, buf: &mut [u8]) -> io::Result<usize> {
        let mut ciphertext = self.ciphertext_in.lock();
        loop {
            if let Some(n) = decrypt(&mut self.ssl.lock(), buf)? {
                return Ok(n);
            }
            let n = socket.recv(&mut ciphertext)?;
            if n == 0 {
                return Ok(0);
            }
            self.ssl.lock().get_mut().feed(&ciphertext[..n]);
        }
    }

    pub(crate) fn send_all(&self, socket: &Socket, first: &[u8], second: &[u8]) -> io::Result<()> {
        let mut scratch = self.scratch.lock();
        let Scratch { plain, ciphertext } = &mut *scratch;
        if first.len() + second.len() <= RECORD_BYTES {
            plain.clear();
            plain.extend_from_slice(first);
            plain.extend_from_slice(second);
            return self.send_piece(socket, plain, ciphertext);
        }
        for piece in first.chunks(SEND_BYTES).chain(second.chunks(SEND_BYTES)) {
            self.send_piece(socket, piece, ciphertext)?;
        }
        Ok(())
    }

    fn send_piece(&self, socket: &Socket, plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        if plain.is_empty() {
            return Ok(());
        }
        out.clear();
        {
            let mut ssl = self.ssl.lock();
            ssl.write_all(plain)?;
            std::mem::swap(out, &mut ssl.get_mut().outgoing);
        }
        socket.send_all(out, &[])
    }

    pub(crate) fn close(&self, socket: &Socket) {
        let mut ssl = self.ssl.lock();
        // Fails only after a fatal error, when there is nothing to say any more.
        let _ = ssl.shutdown();
        let outgoing = std::mem::take(&mut ssl.get_mut().outgoing);
        let _ = socket.send_all(&outgoing, &[]);
    }
}

/// `None`: more ciphertext is needed. `Some(0)`: the client said goodbye.
fn decrypt(ssl: &mut SslStream<Queues>, buf: &mut [u8]) -> io::Result<Option<usize>> {
    match ssl.ssl_read(buf) {
        Ok(n) => Ok(Some(n)),
        Err(e) if e.code() == ErrorCode::WANT_READ => Ok(None),
        Err(e) if e.code() == ErrorCode::ZERO_RETURN => Ok(Some(0)),
        Err(e) => Err(io::Error::other(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_lines_are_those_of_psktool() {
        assert_eq!(
            key_line("alice:00fF10"),
            Some((b"alice".to_vec(), vec![0, 255, 16]))
        );
        for bad in ["alice", "alice:", ":00", "alice:0", "alice:0g", ""] {
            assert_eq!(key_line(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_config_that_cannot_work_says_which_file() {
        let missing = Path::new("/nonexistent/keys.psk");
        let error = TlsConfig::psk(missing).expect_err("no file").to_string();
        assert!(error.contains("/nonexistent/keys.psk"), "{error}");
    }
}
