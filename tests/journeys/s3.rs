//! Points in a bucket, behind a real S3 server that is slow, lies down and loses answers.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use store::{Bucket, conformance};
use tests::nbd::Client;
use tests::process::Beside;
use tests::protect::How;
use tests::s3::{self, Faults, SECRET_KEY, Server};
use tests::served::Served;
use tests::time::wait_for;
use tests::{Bench, Load, Protect, Shape, image, standin};

use crate::places::{LIMIT, MIB};

const DISK: u64 = 48 * MIB;
const URL: &str = "s3://bucket/vms";

/// A bench whose points go to a server of its own.
fn bench() -> Result<(Bench, Server)> {
    let mut bench = Bench::new()?;
    let server = Server::start(&bench.path("s3"), bench.seed)?;
    standin::set_environment(server.settings());
    bench.set_target(URL);
    Ok((bench, server))
}

fn shape() -> Shape {
    Shape::mixed(0..image::sectors(DISK))
}

#[test]
fn s3_the_backend_conforms_on_a_real_server() -> Result<()> {
    let (_bench, server) = bench()?;
    conformance::conforms(&Bucket::s3("s3://bucket/a/b", server.settings())?);
    Ok(())
}

/// Ship, restore, verify, collect, scrub, explain: what works on a directory works on a bucket, and costs few requests.
#[test]
fn s3_the_whole_journey() -> Result<()> {
    let (bench, server) = bench()?;
    let (disk, ledger) = bench.stamped_disk("disk", DISK)?;
    let init = ["store", "init", URL];
    standin::run(init)?;
    standin::refuse(init, 1, &["it holds a store"])?;
    let how = How::new(&bench, &[&disk]);
    let protect = Protect::start(&bench, &how)?;
    let first = protect.cut()?;
    for i in 0..4 {
        let load = Load::start(&protect.address, "disk", &ledger, &shape(), bench.seed + i);
        load.wait_acked(200)?;
        load.stop()?;
        let _ = server.take_counts();
        let (point, window) = protect.cut_beside(&ledger)?;
        let counts = server.take_counts();
        ensure!(!counts.contains_key("LIST"), "a cut lists: {counts:?}");
        let puts = s3::sum(&counts, &["PUT if none"])?.requests;
        ensure!(puts <= 5, "a small cut takes {puts} objects: {counts:?}");
        bench.check_point(&point, &ledger, window)?;
    }
    let target = bench.target();
    let state = bench.state();
    standin::run([
        "point", "delete", &first, "--target", &target, "--delay", "0", "--state", &state,
    ])?;
    // Through the protection, which holds the lease.
    let gc = [
        "store",
        "gc",
        &target,
        "--quarantine",
        "0",
        "--thorough",
        "--state",
        &state,
    ];
    let collected = standin::json(gc)?;
    ensure!(collected["removed_bytes"].as_u64() > Some(0), "{collected}");
    protect.stop()?;

    // And without one.
    standin::run(["point", "verify", "--all", "--target", &target])?;
    let scrubbed = standin::json(["store", "scrub", &target])?;
    ensure!(
        scrubbed["lost"].as_array().is_some_and(Vec::is_empty),
        "{scrubbed}"
    );
    standin::json(["store", "explain", &target])?;
    let points = bench.points()?;
    let [older, newer] = [0, 1].map(|at| points[at]["id"].as_str().unwrap_or_default());
    let at = ["--target", &target];
    let point = |words: &[&str]| standin::run([&["point"], words, &at].concat());
    standin::json(["point", "show", older, "--target", &target])?;
    standin::json(["point", "diff", older, newer, "--target", &target])?;
    point(&["hold", older])?;
    standin::refuse(
        ["point", "delete", older, "--target", &target],
        1,
        &["held"],
    )?;
    point(&["hold", older, "--lift"])?;
    point(&["delete", older])?;
    point(&["undelete", older])?;
    point(&["lock", older, "--until", "1h"])?;
    let served = Served::start(&bench, newer, &[])?;
    Client::connect(&served.address, "disk")?.read(0, 4096)?;
    served.stop()?;
    standin::json([
        "retention",
        "preview",
        "--target",
        &target,
        "--keep-last",
        "1",
    ])?;
    standin::json(gc)?;
    bench.compare("g@latest", None, &disk)?;
    let status = standin::json(["store", "status", &target])?;
    // Five cuts, one of them deleted, and the last one at the end.
    ensure!(status["points"].as_u64() == Some(5), "{status}");
    let log = std::fs::read_to_string(bench.path("g.log"))?;
    ensure!(!log.contains(SECRET_KEY), "the secret is in the log");
    Ok(())
}

/// Errors, lost answers and silence: guests write on, no point is wrong, and all that was cut arrives.
#[test]
fn s3_bad_weather_delays_points_and_nothing_else() -> Result<()> {
    let (bench, server) = bench()?;
    let (disk, ledger) = bench.stamped_disk("disk", DISK)?;
    let mut how = How::new(&bench, &[&disk]).every("400ms");
    how.patience = LIMIT;
    server.set_faults(Faults::some(15));
    let protect = Protect::start(&bench, &how)?;
    protect.wait_point(LIMIT)?;
    for i in 0..5 {
        let load = Load::start(&protect.address, "disk", &ledger, &shape(), bench.seed + i);
        load.wait_acked(300).context("the guest waits for S3")?;
        if i == 2 {
            // For a while nothing answers at all.
            server.set_faults(Faults {
                lost: 1000,
                ..Faults::default()
            });
            load.wait_acked(600).context("the guest waits for S3")?;
            server.set_faults(Faults::some(15));
        }
        load.stop()?;
    }
    server.set_faults(Faults::default());
    let (point, window) = protect.cut_beside(&ledger)?;
    bench.check_point(&point, &ledger, window)?;
    bench.compare(&point, None, &disk)?;
    protect.stop()?;
    standin::run(["point", "verify", "--all", "--target", &bench.target()])?;
    let scrubbed = standin::json(["store", "scrub", &bench.target()])?;
    ensure!(
        scrubbed["lost"].as_array().is_some_and(Vec::is_empty),
        "{scrubbed}"
    );
    Ok(())
}

/// A killed protection leaves its lease; the next one waits until that is over, and goes on.
#[test]
fn s3_kill_9_costs_a_term_and_no_point() -> Result<()> {
    let (bench, server) = bench()?;
    let (disk, ledger) = bench.stamped_disk("disk", DISK)?;
    let how = How::new(&bench, &[&disk]).every("300ms");
    let protect = Protect::start(&bench, &how)?;
    protect.wait_point(LIMIT)?;
    let load = Load::start(&protect.address, "disk", &ledger, &shape(), bench.seed);
    load.wait_acked(400)?;
    protect.kill9()?;
    drop(load);
    let points = bench.points()?;
    standin::run(["point", "verify", "--all", "--target", &bench.target()])?;
    let protect = Protect::start(&bench, &how)?;
    let point = protect.cut()?;
    bench.compare(&point, None, &disk)?;
    ensure!(bench.points()?.len() > points.len(), "nothing was added");
    protect.stop()?;
    let gc = [
        "store",
        "gc",
        &bench.target(),
        "--quarantine",
        "0",
        "--thorough",
    ];
    standin::run(gc)?;
    standin::run(["point", "verify", "--all", "--target", &bench.target()])?;
    drop(server);
    Ok(())
}

/// Two protections of two hosts with one bucket. The second is refused while the first lives; when the first has been
/// asleep for longer than its lease, the second takes over, and the first one writes nothing until the second has ended.
#[test]
fn s3_two_writers_do_not_share_a_store() -> Result<()> {
    let (bench, _server) = bench()?;
    let (disk, _) = bench.stamped_disk("disk", DISK)?;
    let (other, _) = bench.stamped_disk("other", 8 * MIB)?;
    let first = Protect::start(&bench, &How::new(&bench, &[&disk]))?;
    let mine = first.cut()?;

    let mut how = How::new(&bench, &[&other]);
    how.group = "h".into();
    how.listen = tests::nbd::Address::Unix(bench.path("other.sock"));
    how.diff_dir = Some(bench.path("other-diffs"));
    let mut args = how.args(&bench);
    let state = args.iter().position(|arg| arg == "--state");
    let state = state.context("a state")? + 1;
    args[state] = bench.text("other-state");
    for dir in ["other-state", "other-diffs"] {
        std::fs::create_dir(bench.path(dir))?;
    }
    standin::refuse(&args, 4, &["another process is writing", URL])?;

    first.process.signal(Signal::STOP)?;
    let log = bench.path("other.log");
    let mut second = Beside::start(&mut standin::command(&args), &log)?;
    wait_for("the second one to take over", LIMIT, || {
        Ok(bench.path("other.sock").exists().then_some(()))
    })
    .with_context(|| second.log())?;
    let theirs = standin::run(["cut", "h", "--state", &args[state], "--wait"])?;
    let theirs = theirs.split_whitespace().last().unwrap_or_default();
    first.process.signal(Signal::CONT)?;
    first.cut_only()?;
    wait_for("the first one to say why it ships nothing", LIMIT, || {
        let trouble = first.status()?["trouble"].to_string();
        Ok(trouble.contains("another process is writing").then_some(()))
    })
    .with_context(|| format!("{:?}", first.status()))?;
    let points = bench.points()?;
    let of_first = points.iter().filter(|point| point["group"] == "g").count();
    ensure!(
        of_first == 1,
        "the fenced one has listed a point: {points:?}"
    );

    second.signal(Signal::TERM)?;
    second.wait(LIMIT)?;
    let later = first.cut()?;
    bench.compare(&later, Some("disk"), &disk)?;
    for point in [mine.as_str(), theirs] {
        standin::run(["point", "verify", point, "--target", &bench.target()])?;
    }
    first.stop()
}
