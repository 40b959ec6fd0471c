//! TLS with foreign clients: certificates, mutual or not, and pre-shared keys, by libnbd (GnuTLS)
//! and QEMU (GnuTLS too); and what a client without TLS sees.

mod common;

use std::path::{Path, PathBuf};

use common::Fixture;
use common::client::*;
use common::tool::{Said, run, sh, try_run};
use export::{CertificateFiles, Limits, ServerOptions, TlsConfig, TlsPolicy};

const SIZE: u64 = 64 << 20;

/// Keys and certificates as libnbd and QEMU lay them out: an authority, a server, a client.
struct Papers(tempfile::TempDir);

impl Papers {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let script = format!(
            "cd {}
            for who in ca server client stranger; do certtool --generate-privkey --ecc --outfile $who-key.pem 2>/dev/null; done
            printf 'cn = test\\nca\\ncert_signing_key\\nexpiration_days = 2\\n' > ca.info
            printf 'cn = localhost\\ndns_name = localhost\\ntls_www_server\\nsigning_key\\nexpiration_days = 2\\n' > server.info
            printf 'cn = client\\ntls_www_client\\nsigning_key\\nexpiration_days = 2\\n' > client.info
            certtool --generate-self-signed --load-privkey ca-key.pem --template ca.info --outfile ca-cert.pem 2>/dev/null
            for who in server client; do
                certtool --generate-certificate --load-ca-certificate ca-cert.pem --load-ca-privkey ca-key.pem \
                    --load-privkey $who-key.pem --template $who.info --outfile $who-cert.pem 2>/dev/null
            done
            certtool --generate-self-signed --load-privkey stranger-key.pem --template client.info --outfile stranger-cert.pem 2>/dev/null
            mkdir anonymous stranger
            cp ca-cert.pem anonymous; cp ca-cert.pem stranger
            cp stranger-cert.pem stranger/client-cert.pem; cp stranger-key.pem stranger/client-key.pem
            psktool -u alice -p keys.psk >/dev/null 2>&1; psktool -u bob -p keys.psk >/dev/null 2>&1
            psktool -u alice -p wrong.psk >/dev/null 2>&1; psktool -u eve -p wrong.psk >/dev/null 2>&1
            mkdir qemu wrong; cp keys.psk qemu/keys.psk; cp wrong.psk wrong/keys.psk",
            dir.path().display()
        );
        sh(&script);
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn certificates(&self, client_authority: Option<&str>) -> TlsConfig {
        let files = CertificateFiles {
            certificate: self.path("server-cert.pem"),
            key: self.path("server-key.pem"),
            client_authority: client_authority.map(|name| self.path(name)),
        };
        TlsConfig::certificates(&files).expect("certtool made them")
    }

    fn psk(&self) -> TlsConfig {
        TlsConfig::psk(&self.path("keys.psk")).expect("psktool made them")
    }
}

fn serve(tls: TlsPolicy) -> Fixture {
    serve_size(SIZE, tls)
}

fn serve_size(size: u64, tls: TlsPolicy) -> Fixture {
    let options = ServerOptions {
        tls,
        ..ServerOptions::default()
    };
    Fixture::plain(size, options)
}

fn uri_x509(fixture: &Fixture, papers: &Path) -> String {
    let socket = fixture.path.display();
    format!(
        "nbds+unix://localhost/?socket={socket}&tls-certificates={}",
        papers.display()
    )
}

fn uri_psk(fixture: &Fixture, user: &str, keys: &Path) -> String {
    let socket = fixture.path.display();
    format!(
        "nbds+unix://{user}@localhost/?socket={socket}&tls-psk-file={}",
        keys.display()
    )
}

/// A round trip by nbdcopy, over several connections, in large and small requests.
fn copy_there_and_back(fixture: &Fixture, uri: &str) {
    let dir = fixture.dir.path().display();
    sh(&format!(
        "cd {dir}; head -c {SIZE} /dev/urandom > image; nbdcopy image '{uri}'; nbdcopy --request-size=4096 '{uri}' back; cmp image back"
    ));
}

/// `qemu-io` over TLS; `object` says with which papers.
fn qemu_io(fixture: &Fixture, object: &str) -> Said {
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},tls-creds=tls0,tls-hostname=localhost",
        fixture.path.display()
    );
    let script = [
        "write -P 7 0 32M",
        "read -P 7 0 32M",
        "write -z 1M 1M",
        "read -P 0 1M 1M",
        "flush",
    ];
    let mut args = vec!["--object", object, "--image-opts", &image];
    script.iter().for_each(|line| args.extend(["-c", line]));
    try_run("qemu-io", &args)
}

#[test]
fn certificates_protect_libnbd_and_qemu() {
    let papers = Papers::new();
    let fixture = serve(TlsPolicy::Required(papers.certificates(None)));
    let uri = uri_x509(&fixture, &papers.path("anonymous"));
    let info = run("nbdinfo", &[&uri]);
    assert!(info.contains("with TLS"), "{info}");
    copy_there_and_back(&fixture, &uri);
    let object = format!(
        "tls-creds-x509,id=tls0,endpoint=client,dir={}",
        papers.path("anonymous").display()
    );
    let said = qemu_io(&fixture, &object);
    assert!(
        said.ok && !said.out.contains("failed"),
        "{}{}",
        said.out,
        said.err
    );
}

#[test]
fn mutual_tls_lets_in_whom_the_authority_signed() {
    let papers = Papers::new();
    let fixture = serve(TlsPolicy::Required(
        papers.certificates(Some("ca-cert.pem")),
    ));
    run("nbdinfo", &[&uri_x509(&fixture, papers.0.path())]);
    copy_there_and_back(&fixture, &uri_x509(&fixture, papers.0.path()));
    for outsider in ["anonymous", "stranger"] {
        let uri = uri_x509(&fixture, &papers.path(outsider));
        assert!(!try_run("nbdinfo", &[&uri]).ok, "{outsider} was let in");
    }
}

#[test]
fn keys_let_in_who_has_them() {
    let papers = Papers::new();
    let fixture = serve(TlsPolicy::Required(papers.psk()));
    let keys = papers.path("keys.psk");
    for user in ["alice", "bob"] {
        let info = run("nbdinfo", &[&uri_psk(&fixture, user, &keys)]);
        assert!(info.contains("with TLS"), "{info}");
    }
    copy_there_and_back(&fixture, &uri_psk(&fixture, "alice", &keys));
    let wrong = papers.path("wrong.psk");
    for user in ["alice", "eve"] {
        assert!(
            !try_run("nbdinfo", &[&uri_psk(&fixture, user, &wrong)]).ok,
            "{user} was let in"
        );
    }
    let object = |dir: &str| {
        let dir = papers.path(dir);
        format!(
            "tls-creds-psk,id=tls0,endpoint=client,username=alice,dir={}",
            dir.display()
        )
    };
    let said = qemu_io(&fixture, &object("qemu"));
    assert!(
        said.ok && !said.out.contains("failed"),
        "{}{}",
        said.out,
        said.err
    );
    assert!(!qemu_io(&fixture, &object("wrong")).ok);
}

#[test]
fn the_probe_passes_under_tls() {
    let papers = Papers::new();
    let fixture = serve_size(256 << 20, TlsPolicy::Offered(papers.psk()));
    let uri = uri_psk(&fixture, "alice", &papers.path("keys.psk"));
    let probe = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/lab/nbd-probe.py");
    // libnbd wants leave to open the key file that a URI names.
    let script = format!(
        "import nbd, runpy, sys\nmake = nbd.NBD.__init__\n\
         nbd.NBD.__init__ = lambda h: (make(h), h.set_uri_allow_local_file(True))[0]\n\
         sys.argv = ['probe', '{uri}']\nrunpy.run_path('{probe}', run_name='__main__')"
    );
    let out = run("/usr/bin/python3", &["-c", &script]);
    assert!(!out.contains("FAIL") && !out.contains("other("), "{out}");
}

#[test]
fn required_tls_tells_nothing_before_it_and_offered_tls_is_optional() {
    let papers = Papers::new();
    let fixture = serve(TlsPolicy::Required(papers.psk()));
    let mut client = fixture.connect();
    for code in [
        OPT_LIST,
        OPT_STRUCTURED,
        OPT_EXTENDED,
        OPT_LIST_META,
        OPT_SET_META,
        OPT_INFO,
        OPT_GO,
        99,
    ] {
        assert_eq!(client.outcome(code, &[]), TLS_REQD, "option {code}");
    }
    assert_eq!(client.outcome(OPT_STARTTLS, b"x"), INVALID);
    client.send_option(OPT_EXPORT_NAME, b"disk");
    client.assert_closed();
    assert!(!try_run("nbdinfo", &[&fixture.uri()]).ok);

    let fixture = serve(TlsPolicy::Offered(papers.psk()));
    run("nbdinfo", &[&fixture.uri()]);
    run(
        "nbdinfo",
        &[&uri_psk(&fixture, "alice", &papers.path("keys.psk"))],
    );
}

/// An attacker who injects plain bytes behind STARTTLS must not have them taken for the client's.
#[test]
fn plain_bytes_behind_starttls_close_the_connection() {
    let papers = Papers::new();
    let fixture = serve(TlsPolicy::Offered(papers.psk()));
    let mut client = fixture.connect();
    let mut bytes = b"IHAVEOPT\0\0\0\x05\0\0\0\0".to_vec();
    bytes.extend(b"IHAVEOPT\0\0\0\x03\0\0\0\0");
    client.send(&bytes);
    client.assert_closed();
}

#[test]
fn a_tls_handshake_that_stalls_meets_the_deadline() {
    let papers = Papers::new();
    let options = ServerOptions {
        tls: TlsPolicy::Offered(papers.psk()),
        limits: Limits {
            handshake_max: std::time::Duration::from_millis(200),
            ..Limits::default()
        },
        ..ServerOptions::default()
    };
    let fixture = Fixture::plain(SIZE, options);
    let mut client = fixture.connect();
    assert_eq!(client.outcome(OPT_STARTTLS, &[]), ACK);
    client.assert_closed();
    let mut client = fixture.connect();
    assert_eq!(client.outcome(OPT_STARTTLS, &[]), ACK);
    client.send(b"this is not a ClientHello, whatever else it may be");
    // An alert, and then the end.
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client.stream, &mut rest);
    assert!(rest.len() < 100);
}
