//! Client certificates in place of tokens, and certificates of the user's own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use common::Bench;
use dd_target::api::{NewToken, Role};
use dd_target::client::{Access, Remote};
use dd_target::server::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};

mod common;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A file with a certificate for `name` and its key.
fn identity(bench: &Bench, by: &Authority, name: &str, file: &str) -> PathBuf {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let made = params.signed_by(&key, by).unwrap();
    let path = bench.path(file);
    fs::write(&path, format!("{}{}", made.pem(), key.serialize_pem())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn ask(bench: &Bench, certificate: PathBuf) -> Result<usize, String> {
    let access = Access {
        token: None,
        certificate: Some(certificate),
        authorities: Some(bench.path("state/server.pem")),
    };
    let server = Remote::open(&bench.url(), &access).map_err(|e| e.to_string())?;
    let vaults = server.vaults().map_err(|e| e.to_string())?;
    Ok(vaults.len())
}

#[test]
fn a_certificate_has_the_roles_of_its_entry_and_only_if_the_authority_signed_it() {
    let mut bench = Bench::stopped();
    let (ours, theirs) = (authority(), authority());
    fs::write(bench.path("ca.pem"), ours.pem()).unwrap();
    bench.start_with(TlsFiles {
        own: None,
        client_authority: Some(bench.path("ca.pem")),
    });
    bench.make_vault("v", None);
    let entry = NewToken {
        name: "keeper".into(),
        roles: vec![Role::Retention],
        certificate: Some("keeper-1".into()),
        ..NewToken::default()
    };
    let made = bench.tokens().create(entry).unwrap();
    assert!(made.text.is_none());

    let known = identity(&bench, &ours, "keeper-1", "known.pem");
    assert_eq!(ask(&bench, known.clone()), Ok(1));
    let unknown = identity(&bench, &ours, "keeper-2", "unknown.pem");
    assert!(
        ask(&bench, unknown)
            .unwrap_err()
            .contains("not one of this server")
    );
    // TLS refuses it: there is no connection at all.
    let forged = identity(&bench, &theirs, "keeper-1", "forged.pem");
    assert!(ask(&bench, forged).unwrap_err().contains("cannot reach"));

    fs::set_permissions(&known, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(
        ask(&bench, known.clone())
            .unwrap_err()
            .contains("chmod 600")
    );
    fs::set_permissions(&known, fs::Permissions::from_mode(0o600)).unwrap();
    bench.tokens().revoke(&made.token.id).unwrap();
    assert!(ask(&bench, known).unwrap_err().contains("revoked"));
    // Tokens go on beside it.
    assert_eq!(
        bench
            .remote(&bench.token(&[Role::Admin]))
            .vaults()
            .unwrap()
            .len(),
        1
    );
}

/// A server that was killed at its first start left an empty certificate, and no later start could read it.
#[test]
fn a_first_start_that_was_killed_keeps_no_later_one_from_serving() {
    let mut bench = Bench::stopped();
    bench.start();
    bench.stop();
    for name in ["server.pem", "server.key"] {
        for left in [None, Some("")] {
            let path = bench.path("state").join(name);
            fs::remove_file(&path).unwrap();
            if let Some(left) = left {
                fs::write(&path, left).unwrap();
            }
            fs::write(bench.path("state").join(format!("{name}.tmp")), "half").unwrap();
            bench.start();
            assert_eq!(bench.ask("GET", "/healthz", None).0, 200);
            bench.stop();
        }
    }
    let left = fs::read_dir(bench.path("state")).unwrap();
    let names = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|name| name.ends_with(".tmp")));
}
