//! `standin target serve`.

use agent::KeepOptions;
use anyhow::{Context, Result};
use dd_target::server::{Server, ServerOptions, TlsFiles};
use serde_json::json;

use crate::args::{TargetArgs, TargetCommand, TargetServe};
use crate::commands::world;
use crate::printer::Printer;
use crate::signals::Ending;

pub(crate) fn target(args: TargetArgs, printer: &Printer) -> Result<()> {
    match args.command {
        TargetCommand::Serve(args) => serve(*args, printer),
    }
}

fn serve(args: TargetServe, printer: &Printer) -> Result<()> {
    let mut ending = Ending::new().context("cannot wait for signals")?;
    let server = Server::start(ServerOptions {
        place: args.store.absolute(),
        listen: args.listen,
        state: args.state,
        tls: TlsFiles {
            own: args.tls_cert.zip(args.tls_key),
            client_authority: args.client_ca,
        },
        names: args.tls_name,
        keep: KeepOptions::default(),
        clock: world()?.clock,
    })?;
    let url = format!("https://{}", server.address());
    let own = server.own_certificate();
    let event = json!({
        "event": "listening",
        "url": url,
        "certificate_sha256": server.fingerprint(),
        "certificate": own,
    });
    printer.event(&event, || {
        let mut lines = vec![
            format!("listening on {url}"),
            format!("certificate SHA-256 {}", server.fingerprint()),
        ];
        if let Some(path) = own {
            lines.push(format!("clients need it: --ca {}", path.display()));
        }
        lines.join("\n")
    });
    ending.wait();
    server.close();
    printer.event(&json!({ "event": "stopped", "url": url }), || {
        "the target has ended".to_owned()
    });
    Ok(())
}
