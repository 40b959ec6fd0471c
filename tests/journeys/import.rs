//! Disk images become points: from files, and from whatever another NBD server can read.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tests::process::{self, Beside};
use tests::protect::How;
use tests::served::Served;
use tests::time::wait_for;
use tests::{Bench, Protect, image, standin};

use crate::places::{LIMIT, MIB, Mount};

const SIZE: u64 = 96 * MIB;

fn import(bench: &Bench, images: &[&str], group: &str) -> Result<serde_json::Value> {
    let target = bench.target();
    let mut args = vec!["import"];
    args.extend(images);
    args.extend(["--target", &target, "--group", group]);
    standin::json(args)
}

/// `qemu-nbd` over an image of any format; its URL.
fn qemu_nbd(bench: &Bench, path: &Path, format: &str) -> Result<(Beside, String)> {
    let socket = bench.path("qemu.sock");
    let mut server = process::command("qemu-nbd");
    server.args([
        "--persistent",
        "--read-only",
        "--export-name=disk",
        "--format",
        format,
    ]);
    server.arg("--socket").arg(&socket).arg(path);
    let server = Beside::start(&mut server, &bench.path("qemu.log"))?;
    wait_for("qemu-nbd", LIMIT, || Ok(socket.exists().then_some(())))?;
    Ok((
        server,
        format!("nbd+unix:///disk?socket={}", socket.display()),
    ))
}

/// An image with data here and there, and holes that do not end where granules do.
fn scattered(bench: &Bench, name: &str) -> Result<std::path::PathBuf> {
    let path = bench.path(name);
    image::sparse(&path, SIZE)?;
    for (offset, len) in [
        (0, MIB),
        (9 * MIB + 512, 5000),
        (40 * MIB, 7 * MIB),
        (SIZE - 4608, 4608),
    ] {
        image::scribble(&path, offset, len, bench.seed ^ offset)?;
    }
    Ok(path)
}

#[test]
fn import_takes_an_image_whole_and_then_what_changed() -> Result<()> {
    let bench = Bench::new()?;
    let path = scattered(&bench, "disk.raw")?;
    let text = bench.text("disk.raw");
    let first = import(&bench, &[&text], "vm")?;
    ensure!(
        first["point"] == "vm@1" && first["base"].is_null(),
        "{first}"
    );
    bench.compare("vm@1", None, &path)?;

    image::scribble(&path, 41 * MIB, 20_000, 7)?;
    // What was data is a hole now, from within a granule to within another.
    let hole = "fallocate -p -o $((43*1048576+512)) -l 2000000 disk.raw";
    process::sh(bench.dir(), hole, LIMIT)?;
    let second = import(&bench, &[&text], "vm")?;
    ensure!(second["base"] == "vm@1", "{second}");
    let stored = second["stored_bytes"].as_u64().context("a number")?;
    ensure!(stored < MIB, "20 kB of changes took {stored} bytes");
    bench.compare("vm@2", None, &path)?;
    standin::run(["point", "verify", "--all", "--target", &bench.target()])?;

    // Another size is another disk.
    process::sh(bench.dir(), "truncate -s +1M disk.raw", LIMIT)?;
    let third = import(&bench, &[&text], "vm")?;
    ensure!(third["base"].is_null(), "{third}");
    bench.compare("vm@3", None, &path)
}

#[test]
fn import_reads_what_qemu_can_read() -> Result<()> {
    let bench = Bench::new()?;
    let raw = scattered(&bench, "raw.raw")?;
    for format in ["qcow2", "vmdk", "vhdx"] {
        let line = format!("qemu-img convert -f raw -O {format} raw.raw disk.{format}");
        process::sh(bench.dir(), &line, LIMIT)?;
        let image = bench.path(&format!("disk.{format}"));
        let (mut server, url) = qemu_nbd(&bench, &image, format)?;
        let imported = import(&bench, &[&url], format)?;
        ensure!(imported["size"].as_u64() == Some(SIZE), "{imported}");
        server.kill9()?;
        std::fs::remove_file(bench.path("qemu.sock"))?;
        bench.compare(&format!("{format}@1"), Some("disk"), &raw)?;
    }
    Ok(())
}

/// A point that is served is an image like any other; and a server without holes is read as well.
#[test]
fn import_reads_a_served_point_and_a_server_that_knows_no_holes() -> Result<()> {
    let bench = Bench::new()?;
    let path = scattered(&bench, "disk.raw")?;
    import(&bench, &[&bench.text("disk.raw")], "vm")?;
    let served = Served::start(&bench, "vm@1", &[])?;
    let tests::nbd::Address::Unix(socket) = &served.address else {
        anyhow::bail!("a socket");
    };
    // One writer: the copy goes elsewhere.
    let mut other = Bench::new()?;
    other.set_target(&format!("dir:{}", bench.text("other")));
    let url = format!("nbd+unix:///disk?socket={}", socket.display());
    import(&other, &[&url], "copy")?;
    other.compare("copy@1", None, &path)?;
    served.stop()?;

    let mut nbdkit = process::command("nbdkit");
    let port = match tests::nbd::Address::free_port()? {
        tests::nbd::Address::Tcp(address) => {
            address.rsplit(':').next().unwrap_or_default().to_owned()
        }
        tests::nbd::Address::Unix(_) => anyhow::bail!("a port"),
    };
    nbdkit.args([
        "-f",
        "-r",
        "--no-sr",
        "-i",
        "127.0.0.1",
        "-p",
        &port,
        "-e",
        "disk",
        "file",
    ]);
    nbdkit.arg(&path);
    let _nbdkit = Beside::start(&mut nbdkit, &bench.path("nbdkit.log"))?;
    let url = format!("nbd://127.0.0.1:{port}/disk");
    wait_for("nbdkit", LIMIT, || {
        Ok(std::net::TcpStream::connect(format!("127.0.0.1:{port}"))
            .ok()
            .map(drop))
    })?;
    let again = import(&other, &[&url], "copy")?;
    ensure!(again["base"] == "copy@1", "{again}");
    other.compare("copy@2", None, &path)
}

#[test]
fn import_refuses_what_it_cannot_take() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, _) = bench.stamped_disk("disk", 8 * MIB)?;
    let (target, text) = (bench.target(), bench.text("disk.raw"));
    let protect = Protect::start(&bench, &How::new(&bench, &[&disk]))?;
    protect.cut()?;
    let args = |image: &'static str, group: &'static str| {
        ["import", image, "--target", &target, "--group", group].map(str::to_owned)
    };
    let mut in_use = args("", "x");
    in_use[1] = text.clone();
    standin::refuse(&in_use, 1, &["in use"])?;
    protect.stop()?;
    // A cut by the clock is one more where a multiple of its interval fell into this.
    let before = bench.points()?;
    let mut of_protection = in_use.clone();
    of_protection[5] = "g".into();
    standin::refuse(&of_protection, 2, &["come from a protection", "--group"])?;
    standin::refuse(
        args("nbd://127.0.0.1:1/disk", "x"),
        1,
        &["cannot reach the nbd server"],
    )?;
    standin::refuse(args("nbd:nonsense", "x"), 2, &["names no nbd export"])?;
    standin::refuse(args("/no/such/image.raw", "x"), 1, &["image.raw"])?;
    let (_server, url) = qemu_nbd(&bench, &disk, "raw")?;
    let mut unknown = in_use.clone();
    unknown[1] = url.replace("///disk", "///other");
    standin::refuse(&unknown, 1, &["refuses"])?;
    let points = bench.points()?;
    ensure!(points == before, "a point was made: {points:#?}");
    Ok(())
}

/// A restore writes past the page cache, which a `ramfs` has no way to do; and a disk whose end is no page's, which none has.
#[test]
fn import_comes_back_wherever_the_page_cache_can_be_passed_or_not() -> Result<()> {
    let bench = Bench::new()?;
    let disk = scattered(&bench, "disk.raw")?;
    let odd = bench.path("odd.raw");
    image::sparse(&odd, 5 * MIB + 512)?;
    image::scribble(&odd, 2 * MIB + 512, 3 * MIB, bench.seed)?;
    let cached = Mount::ramfs(bench.path("cached"))?;
    for (group, disk) in [("disk", &disk), ("odd", &odd)] {
        import(&bench, &[&disk.display().to_string()], group)?;
        for dir in [bench.dir(), cached.at()] {
            let raw = dir.join(format!("{group}-back.raw"));
            let vmdk = dir.join(format!("{group}-back.vmdk"));
            restore(&bench, group, &raw, "raw")?;
            restore(&bench, group, &vmdk, "vmdk")?;
            let flat = dir.join(format!("{group}-back-flat.vmdk"));
            for back in [raw, flat] {
                ensure!(
                    image::difference(disk, &back)?.is_none(),
                    "{} is another disk",
                    back.display()
                );
            }
        }
    }
    Ok(())
}

fn restore(bench: &Bench, group: &str, to: &Path, format: &str) -> Result<String> {
    let (point, to) = (format!("{group}@latest"), to.display().to_string());
    let target = bench.target();
    let args = ["restore", &point, "--target", &target, "--output", &to];
    standin::run(args.iter().chain(&["--format", format]))
}
