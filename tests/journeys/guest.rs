//! A real Linux kernel on a protected disk: what it had fsynced before the cut is in the point, the
//! file system recovers, and the guest boots again from the point itself.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::guest::{Guest, lab};
use tests::nbd::Address;
use tests::protect::How;
use tests::served::Served;
use tests::{Bench, Protect, process};

/// Emulation on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(300);
/// Markers that must be down before the cut.
const MARKERS: u64 = 25;

/// The first virtio disk of a guest, through QEMU's NBD client.
fn drive(address: &Address, export: &str) -> Result<String> {
    let Address::Unix(path) = address else {
        anyhow::bail!("a Unix socket")
    };
    let socket = path.display();
    Ok(format!(
        "file=nbd+unix:///{export}?socket={socket},format=raw,if=virtio,discard=unmap"
    ))
}

/// The file system in `disk` is whole after it has replayed its journal. Mends `disk`.
fn fsck(bench: &Bench, fs: &str, disk: &Path) -> Result<()> {
    let disk = disk.display();
    let line = match fs {
        // 1 is "corrected": the replay of the journal; anything else to correct shows in the second.
        "ext4" => format!("e2fsck -p {disk} || [ $? = 1 ]; e2fsck -f -n {disk}"),
        "xfs" => format!(
            "mkdir -p fsck; mount -o loop,nouuid {disk} fsck; umount fsck; xfs_repair -n {disk}"
        ),
        _ => unreachable!("two file systems"),
    };
    process::sh(bench.dir(), &line, PATIENCE)
        .map(drop)
        .context("the file system is damaged")
}

/// Root on a protected disk, cut while it works; checked, and booted again from the point.
fn root_disk(fs: &str) -> Result<()> {
    let bench = Bench::new()?;
    let disk = bench.path("root.raw");
    let make = format!("bash {}/rootdisk.sh root.raw {fs} 512M", lab().display());
    process::sh(bench.dir(), &make, PATIENCE)?;
    let protect = Protect::start(&bench, &How::new(&bench, &[&disk]).every("2s"))?;
    let mut guest = Guest::boot(fs, "work", &["-drive", &drive(&protect.address, "root")?])?;
    guest.wait_line(&format!("marker {MARKERS}"), PATIENCE)?;
    let fsynced = guest.highest("marker ").context("there are markers")?;
    let point = protect.cut()?;
    guest.wait_line(&format!("marker {}", fsynced + 5), PATIENCE)?;
    drop(guest);
    protect.stop()?;

    let restored = bench.restore(&point, None)?;
    fsck(&bench, fs, &restored)?;
    // Each point of the schedule recovers as well, not only the one that was asked for.
    let newest = bench.restore("g@latest", None)?;
    fsck(&bench, fs, &newest)?;

    let served = Served::start(&bench, &point, &["--writable"])?;
    let check = format!("check:{fsynced}");
    let again = Guest::boot(fs, &check, &["-drive", &drive(&served.address, "root")?])?;
    let said = again.finish(PATIENCE)?;
    let holds = said.iter().find(|line| line.starts_with("holds "));
    eprintln!("{fs}: {fsynced} markers fsynced before the cut; the point {holds:?}");
    ensure!(holds.is_some(), "{said:?}");
    served.stop()?;
    // The overlay is thrown away: the point is what it was.
    let target = bench.target();
    tests::standin::run(["point", "verify", &point, "--target", &target])?;
    Ok(())
}

#[test]
fn guest_with_root_on_ext4_through_qemus_nbd_client() -> Result<()> {
    root_disk("ext4")
}

#[test]
fn guest_with_root_on_xfs_through_qemus_nbd_client() -> Result<()> {
    root_disk("xfs")
}

/// Bash that attaches exports `ext` and `xfs` of the server at the host's loopback.
fn attach(address: &Address) -> Result<String> {
    let Address::Tcp(address) = address else {
        anyhow::bail!("a TCP port")
    };
    let port = address.rsplit(':').next().context("a port")?;
    Ok(format!(
        "set -eu\nmodprobe nbd; modprobe ext4; modprobe xfs\n\
         nbd-client 10.0.2.2 {port} /dev/nbd0 -N ext -C 4 >/dev/null\n\
         nbd-client 10.0.2.2 {port} /dev/nbd1 -N xfs -C 4 >/dev/null\n\
         mkdir -p /mnt/ext /mnt/xfs\n"
    ))
}

/// Both file systems at work at once, each behind the kernel's own client with four connections.
fn work_script(attach: &str, fsx: &str, seed: u64) -> String {
    format!(
        "{attach}\
         mkfs.ext4 -q -F /dev/nbd0; mkfs.xfs -q -f /dev/nbd1\n\
         mount /dev/nbd0 /mnt/ext; mount /dev/nbd1 /mnt/xfs\n\
         for fs in ext xfs; do\n\
           mkdir /mnt/$fs/data /mnt/$fs/load\n\
           (cd /mnt/$fs && {fsx} -q -N 1500 -S {seed} /mnt/$fs/fsx) && echo \"fsx $fs ok\" || exit 1\n\
         done\n\
         for fs in ext xfs; do\n\
           JOB=work DATA=/mnt/$fs/data LOAD=/mnt/$fs/load FILES=/usr/share/perl5 bash {job} |\n\
             sed -u \"s/^marker/marker $fs/\" &\n\
         done\n\
         wait\n",
        job = lab().join("job.sh").display()
    )
}

fn check_script(attach: &str, markers: [u64; 2]) -> String {
    let [ext, xfs] = markers;
    format!(
        "{attach}\
         mount /dev/nbd0 /mnt/ext; mount /dev/nbd1 /mnt/xfs\n\
         for fs in ext:{ext} xfs:{xfs}; do\n\
           JOB=check:${{fs#*:}} DATA=/mnt/${{fs%:*}}/data bash {job} || exit 1\n\
         done\n\
         umount /mnt/ext /mnt/xfs\n\
         nbd-client -d /dev/nbd0; nbd-client -d /dev/nbd1\n",
        job = lab().join("job.sh").display()
    )
}

#[test]
fn guest_with_ext4_and_xfs_through_the_kernels_nbd_with_four_connections() -> Result<()> {
    let bench = Bench::new()?;
    let (ext, _) = bench.empty_disk("ext", 512 << 20)?;
    let (xfs, _) = bench.empty_disk("xfs", 512 << 20)?;
    let protect = Protect::start(&bench, &How::new(&bench, &[&ext, &xfs]).every("2s").tcp()?)?;
    let fsx = process::sh(bench.dir(), "command -v fsx", PATIENCE)?;
    let script = bench.path("work.sh");
    std::fs::write(
        &script,
        work_script(
            &attach(&protect.address)?,
            fsx.trim(),
            bench.seed % 1_000_000,
        ),
    )?;
    let mut guest = Guest::run(&script, &[])?;
    guest.wait_line("fsx ext ok", PATIENCE)?;
    guest.wait_line("fsx xfs ok", PATIENCE)?;
    guest.wait_line(&format!("marker ext {MARKERS}"), PATIENCE)?;
    guest.wait_line(&format!("marker xfs {MARKERS}"), PATIENCE)?;
    let fsynced = ["marker ext ", "marker xfs "].map(|start| guest.highest(start).unwrap_or(0));
    let point = protect.cut()?;
    guest.wait_line(&format!("marker ext {}", fsynced[0] + 5), PATIENCE)?;
    drop(guest);
    protect.stop()?;

    fsck(&bench, "ext4", &bench.restore(&point, Some("ext"))?)?;
    fsck(&bench, "xfs", &bench.restore(&point, Some("xfs"))?)?;

    let served = Served::start_tcp(&bench, &point, &["--writable"])?;
    let script = bench.path("check.sh");
    std::fs::write(&script, check_script(&attach(&served.address)?, fsynced))?;
    let said = Guest::run(&script, &[])?.finish(PATIENCE)?;
    let holds: Vec<_> = said
        .iter()
        .filter(|line| line.starts_with("holds "))
        .collect();
    eprintln!("fsynced before the cut: {fsynced:?}; the point {holds:?}");
    ensure!(holds.len() == 2, "{said:?}");
    served.stop()
}
