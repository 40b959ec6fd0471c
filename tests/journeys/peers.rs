//! Clients that we did not write, on a protected disk, without complaint; afterwards the next point
//! equals production, whatever they did.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::guest::lab;
use tests::nbd::Address;
use tests::protect::How;
use tests::{Bench, Protect, image, process};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 128 * MIB;
const LIMIT: Duration = Duration::from_secs(200);

/// One protected disk `disk` of 128 MiB, a third of it data.
struct Peer {
    bench: Bench,
    protect: Protect,
}

impl Peer {
    fn new(more: &[&str]) -> Result<Self> {
        Self::on(Bench::new()?, more)
    }

    fn on(bench: Bench, more: &[&str]) -> Result<Self> {
        let disk = bench.path("disk.raw");
        image::sparse(&disk, SIZE)?;
        image::scribble(&disk, 8 * MIB, 40 * MIB, bench.seed)?;
        let protect = Protect::start(&bench, &How::new(&bench, &[&disk]).with(more))?;
        Ok(Self { bench, protect })
    }

    /// Runs `line` in the bench's directory with `$uri`, `$socket` and `$seed`; what it printed.
    fn says(&self, line: &str) -> Result<String> {
        let Address::Unix(socket) = &self.protect.address else {
            anyhow::bail!("a Unix socket")
        };
        let line = format!(
            // Debian's Python has libnbd; another one may come first in the path.
            "PATH=/usr/bin:$PATH; uri='{}'; socket='{}'; seed={}\n{line}",
            self.protect.address.uri("disk"),
            socket.display(),
            self.bench.seed % 1_000_000,
        );
        process::sh(self.bench.dir(), &line, LIMIT)
    }

    /// Cuts, compares with production, stops.
    fn finish(self) -> Result<()> {
        let point = self.protect.cut()?;
        self.bench
            .compare(&point, None, &self.bench.path("disk.raw"))?;
        self.protect.stop()
    }
}

/// A peer's whole story: it runs `line` and nothing more is asked.
fn runs(line: &str) -> Result<String> {
    let peer = Peer::new(&[])?;
    let said = peer.says(line)?;
    peer.finish()?;
    Ok(said)
}

#[test]
fn peers_nbd_probe_finds_everything_that_qemu_nbd_has() -> Result<()> {
    let probe = lab().join("nbd-probe.py");
    let said = runs(&format!("/usr/bin/python3 {} \"$uri\"", probe.display()))?;
    eprintln!("{said}");
    ensure!(!said.contains("FAIL") && !said.contains("other("), "{said}");
    let words: Vec<String> = said
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    for wanted in [
        "handshake newstyle-fixed",
        "NBD_OPT_INFO PASS",
        "NBD_OPT_GO PASS",
        "structured replies True",
        "can_flush True",
        "can_fua True",
        "can_trim True",
        "can_zero True",
        "can_fast_zero True",
        "can_cache True",
        "can_df True",
        "can_multi_conn True",
        "base:allocation True",
        "flush PASS",
        "write FUA PASS",
        "2nd conn sees write PASS",
        "64 writes in flight PASS",
        "unknown export refused PASS, then GO ok",
    ] {
        ensure!(
            words.iter().any(|line| line == wanted),
            "no line `{wanted}` in\n{said}"
        );
    }
    Ok(())
}

#[test]
fn peers_qemu_io() -> Result<()> {
    runs(
        "qemu-io -f raw -c 'write -P 0x5a 1M 3M' -c 'read -P 0x5a 1M 3M' -c 'write -f -P 1 512 512' \
         -c 'read -P 1 512 512' -c 'write -z 2M 1M' -c 'write -z -u 9M 65536' -c 'read -P 0 2M 1M' \
         -c 'read -P 0 9M 65536' -c 'discard 20M 4M' -c 'aio_write -P 7 30M 2M' \
         -c 'aio_write -P 8 33M 2M' -c aio_flush -c 'read -P 7 30M 2M' -c 'read -P 8 33M 2M' -c flush \
         \"$uri\"",
    )
    .map(drop)
}

#[test]
fn peers_qemu_img_convert_map_bench_compare() -> Result<()> {
    let said = runs(
        "qemu-img info \"$uri\"
         qemu-img map -f raw --output=json \"$uri\"
         qemu-img convert -f raw -O qcow2 \"$uri\" out.qcow2
         qemu-img compare -f raw -F qcow2 \"$uri\" out.qcow2
         qemu-img convert -f qcow2 -O raw -n -W -m 8 out.qcow2 \"$uri\"
         qemu-img compare -f raw -F qcow2 \"$uri\" out.qcow2
         qemu-img bench -f raw -w -c 3000 -d 32 -s 4096 -o 1M --pattern=66 \"$uri\"
         qemu-img bench -f raw -w -c 500 -d 8 -s 4096 -S 8192 --flush-interval=16 \"$uri\"
         qemu-img bench -f raw -c 3000 -d 32 -s 4096 \"$uri\"",
    )?;
    ensure!(
        said.contains("\"zero\": true"),
        "map shows no hole:\n{said}"
    );
    Ok(())
}

#[test]
fn peers_nbdinfo_and_nbdcopy() -> Result<()> {
    let said = runs(
        "nbdinfo \"$uri\"
         nbdinfo --json \"$uri\" | /usr/bin/python3 -c '
import json, sys
e = json.load(sys.stdin)[\"exports\"][0]
assert e[\"export-size\"] == 128 << 20, e
assert all(e[k] for k in (\"can_cache\", \"can_df\", \"can_fast_zero\", \"can_flush\", \"can_fua\",
    \"can_multi_conn\", \"can_trim\", \"can_zero\")), e
assert e[\"block_size_maximum\"] >= 32 << 20 and e[\"block_size_minimum\"] <= 512, e
'
         nbdinfo --list \"nbd+unix:///?socket=$socket\"
         nbdinfo --map \"$uri\"
         nbdinfo --map --totals \"$uri\"
         nbdcopy \"$uri\" copy.raw
         cmp copy.raw disk.raw
         truncate -s 128M other.raw
         dd if=/dev/urandom of=other.raw bs=1M count=50 seek=70 conv=notrunc status=none
         nbdcopy other.raw \"$uri\"
         nbdcopy \"$uri\" copy2.raw
         cmp copy2.raw other.raw",
    )?;
    ensure!(said.contains("hole"), "the map shows no hole:\n{said}");
    Ok(())
}

/// The blocks written since the last cut, as a stock client sees them.
#[test]
fn peers_dirty_bitmap_of_the_open_generation() -> Result<()> {
    let peer = Peer::new(&[])?;
    peer.protect.cut()?;
    let info = peer.says("nbdinfo --json \"$uri\"")?;
    let start = info
        .find("qemu:dirty-bitmap:")
        .with_context(|| format!("no bitmap in {info}"))?;
    let name: String = info[start..].chars().take_while(|c| *c != '"').collect();
    let map = |peer: &Peer| peer.says(&format!("nbdinfo --map='{name}' \"$uri\""));
    let clean = map(&peer)?;
    ensure!(
        clean.lines().count() == 1 && !clean.contains("dirty"),
        "just cut:\n{clean}"
    );
    peer.says(
        "qemu-io -f raw -c 'write 4M 8k' -c 'write 100M 512' -c 'write -z 50M 64k' \"$uri\"",
    )?;
    let dirty = map(&peer)?;
    let found: Vec<(u64, u64)> = dirty
        .lines()
        .filter(|line| line.contains("dirty"))
        .map(|line| {
            let mut words = line.split_whitespace().map(str::parse);
            Ok((
                words.next().context("offset")??,
                words.next().context("length")??,
            ))
        })
        .collect::<Result<_>>()?;
    ensure!(
        found == [(4 * MIB, 8192), (50 * MIB, 65536), (100 * MIB, 4096)],
        "{dirty}"
    );
    peer.protect.cut()?;
    let clean = map(&peer)?;
    ensure!(!clean.contains("dirty"), "cut again:\n{clean}");
    peer.finish()
}

#[test]
fn peers_nbdsh() -> Result<()> {
    runs(
        "nbdsh -u \"$uri\" -c '
for i in range(64):
    h.pwrite(bytes([i]) * 512, i * 1024)
h.zero(512, 1024)
h.trim(4096, 1 << 20)
h.flush()
for i in range(64):
    assert h.pread(512, i * 1024) == (bytes(512) if i == 1 else bytes([i]) * 512)
assert len(h.pread(32 << 20, 0)) == 32 << 20
h.pwrite(bytes(32 << 20), 64 << 20)
'",
    )
    .map(drop)
}

/// Load that checks what it reads.
const FIO: &str = "fio --name=verify --ioengine=nbd --uri=\"$uri\" --rw=randrw --bs=512-64k \
    --bsrange=512-64k --blockalign=512 --size=96m --io_size=96m --iodepth=16 --verify=crc32c \
    --verify_fatal=1 --verify_backlog=256 --fsync=64 --randseed=$seed --minimal --output=fio.log";

#[test]
fn peers_fio_with_verify() -> Result<()> {
    let peer = Peer::new(&[])?;
    peer.says(FIO)?;
    // Cut all the while: the load must not notice.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let cuts = std::thread::scope(|scope| -> Result<u32> {
        let cutting = scope.spawn(|| -> Result<u32> {
            let mut cuts = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                peer.protect.cut()?;
                cuts += 1;
            }
            Ok(cuts)
        });
        let said = peer.says(FIO);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let cuts = cutting.join().expect("it returns its errors");
        said?;
        cuts
    })?;
    ensure!(cuts > 0, "no cut fell into the load");
    peer.finish()
}

/// Keys for both kinds of TLS: `ca/` for clients, `server/`, `keys.psk`.
fn make_keys(bench: &Bench) -> Result<()> {
    let line = "umask 077; mkdir ca server
        certtool --generate-privkey --outfile ca.key 2>/dev/null
        printf 'cn = standin test CA\\nca\\ncert_signing_key\\nexpiration_days = 2\\n' >ca.info
        certtool --generate-self-signed --load-privkey ca.key --template ca.info --outfile ca/ca-cert.pem
        certtool --generate-privkey --outfile server/server-key.pem 2>/dev/null
        printf 'organization = standin\\ncn = localhost\\ndns_name = localhost\\nip_address = 127.0.0.1\\n\
    tls_www_server\\nencryption_key\\nsigning_key\\nexpiration_days = 2\\n' >server.info
        certtool --generate-certificate --load-ca-certificate ca/ca-cert.pem --load-ca-privkey ca.key \
    --load-privkey server/server-key.pem --template server.info --outfile server/server-cert.pem
        psktool -u standin -p keys.psk";
    process::sh(bench.dir(), line, LIMIT)
        .map(drop)
        .context("cannot make keys")
}

/// What every TLS client runs: `$nbds` for libnbd, `$object` and `$opts` for QEMU.
const UNDER_TLS: &str = "
    nbdinfo --json \"$nbds\" | grep -q '\"TLS\": true'
    nbdcopy \"$nbds\" copy.raw
    cmp copy.raw disk.raw
    qemu-img info --object \"$object\" --image-opts \"$opts\"
    qemu-img map --object \"$object\" --image-opts \"$opts\"
    qemu-img compare --object \"$object\" --image-opts \"$opts\" driver=file,filename=copy.raw
    qemu-io --object \"$object\" --image-opts \"$opts\" -c 'write -P 3 1M 5M' -c 'read -P 3 1M 5M' -c flush
    nbdsh -c 'h.set_uri_allow_local_file(True)' -c \"h.connect_uri('$nbds')\" -c '
assert h.get_tls_negotiated()
h.pwrite(bytes(range(256)) * 256, 77824)
assert h.pread(65536, 77824) == bytes(range(256)) * 256
assert len(h.pread(32 << 20, 0)) == 32 << 20
'
    # fio's own client knows no keys; nbdkit's does, and lends it.
    nbdkit -U - nbd socket=$socket export=disk tls=require $kit --run \"$fio\"
    # Without TLS nobody gets in, and the refusal is polite.
    if nbdinfo \"$uri\" >refused 2>&1; then echo 'let in without TLS'; exit 1; fi";

#[test]
fn peers_under_tls_with_certificates() -> Result<()> {
    let bench = Bench::new()?;
    make_keys(&bench)?;
    let (cert, key) = (
        bench.text("server/server-cert.pem"),
        bench.text("server/server-key.pem"),
    );
    let tls = ["--tls-cert", &cert, "--tls-key", &key, "--tls", "required"];
    let peer = Peer::on(bench, &tls)?;
    let fio = FIO.replace("$seed", "7");
    peer.says(&format!(
        "nbds=\"nbds+unix://localhost/disk?socket=$socket&tls-certificates=$PWD/ca&tls-hostname=localhost\"
         object=\"tls-creds-x509,id=tls0,dir=$PWD/ca,endpoint=client,verify-peer=on\"
         opts=\"driver=nbd,path=$socket,export=disk,tls-creds=tls0,tls-hostname=localhost\"
         fio='{fio}'; kit=\"tls-certificates=$PWD/ca\"
         {UNDER_TLS}"
    ))?;
    peer.finish()
}

#[test]
fn peers_under_tls_with_a_pre_shared_key() -> Result<()> {
    let bench = Bench::new()?;
    make_keys(&bench)?;
    let keys = bench.text("keys.psk");
    let peer = Peer::on(bench, &["--tls-psk-file", &keys, "--tls", "required"])?;
    let fio = FIO.replace("$seed", "7");
    peer.says(&format!(
        "nbds=\"nbds+unix://standin@localhost/disk?socket=$socket&tls-psk-file=$PWD/keys.psk\"
         mkdir psk; cp keys.psk psk/keys.psk
         object=\"tls-creds-psk,id=tls0,dir=$PWD/psk,endpoint=client,username=standin\"
         opts=\"driver=nbd,path=$socket,export=disk,tls-creds=tls0\"
         fio='{fio}'; kit=\"tls-psk=$PWD/keys.psk tls-username=standin\"
         {UNDER_TLS}
         sed 's/:.*/:00112233445566778899aabbccddeeff/' keys.psk >wrong.psk
         if nbdinfo \"nbds+unix://standin@localhost/disk?socket=$socket&tls-psk-file=$PWD/wrong.psk\" \
             >refused 2>&1; then echo 'let in with a wrong key'; exit 1; fi"
    ))?;
    peer.finish()
}

/// One plain and one TLS client on the same socket, where TLS is offered.
#[test]
fn peers_where_tls_is_offered_both_get_in() -> Result<()> {
    let bench = Bench::new()?;
    make_keys(&bench)?;
    let keys = bench.text("keys.psk");
    let peer = Peer::on(bench, &["--tls-psk-file", &keys, "--tls", "offered"])?;
    peer.says(
        "nbds=\"nbds+unix://standin@localhost/disk?socket=$socket&tls-psk-file=$PWD/keys.psk\"
         nbdinfo --json \"$nbds\" | grep -q '\"TLS\": true'
         nbdinfo --json \"$uri\" | grep -q '\"TLS\": false'",
    )?;
    peer.finish()
}

/// A point as a disk, for the same clients; read-only, and a throw-away overlay where asked for.
#[test]
fn peers_on_a_served_point() -> Result<()> {
    use tests::served::Served;
    let peer = Peer::new(&[])?;
    let point = peer.protect.cut()?;
    let reading = Served::start(&peer.bench, &point, &[])?;
    let uri = reading.address.uri("disk");
    peer.says(&format!(
        "nbdinfo '{uri}'; nbdcopy '{uri}' copy.raw; cmp copy.raw disk.raw
         qemu-img compare -f raw -F raw '{uri}' copy.raw
         qemu-img map -f raw '{uri}'
         if qemu-io -f raw -c 'write 0 4k' '{uri}' >said 2>&1; then cat said; exit 1; fi"
    ))?;
    reading.stop()?;
    let writing = Served::start(&peer.bench, &point, &["--writable"])?;
    let uri = writing.address.uri("disk");
    peer.says(&format!(
        "qemu-io -f raw -c 'write -P 9 1M 3M' -c 'read -P 9 1M 3M' -c 'write -z 10M 1M' -c 'read -P 0 10M 1M' \
             -c 'discard 12M 1M' -c flush '{uri}'
         uri='{uri}'; {FIO}"
    ))?;
    writing.stop()?;
    let again = Served::start(&peer.bench, &point, &["--writable"])?;
    let uri = again.address.uri("disk");
    peer.says(&format!("qemu-img compare -f raw -F raw '{uri}' copy.raw"))?;
    again.stop()?;
    peer.finish()
}
