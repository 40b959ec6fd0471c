//! Where a server listens: `unix:PATH`, `tcp:HOST:PORT`, `activation`.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::activation;
use crate::server::ServeError;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket, made for its owner alone (mode 0600). A socket file that nobody listens on
    /// is replaced.
    Unix(PathBuf),
    /// `HOST:PORT`; an empty host means every address, port 0 a free one.
    Tcp(String),
    /// Listening sockets passed by systemd or libnbd (`LISTEN_FDS`).
    Activated,
}

/// A text that is not a [`Listen`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address: use unix:PATH, tcp:HOST:PORT or activation")]
pub struct InvalidListen(String);

impl FromStr for Listen {
    type Err = InvalidListen;

    fn from_str(text: &str) -> Result<Self, InvalidListen> {
        let invalid = || InvalidListen(text.to_owned());
        match text.split_once(':') {
            None if text == "activation" => Ok(Self::Activated),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", address)) => {
                let (_, port) = address.rsplit_once(':').ok_or_else(invalid)?;
                port.parse::<u16>().map_err(|_| invalid())?;
                Ok(Self::Tcp(address.to_owned()))
            }
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Activated => f.write_str("activation"),
        }
    }
}

/// An address that a server listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalAddress {
    /// A Unix socket's path.
    Unix(PathBuf),
    /// With the real port.
    Tcp(SocketAddr),
}

impl LocalAddress {
    /// The NBD URI of an export here (doc/uri.md); an empty name means the default export.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        let export = percent_encoded(export, b"");
        match self {
            Self::Unix(path) => {
                let path = percent_encoded(&path.to_string_lossy(), b"/");
                format!("nbd+unix:///{export}?socket={path}")
            }
            Self::Tcp(address) => format!("nbd://{address}/{export}"),
        }
    }
}

impl fmt::Display for LocalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// RFC 3986, section 2: all but the unreserved characters and `kept`.
fn percent_encoded(text: &str, kept: &[u8]) -> String {
    text.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.contains(&byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) fd: OwnedFd,
    pub(crate) address: LocalAddress,
    /// The socket file to remove at the end.
    file: Option<SocketFile>,
}

/// A socket file of ours, known by its inode: a path alone may belong to a successor.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode_of(&self.path).is_ok_and(|inode| inode == self.inode) {
            // Without it the next server finds a stale file, which it can replace.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Listener {
    /// Takes the socket file out of the way of a successor before connections drain.
    pub(crate) fn remove_file(&mut self) {
        self.file = None;
    }
}

/// Opens the listening sockets of one address.
pub(crate) fn open(listen: &Listen) -> Result<Vec<Listener>, ServeError> {
    match listen {
        Listen::Unix(path) => Ok(vec![open_unix(path)?]),
        Listen::Tcp(address) => open_tcp(address),
        Listen::Activated => activation::take_listeners()?
            .into_iter()
            .map(|fd| adopt(fd).map_err(|source| failed(listen, source)))
            .collect(),
    }
}

fn failed(listen: &Listen, source: io::Error) -> ServeError {
    let address = listen.to_string();
    ServeError::Listen { address, source }
}

const BACKLOG: i32 = 128;

fn open_unix(path: &Path) -> Result<Listener, ServeError> {
    let listen = Listen::Unix(path.to_owned());
    let fd = match bind_unix(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path).map_err(|e| failed(&listen, e))?;
            bind_unix(path)
        }
        other => other,
    };
    let fd = fd.map_err(|e| failed(&listen, e))?;
    let inode = inode_of(path).map_err(|e| failed(&listen, e))?;
    let path = path.to_owned();
    Ok(Listener {
        fd,
        address: LocalAddress::Unix(path.clone()),
        file: Some(SocketFile { path, inode }),
    })
}

fn bind_unix(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let fd = unix_socket()?;
    // Linux gives the socket file the mode of the socket: no moment when others could connect.
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&fd, &address)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(fd)
}

fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let kind = SocketType::STREAM;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        kind,
        flags,
        None,
    )?)
}

/// Removes a socket file on which nobody listens; anything else stays and is in use.
fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = || io::Error::from(io::ErrorKind::AddrInUse);
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(in_use());
    }
    match rustix::net::connect(unix_socket()?, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path),
        _ => Err(in_use()),
    }
}

/// Binds every address that the host has; one that works is enough, as with `localhost` on a
/// machine without IPv6.
fn open_tcp(address: &str) -> Result<Vec<Listener>, ServeError> {
    let failed = |e| failed(&Listen::Tcp(address.to_owned()), e);
    let mut listeners = Vec::new();
    let mut refused = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for candidate in resolve(address).map_err(failed)? {
        // One free port, not one for each address.
        if candidate.port() == 0 && !listeners.is_empty() {
            break;
        }
        match TcpListener::bind(candidate) {
            Ok(listener) => {
                let address = LocalAddress::Tcp(listener.local_addr().map_err(failed)?);
                let (fd, file) = (listener.into(), None);
                listeners.push(Listener { fd, address, file });
            }
            Err(e) => refused = e,
        }
    }
    if listeners.is_empty() {
        return Err(failed(refused));
    }
    Ok(listeners)
}

fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    // Without a host: the IPv6 wildcard, which on Linux takes IPv4 too.
    if let Some(port) = address.strip_prefix(':') {
        let any = format!("[::]:{port}").to_socket_addrs()?;
        return Ok(any.collect());
    }
    Ok(address.to_socket_addrs()?.collect())
}

/// A listening socket that somebody else opened.
fn adopt(fd: OwnedFd) -> io::Result<Listener> {
    let name: SocketAddrAny = rustix::net::getsockname(&fd)?;
    let address = if let Ok(address) = SocketAddr::try_from(name.clone()) {
        LocalAddress::Tcp(address)
    } else {
        let unix = SocketAddrUnix::try_from(name)?;
        let path = unix.path_bytes().unwrap_or_default();
        LocalAddress::Unix(String::from_utf8_lossy(path).into_owned().into())
    };
    // The file, if any, belongs to whoever made it.
    let file = None;
    Ok(Listener { fd, address, file })
}

/// Settings of a connection that came in over TCP: small replies at once, and a client whose
/// machine is gone found out after two minutes. Other sockets need none.
pub(crate) fn tune(fd: &OwnedFd) {
    if sockopt::set_tcp_nodelay(fd, true).is_err() {
        return;
    }
    // Without them the connection works all the same.
    let _ = sockopt::set_socket_keepalive(fd, true);
    let _ = sockopt::set_tcp_keepidle(fd, Duration::from_mins(1));
    let _ = sockopt::set_tcp_keepintvl(fd, Duration::from_secs(15));
    let _ = sockopt::set_tcp_keepcnt(fd, 4);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_printed() {
        for text in [
            "unix:/run/x.sock",
            "tcp:localhost:10809",
            "tcp::0",
            "tcp:[::1]:7",
            "activation",
        ] {
            let listen: Listen = text.parse().expect(text);
            assert_eq!(listen.to_string(), text);
        }
        for bad in [
            "",
            "unix:",
            "tcp:localhost",
            "tcp:localhost:x",
            "tcp:h:65536",
            "udp:h:1",
            "/x",
        ] {
            assert!(bad.parse::<Listen>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_socket_is_for_its_owner_and_goes_with_the_listener() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let listener = open_unix(&path).expect("free");
        let mode = std::fs::metadata(&path).expect("made").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(open_unix(&path).is_err(), "somebody listens");
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn only_a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        // std's listener leaves its file behind.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("free"));
        assert!(path.exists());
        drop(open_unix(&path).expect("stale"));
        std::fs::write(&path, "precious").expect("written");
        assert!(open_unix(&path).is_err());
        assert_eq!(std::fs::read(&path).expect("kept"), b"precious");
    }

    #[test]
    fn a_successors_socket_file_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let listener = open_unix(&path).expect("free");
        std::fs::rename(&path, dir.path().join("old")).expect("moved");
        let successor = open_unix(&path).expect("free again");
        drop(listener);
        assert!(path.exists());
        drop(successor);
    }

    #[test]
    fn uris_are_those_of_libnbd() {
        let unix = LocalAddress::Unix("/tmp/a b.sock".into());
        assert_eq!(unix.uri("x/y"), "nbd+unix:///x%2Fy?socket=/tmp/a%20b.sock");
        let tcp = LocalAddress::Tcp("[::1]:10809".parse().expect("an address"));
        assert_eq!(tcp.uri(""), "nbd://[::1]:10809/");
    }
}
