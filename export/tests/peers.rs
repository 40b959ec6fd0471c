//! Programs that we did not write, against our server: libnbd's and QEMU's tools, fio, nbdkit.

mod common;

use std::fs;

use common::Fixture;
use common::tool::{run, sh, try_run};
use export::ServerOptions;

const MIB: u64 = 1 << 20;
/// Debian's, which has the libnbd module, whatever else is in the path.
const PYTHON: &str = "/usr/bin/python3";

fn fixture(size: u64) -> Fixture {
    Fixture::plain(size, ServerOptions::default())
}

/// A file of pseudo-random bytes with a hole in it.
fn image(fixture: &Fixture, size: u64) -> String {
    let path = fixture.dir.path().join("image").display().to_string();
    let mut state = 1_u64;
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        state.to_le_bytes()[7]
    })
    .take(block::index(size))
    .collect();
    bytes[block::index(size / 4)..block::index(size / 2)].fill(0);
    fs::write(&path, bytes).expect("written");
    path
}

#[test]
fn nbdinfo_sees_every_feature() {
    let fixture = fixture(64 * MIB);
    let json = run("nbdinfo", &["--json", &fixture.uri()]);
    for feature in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"structured\": true",
        "\"export-name\": \"disk\"",
        "\"description\": \"of tests\"",
        "\"qemu:dirty-bitmap:written\"",
        "\"base:allocation\"",
        "\"is_read_only\": false",
        "\"can_cache\": true",
        "\"can_df\": true",
        "\"can_fast_zero\": true",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_multi_conn\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"block_size_minimum\": 1,",
        "\"block_size_preferred\": 4096,",
        "\"block_size_maximum\": 33554432,",
        "\"export-size\": 67108864,",
    ] {
        assert!(json.contains(feature), "{feature} is missing in {json}");
    }
    assert!(run("nbdinfo", &["--list", &fixture.uri()]).contains("export=\"disk\""));
}

#[test]
fn nbdinfo_maps_holes_and_dirty_ranges() {
    let fixture = fixture(MIB);
    let uri = fixture.uri();
    run("qemu-io", &["-f", "raw", "-c", "write 64k 64k", &uri]);
    let words = |out: String| out.split_whitespace().collect::<Vec<_>>().join(" ");
    let map = words(run("nbdinfo", &["--map", &uri]));
    assert_eq!(
        map,
        "0 65536 3 hole,zero 65536 65536 0 data 131072 917504 3 hole,zero"
    );
    let map = words(run("nbdinfo", &["--map=qemu:dirty-bitmap:written", &uri]));
    assert_eq!(
        map,
        "0 65536 0 clean 65536 65536 1 dirty 131072 917504 0 clean"
    );
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    assert!(
        map.contains(
            "\"start\": 65536, \"length\": 65536, \"depth\": 0, \"present\": true, \"zero\": false"
        ),
        "{map}"
    );
}

#[test]
fn nbdcopy_copies_there_and_back_over_several_connections() {
    let fixture = fixture(64 * MIB);
    let image = image(&fixture, 64 * MIB);
    let back = format!("{image}.back");
    run("nbdcopy", &[&image, &fixture.uri()]);
    run("nbdcopy", &[&fixture.uri(), &back]);
    run("cmp", &[&image, &back]);
}

#[test]
fn qemu_img_converts_compares_and_measures() {
    let fixture = fixture(64 * MIB);
    let uri = fixture.uri();
    let image = image(&fixture, 64 * MIB);
    run(
        "qemu-img",
        &[
            "convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", &image, &uri,
        ],
    );
    let same = run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &image, &uri],
    );
    assert!(same.contains("identical"), "{same}");
    let info = run("qemu-img", &["info", "-f", "raw", &uri]);
    assert!(info.contains("64 MiB"), "{info}");
    let qcow = format!("{image}.qcow2");
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", &uri, &qcow],
    );
    run(
        "qemu-img",
        &["compare", "-f", "qcow2", "-F", "raw", &qcow, &uri],
    );
    for depth in ["1", "32"] {
        run(
            "qemu-img",
            &["bench", "-f", "raw", "-c", "5000", "-d", depth, &uri],
        );
        run(
            "qemu-img",
            &[
                "bench",
                "-w",
                "-f",
                "raw",
                "-c",
                "5000",
                "-d",
                depth,
                "--flush-interval=500",
                &uri,
            ],
        );
    }
}

#[test]
fn qemu_io_works_on_sectors_zeroes_discards_and_flushes() {
    let fixture = fixture(64 * MIB);
    let script = [
        "write -P 5 512 1536",
        "read -P 5 512 1536",
        "read -P 0 0 512",
        "write -f -P 6 1M 32M",
        "read -P 6 1M 32M",
        "write -z 2M 1M",
        "read -P 0 2M 1M",
        "write -z -u 4M 1M",
        "read -P 0 4M 1M",
        "write -z -n 5M 64k",
        "discard 6M 1M",
        "flush",
        "aio_write -P 7 8M 1M",
        "aio_write -P 8 9M 1M",
        "aio_flush",
        "read -P 7 8M 1M",
        "read -P 8 9M 1M",
    ];
    let mut args = vec![
        "-f".to_owned(),
        "raw".to_owned(),
        "-d".to_owned(),
        "unmap".to_owned(),
    ];
    args.extend(
        script
            .iter()
            .flat_map(|line| ["-c".to_owned(), (*line).to_owned()]),
    );
    args.push(fixture.uri());
    let out = run("qemu-io", &args);
    assert!(!out.contains("failed"), "{out}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    let fixture = fixture(64 * MIB);
    for (pattern, sizes, depth) in [
        ("randwrite", "4k-4k", 32),
        ("randwrite", "512-128k", 8),
        ("write", "1m-1m", 4),
    ] {
        let out = run(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &format!("--uri={}", fixture.uri()),
                &format!("--rw={pattern}"),
                &format!("--bsrange={sizes}"),
                &format!("--iodepth={depth}"),
                "--size=48m",
                "--verify=crc32c",
                "--do_verify=1",
                "--verify_fatal=1",
                // Its state would be left in the source tree.
                "--verify_state_save=0",
            ],
        );
        assert!(out.contains("err= 0"), "{out}");
    }
}

#[test]
fn nbdkit_relays_us() {
    let fixture = fixture(64 * MIB);
    let image = image(&fixture, 64 * MIB);
    let script = format!(
        "nbdkit -U - --filter=blocksize nbd uri='{}' --run 'nbdcopy {image} \"$uri\" && nbdcopy \"$uri\" {image}.back'; cmp {image} {image}.back",
        fixture.uri()
    );
    sh(&script);
}

/// The shared probe: features, forty odd checks, malformed requests.
#[test]
fn the_probe_passes() {
    let fixture = fixture(256 * MIB);
    let probe = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/lab/nbd-probe.py");
    let out = run(PYTHON, &[probe, &fixture.uri()]);
    assert!(!out.contains("FAIL") && !out.contains("other("), "{out}");
    let passed = out.matches("PASS").count();
    assert!(passed >= 35, "only {passed} checks:\n{out}");
}

#[test]
fn a_read_only_export_is_readable_and_stays_as_it_is() {
    let fixture = Fixture::read_only();
    let uri = fixture.uri();
    assert_eq!(
        run("nbdinfo", &["--can", "write", "--is", "read-only", &uri]),
        ""
    );
    assert!(!try_run("qemu-io", &["-f", "raw", "-c", "write 0 512", &uri]).ok);
    run(
        "qemu-io",
        &["-r", "-f", "raw", "-c", "read -P 0 0 1M", &uri],
    );
}

/// libnbd starts this very test as the server: `LISTEN_FDS` says which role it has.
#[test]
fn socket_activation_serves_libnbd() {
    if std::env::var_os("LISTEN_PID").is_some() {
        let fixture = fixture(MIB);
        let listen = [export::Listen::Activated];
        let options = ServerOptions::default();
        let activated = export::Server::start(&listen, fixture.exports.clone(), options);
        let server = activated.expect("libnbd passed a socket");
        // libnbd ends this process when it is done; should it fail to, the time limit does.
        let (_keep, never) = std::sync::mpsc::channel::<()>();
        let _ = never.recv_timeout(common::client::PATIENCE);
        drop(server);
        return;
    }
    let me = std::env::current_exe().expect("a program");
    let script = format!(
        "import nbd\nh = nbd.NBD()\n\
         h.connect_systemd_socket_activation(['{}', '--exact', 'socket_activation_serves_libnbd', '--nocapture'])\n\
         h.pwrite(b'x' * 512, 0)\nassert bytes(h.pread(512, 0)) == b'x' * 512\nprint(h.get_size())\n",
        me.display()
    );
    let out = run(PYTHON, &["-c", &script]);
    assert!(out.contains("1048576"), "{out}");
}
