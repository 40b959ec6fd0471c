//! Points behind a server, over TLS: shipped with one token, restored with another, and nothing lost when the server dies.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use block::{Clock as _, Name, SystemClock};
use dd_target::client::{Access, RemotePoint, Vault};
use store::Base;
use tests::nbd::Address;
use tests::process::{self, Beside};
use tests::protect::How;
use tests::time::wait_for;
use tests::{Bench, Ledger, Load, Protect, Shape, Window, image, standin};

use crate::places::{LIMIT, MIB};

const DISK: u64 = 48 * MIB;

/// A server with a vault `v`, and the tokens of its users.
pub(crate) struct Wire {
    pub(crate) bench: Bench,
    address: String,
    server: Beside,
}

impl Wire {
    pub(crate) fn start() -> Result<Self> {
        let mut bench = Bench::new()?;
        let Address::Tcp(address) = Address::free_port()? else {
            unreachable!("a port was asked for");
        };
        bench.set_target(&format!("https://{address}/v"));
        let server = serve(&bench, &address)?;
        let wire = Self {
            bench,
            address,
            server,
        };
        for (role, more) in [
            ("admin", &[][..]),
            ("retention", &["--vault", "v"]),
            ("restore", &["--vault", "v"]),
            ("ship", &["--vault", "v", "--group", "g"]),
        ] {
            wire.make_token(role, &[role], more)?;
        }
        wire.show("admin");
        let url = wire.url();
        standin::run(["vault", "create", "v", "--server", &url])?;
        Ok(wire)
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A file of that name with a token of these roles.
    pub(crate) fn make_token(&self, name: &str, roles: &[&str], more: &[&str]) -> Result<()> {
        let state = self.bench.text("server");
        let mut args = vec!["token", "create", "--state", &state, "--name", name];
        args.extend(roles.iter().flat_map(|role| ["--role", role]));
        args.extend(more);
        write_private(&self.bench.path(name), &standin::run(args)?)
    }

    /// What commands show from here on.
    pub(crate) fn show(&self, role: &str) {
        let shown = |name: &str, file: &str| (name.to_owned(), self.bench.text(file));
        standin::set_environment(vec![
            shown("STANDIN_TOKEN_FILE", role),
            shown("STANDIN_CA", "server/server.pem"),
        ]);
    }

    /// Lists a point of the group's next cut, as whoever has stolen the ship token can: the newest one, with nonsense in it.
    fn forge(&self) -> Result<()> {
        let access = Access {
            token: Some(self.bench.path("ship")),
            certificate: None,
            authorities: Some(self.bench.path("server/server.pem")),
        };
        let vault = Vault::open(&self.bench.target().parse()?, &access)?;
        let group: Name = "g".parse()?;
        let newest = vault.points(&group, None)?;
        let newest = newest.first().context("there is a point")?;
        let disk = &newest.disks[0];
        let mut image = vault.image_writer(Base::Image(disk.image.clone()))?;
        image.put(0, &vec![0xbb; usize::try_from(DISK / 2)?])?;
        vault.commit_point(&RemotePoint {
            group: &group,
            disks: &[(disk.name.clone(), image.finish()?)],
            at: SystemClock::new().wall(),
            lineage: newest.lineage,
            generation: newest.generation + 1,
            labels: &newest.labels,
            consistency: newest.consistency,
        })?;
        Ok(())
    }

    /// Writes to the disk `disk`; some of it has been answered.
    fn load(&self, protect: &Protect, ledger: &Arc<Ledger>) -> Result<Load> {
        let shape = Shape::mixed(0..image::sectors(DISK));
        let load = Load::start(&protect.address, "disk", ledger, &shape, self.bench.seed);
        load.wait_acked(200)?;
        Ok(load)
    }

    fn restart(&mut self) -> Result<()> {
        self.server = self.serve()?;
        Ok(())
    }

    /// One more server of the place, on the same address; the last one is gone.
    pub(crate) fn serve(&self) -> Result<Beside> {
        serve(&self.bench, &self.address)
    }

    /// Its server, started anew, for who will kill it.
    pub(crate) fn take_server(&mut self) -> Result<Beside> {
        self.server.kill9()?;
        self.serve()
    }
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut private = fs::OpenOptions::new();
    private.create(true).write(true).mode(0o600);
    Ok(private.open(path)?.write_all(text.as_bytes())?)
}

fn serve(bench: &Bench, address: &str) -> Result<Beside> {
    let store = format!("dir:{}", bench.text("place"));
    let state = bench.text("server");
    let mut command = standin::command([
        "target", "serve", "--store", &store, "--listen", address, "--state", &state,
    ]);
    let server = Beside::start(&mut command, &bench.path("server.log"))?;
    wait_for("the target to serve", LIMIT, || {
        Ok(TcpStream::connect(address).ok().map(drop))
    })
    .with_context(|| server.log())?;
    Ok(server)
}

#[test]
fn wire_a_disk_is_protected_over_tls_and_outlives_a_kill_of_the_server() -> Result<()> {
    let mut wire = Wire::start()?;
    let (disk, ledger) = wire.bench.stamped_disk("disk", DISK)?;
    wire.show("ship");
    let how = How::new(&wire.bench, &[&disk]);
    let protect = Protect::start(&wire.bench, &how)?;
    protect.cut()?;
    let load = wire.load(&protect, &ledger)?;
    let (before, window_before) = protect.cut_beside(&ledger)?;
    wire.server.kill9()?;
    load.wait_acked(400)?;
    wire.restart()?;
    let (after, window_after) = protect.cut_beside(&ledger)?;
    load.stop()?;
    protect.stop()?;

    let target = wire.bench.target();
    let output = wire.bench.text("stolen.raw");
    // Who may add points may not read, nor remove.
    standin::refuse(
        ["restore", &before, "--target", &target, "--output", &output],
        1,
        &["role"],
    )?;
    wire.show("restore");
    wire.bench.check_point(&before, &ledger, window_before)?;
    wire.bench.check_point(&after, &ledger, window_after)?;
    standin::run(["point", "verify", "--all", "--target", &target])?;
    standin::refuse(
        ["point", "delete", &before, "--target", &target],
        2,
        &["role"],
    )?;
    standin::refuse(["store", "gc", &target], 2, &["role"])?;
    wire.show("retention");
    standin::run(["point", "delete", &before, "--target", &target])?;
    wire.show("admin");
    standin::json(["store", "gc", &target, "--dry-run"])?;
    let shown = standin::json(["vault", "show", "v", "--server", &wire.url()])?;
    ensure!(shown["groups"][0]["group"] == "g", "{shown}");
    let log = fs::read_to_string(wire.bench.path("server/audit.log"))?;
    ensure!(
        log.contains("\"refused\"") && log.contains("\"chore\""),
        "{log}"
    );
    Ok(())
}

/// A thief of the ship token lists a point of the cut that comes next. The protection took it for its own, removed
/// the diffs of that cut, and laid all later points over nonsense.
#[test]
fn wire_nothing_is_built_on_what_a_thief_of_the_token_lists() -> Result<()> {
    let wire = Wire::start()?;
    let (disk, ledger) = wire.bench.stamped_disk("disk", DISK)?;
    wire.show("ship");
    let how = How::new(&wire.bench, &[&disk]);
    let mut protect = Protect::start(&wire.bench, &how)?;
    protect.cut()?;
    let load = wire.load(&protect, &ledger)?;
    wire.forge()?;
    let (after, window) = next_point(&wire.bench, &ledger)?;
    load.stop()?;
    let gaps = protect.gaps()?.to_string();
    ensure!(gaps.contains("foreign-point"), "{gaps}");
    let image_reads = |protect: &Protect| {
        let status = protect.status()?;
        status["seed"]["read_bytes"].as_u64().context("a number")
    };

    // Its own points are known again, whatever ends the process.
    protect.kill9()?;
    protect = Protect::start(&wire.bench, &how)?;
    protect.cut()?;
    ensure!(image_reads(&protect)? == 0, "the disk was copied anew");
    protect.stop()?;
    // What is listed while nobody protects is no more believed.
    wire.forge()?;
    protect = Protect::start(&wire.bench, &how)?;
    let (last, last_window) = next_point(&wire.bench, &ledger)?;
    protect.stop()?;
    wire.show("restore");
    wire.bench.check_point(&after, &ledger, window)?;
    wire.bench.check_point(&last, &ledger, last_window)?;
    Ok(())
}

/// The next cut that becomes a point: the one that the forged point was to replace does not.
fn next_point(bench: &Bench, ledger: &Ledger) -> Result<(String, Window)> {
    wait_for("a point after the forged one", LIMIT, || {
        let asked = ledger.tick();
        let said = standin::say(["cut", "g", "--state", &bench.state(), "--wait"])?;
        let id = said.out.split_whitespace().last().map(str::to_owned);
        let answered = ledger.tick();
        let window = Window { asked, answered };
        Ok(id.filter(|_| said.status.success()).map(|id| (id, window)))
    })
}

#[test]
fn wire_an_imported_image_restores_byte_for_byte_and_changes_cost_what_changed() -> Result<()> {
    let wire = Wire::start()?;
    let path = wire.bench.path("disk.raw");
    image::sparse(&path, DISK)?;
    image::scribble(&path, 0, 9 * MIB, wire.bench.seed)?;
    image::scribble(&path, 30 * MIB + 512, 5_000, 3)?;
    let (text, target) = (wire.bench.text("disk.raw"), wire.bench.target());
    let import = ["import", &text, "--target", &target, "--group", "g"];
    wire.show("ship");
    let first = standin::json(import)?;
    ensure!(first["point"] == "g@1", "{first}");
    image::scribble(&path, 2 * MIB, 20_000, 7)?;
    let second = standin::json(import)?;
    ensure!(second["base"] == "g@1", "{second}");
    let stored = second["stored_bytes"].as_u64().context("a number")?;
    ensure!(stored < MIB, "20 kB of changes took {stored} bytes");
    wire.show("restore");
    wire.bench.compare("g@2", None, &path)?;
    Ok(())
}

#[test]
fn wire_a_vault_takes_the_points_of_another_target() -> Result<()> {
    let mut wire = Wire::start()?;
    let vault = wire.bench.target();
    let path = wire.bench.path("disk.raw");
    image::sparse(&path, DISK)?;
    image::scribble(&path, 0, 9 * MIB, wire.bench.seed)?;
    let near = format!("dir:{}", wire.bench.text("near"));
    let text = wire.bench.text("disk.raw");
    let import = ["import", &text, "--target", &near, "--group", "g"];
    standin::run(import)?;
    image::scribble(&path, 20 * MIB, 300_000, 5)?;
    standin::run(import)?;

    wire.show("ship");
    let dry = standin::json(["replicate", &near, &vault, "--dry-run"])?;
    ensure!(
        dry["would_copy"] == serde_json::json!(["g@1", "g@2"]),
        "{dry}"
    );
    let copied = standin::json(["replicate", &near, &vault])?;
    ensure!(copied["points"] == dry["would_copy"], "{copied}");
    let again = standin::json(["replicate", &near, &vault])?;
    ensure!(again["copied_bytes"] == 0, "{again}");
    wire.show("restore");
    standin::refuse(["replicate", &near, &vault, "--dry-run"], 2, &["role"])?;
    wire.bench.compare("g@2", None, &path)?;
    standin::run(["point", "verify", "--all", "--target", &vault])?;
    // Where something is lost of the near one, the vault has it.
    let near_containers = wire.bench.path("near/containers");
    process::sh(&near_containers, "find . -type f -delete", LIMIT)?;
    standin::run(["store", "repair", &near, "--from", &vault, "--apply"])?;
    wire.bench.set_target(&near);
    wire.bench.compare("g@2", None, &path)?;
    Ok(())
}

/// The key of a vault is made by an admin's machine, and the server never has it; a twin on the same server has the same.
#[test]
fn wire_an_encrypted_vault_is_made_over_the_network() -> Result<()> {
    let mut wire = Wire::start()?;
    let url = wire.url();
    let [sealed, twin] = ["sealed", "twin"].map(|vault| format!("{url}/{vault}"));
    let (disk, key) = (wire.bench.text("disk.raw"), wire.bench.text("vault.key"));
    let create = |name, more: &[&str]| {
        let args = ["vault", "create", name, "--server", &url];
        standin::json(args.iter().chain(more))
    };
    standin::refuse(
        ["vault", "create", "x", "--server", &url, "--encrypt"],
        2,
        &["--key-file"],
    )?;
    let made = create("sealed", &["--encrypt", "--key-file", &key])?;
    ensure!(made["encrypted"] == true, "{made}");
    let recovery = made["recovery_key"].as_str().context("a recovery key")?;
    write_private(&wire.bench.path("recovery"), recovery)?;
    let shown = standin::json(["vault", "show", "sealed", "--server", &url])?;
    ensure!(shown["encrypted"] == true, "{shown}");
    let unborn = wire.bench.text("unborn");
    standin::refuse(
        [
            "vault",
            "create",
            "sealed",
            "--server",
            &url,
            "--encrypt",
            "--key-file",
            &unborn,
        ],
        2,
        &["already"],
    )?;
    ensure!(!Path::new(&unborn).exists(), "a key that opens nothing");
    let made = create("twin", &["--like", &sealed])?;
    ensure!(made["recovery_key"].is_null(), "{made}");

    let path = wire.bench.path("disk.raw");
    image::sparse(&path, DISK)?;
    image::scribble(&path, 0, 9 * MIB, wire.bench.seed)?;
    wire.make_token("both", &["ship", "restore"], &[])?;
    wire.show("both");
    let import = ["import", &disk, "--target", &sealed, "--group", "g"];
    standin::refuse(import, 1, &["--key-file"])?;
    standin::run(import.into_iter().chain(["--key-file", &key]))?;
    standin::run(["replicate", &sealed, &twin])?;

    // One way more is added by who has one; it is taken away where the store lies.
    wire.show("admin");
    write_private(&wire.bench.path("words"), "correct horse")?;
    let words = wire.bench.text("words");
    let add = [
        "store",
        "key",
        "add",
        &sealed,
        "--new-passphrase-file",
        &words,
    ];
    standin::refuse(add, 2, &["--key-file"])?;
    standin::run(add.into_iter().chain(["--key-file", &key]))?;
    let remove = ["store", "key", "remove", &sealed, "1", "--key-file", &key];
    standin::refuse(remove, 2, &["where its store lies"])?;

    for (target, with) in [
        (&sealed, ["STANDIN_PASSPHRASE_FILE", "words"]),
        (&twin, ["STANDIN_KEY_FILE", "recovery"]),
    ] {
        standin::set_environment(vec![
            ("STANDIN_TOKEN_FILE".into(), wire.bench.text("both")),
            ("STANDIN_CA".into(), wire.bench.text("server/server.pem")),
            (with[0].into(), wire.bench.text(with[1])),
        ]);
        wire.bench.set_target(target);
        wire.bench.compare("g@1", None, &path)?;
    }
    Ok(())
}

#[test]
fn wire_what_cannot_be_is_refused_with_a_word_on_what_to_do() -> Result<()> {
    let wire = Wire::start()?;
    let target = wire.bench.target();
    let list = ["point", "list", "--target", &target];
    let ca = (
        "STANDIN_CA".to_owned(),
        wire.bench.text("server/server.pem"),
    );
    standin::set_environment(vec![ca.clone()]);
    standin::refuse(list, 1, &["no token"])?;
    let open = wire.bench.text("open");
    fs::write(&open, "standin-x-y")?;
    standin::set_environment(vec![ca.clone(), ("STANDIN_TOKEN_FILE".into(), open)]);
    standin::refuse(list, 1, &["chmod 600"])?;
    standin::set_environment(vec![(
        "STANDIN_TOKEN_FILE".into(),
        wire.bench.text("restore"),
    )]);
    standin::refuse(list, 1, &["cannot reach", "certificate"])?;
    wire.show("restore");
    standin::run(list)?;
    let other = format!("{}/w", wire.url());
    standin::refuse(
        ["point", "list", "--target", &other],
        1,
        &["not for this vault"],
    )?;
    Ok(())
}
