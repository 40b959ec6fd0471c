//! From options to how disks are served.
//!
//! Rule: a port that other machines can reach gives away whole disks to whoever connects; without
//! TLS that takes a word of its own (`--insecure-plaintext`).

use std::net::IpAddr;

use agent::{Error, Result};
use export::{CertificateFiles, Listen, ServerOptions, TlsConfig, TlsPolicy};

use crate::args::{Tls, TlsChoice};

/// How to serve on `listen` with the options of `tls`.
pub(crate) fn server_options(tls: &Tls, listen: &[Listen]) -> Result<ServerOptions> {
    let policy = policy(tls)?;
    if let Some(address) = listen.iter().find_map(reachable)
        && !matches!(policy, TlsPolicy::Required(_))
        && !tls.insecure_plaintext
    {
        return Err(usage(
            format!(
                "without required TLS, whoever reaches {address} could read and write the disks"
            ),
            "give keys (--tls-cert and --tls-key, or --tls-psk-file), listen on a Unix socket or \
             127.0.0.1, or say --insecure-plaintext",
        ));
    }
    Ok(ServerOptions {
        tls: policy,
        ..ServerOptions::default()
    })
}

fn policy(tls: &Tls) -> Result<TlsPolicy> {
    let config = match (&tls.tls_cert, &tls.tls_key, &tls.tls_psk_file) {
        (Some(certificate), Some(key), _) => TlsConfig::certificates(&CertificateFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            client_authority: tls.tls_client_ca.clone(),
        }),
        (_, _, Some(keys)) => TlsConfig::psk(keys),
        _ if tls.tls.is_some() => {
            return Err(usage(
                "--tls needs keys".to_owned(),
                "give --tls-cert and --tls-key, or --tls-psk-file",
            ));
        }
        _ => return Ok(TlsPolicy::Off),
    };
    let config = config.map_err(|error| {
        usage(
            format!("TLS cannot be set up: {}", agent::chain(&error)),
            "certificates and keys are PEM files; pre-shared keys are lines USER:HEXKEY",
        )
    })?;
    Ok(match tls.tls {
        Some(TlsChoice::Offered) => TlsPolicy::Offered(config),
        Some(TlsChoice::Required) | None => TlsPolicy::Required(config),
    })
}

/// The address, if machines other than this one may reach it.
fn reachable(listen: &Listen) -> Option<String> {
    match listen {
        // Who passes sockets has decided where they listen.
        Listen::Unix(_) | Listen::Activated => None,
        Listen::Tcp(address) => {
            let host = address.rsplit_once(':').map_or("", |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let local = host == "localhost"
                || host
                    .parse()
                    .is_ok_and(|address: IpAddr| address.is_loopback());
            (!local).then(|| address.clone())
        }
    }
}

fn usage(what: String, hint: &'static str) -> Error {
    Error::Usage { what, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_is_served_in_the_open() {
        let open = |listen: &str| server_options(&Tls::default(), &[listen.parse().expect(listen)]);
        for local in [
            "unix:/x",
            "tcp:127.0.0.1:1",
            "tcp:[::1]:1",
            "tcp:localhost:1",
            "activation",
        ] {
            assert!(open(local).is_ok(), "{local}");
        }
        for reachable in [
            "tcp:0.0.0.0:1",
            "tcp::1",
            "tcp:[::]:1",
            "tcp:example.org:1",
            "tcp:10.0.0.1:1",
        ] {
            let error = open(reachable).err().expect(reachable);
            assert_eq!(error.kind(), agent::Kind::Usage);
        }
        let insecure = Tls {
            insecure_plaintext: true,
            ..Tls::default()
        };
        assert!(server_options(&insecure, &["tcp:0.0.0.0:1".parse().expect("an address")]).is_ok());
    }
}
