//! Points of one target that are copied to another: between directories and buckets, encrypted or not.

use anyhow::{Result, ensure};
use tests::s3::Server;
use tests::{Bench, image, standin};

use crate::places::MIB;

const SIZE: u64 = 32 * MIB;
const BUCKET: &str = "s3://bucket/replica";

/// A bench with a disk and a server for buckets.
fn bench() -> Result<(Bench, Server, std::path::PathBuf)> {
    let bench = Bench::new()?;
    let server = Server::start(&bench.path("s3"), bench.seed)?;
    standin::set_environment(server.settings());
    let disk = bench.path("disk.raw");
    image::sparse(&disk, SIZE)?;
    image::scribble(&disk, 0, 8 * MIB, bench.seed)?;
    Ok((bench, server, disk))
}

fn import(bench: &Bench, more: &[&str]) -> Result<String> {
    let (disk, target) = (bench.text("disk.raw"), bench.target());
    let args = ["import", &disk, "--target", &target, "--group", "vm"];
    standin::run(args.into_iter().chain(more.iter().copied()))
}

#[test]
fn a_bucket_gets_the_points_of_a_directory_and_only_what_it_lacks() -> Result<()> {
    let (mut bench, _server, disk) = bench()?;
    let target = bench.target();
    import(&bench, &[])?;
    let replicate = ["replicate", &target, BUCKET];
    let dry = standin::json(replicate.into_iter().chain(["--dry-run"]))?;
    ensure!(dry["would_copy"] == serde_json::json!(["vm@1"]), "{dry}");
    let first = standin::json(replicate)?;
    ensure!(first["points"] == serde_json::json!(["vm@1"]), "{first}");
    image::scribble(&disk, 3 * MIB, 100_000, 9)?;
    import(&bench, &["--label", "why=second"])?;
    image::scribble(&disk, 20 * MIB, 100_000, 10)?;
    import(&bench, &[])?;
    let second = standin::json(replicate)?;
    ensure!(
        second["points"] == serde_json::json!(["vm@2", "vm@3"]),
        "{second}"
    );
    let [before, after] = [&first, &second].map(|d| d["copied_bytes"].as_u64().unwrap_or(0));
    ensure!(after > 0 && after * 10 < before, "{before} and {after}");
    let again = standin::json(replicate)?;
    ensure!(
        again["points"] == serde_json::json!([]) && again["copied_bytes"] == 0,
        "{again}"
    );
    // The replica stands for itself.
    bench.set_target(BUCKET);
    bench.compare("vm@3", None, &disk)?;
    let shown = standin::json(["point", "show", "vm@2", "--target", BUCKET])?;
    ensure!(shown.to_string().contains("second"), "{shown}");
    standin::run(["point", "verify", "--all", "--target", BUCKET])?;
    // And gives its points back, to a place of another kind.
    let third = bench.text("third");
    standin::run([
        "replicate",
        BUCKET,
        &format!("dir:{third}"),
        "--group",
        "vm",
    ])?;
    bench.set_target(&format!("dir:{third}"));
    bench.compare("vm@3", None, &disk)?;
    give_back(&bench, &disk)
}

/// The container and the trees of the target are lost: it says which points that costs, and the replica gives them back.
fn give_back(bench: &Bench, disk: &std::path::Path) -> Result<()> {
    let target = bench.target();
    for folder in ["containers", "trees"] {
        std::fs::remove_dir_all(bench.path("third").join(folder))?;
    }
    let checked = standin::say(["store", "check", &target])?;
    let alone = standin::say(["store", "repair", &target])?;
    ensure!(
        checked.out.contains("SOMETHING IS LOST") && alone.out.contains("stays lost"),
        "{}{}",
        checked.out,
        alone.out
    );
    let repair = ["store", "repair", &target, "--from", BUCKET];
    let planned = standin::json(repair)?;
    let steps = planned["steps"].as_array().map_or(&[][..], Vec::as_slice);
    let copies = steps.iter().filter(|step| step["do"] == "copy-again");
    ensure!(
        copies.count() == 3 && planned["lost"] == serde_json::json!([]),
        "{planned}"
    );
    let done = standin::run(repair.into_iter().chain(["--apply"]))?;
    ensure!(done.contains("vm@2 again from the replica"), "{done}");
    standin::run(["store", "check", &target, "--deep"])?;
    standin::run(["point", "verify", "--all", "--target", &target])?;
    bench.compare("vm@3", None, disk)
}

#[test]
fn an_encrypted_target_is_copied_by_who_cannot_read_it() -> Result<()> {
    let (mut bench, server, disk) = bench()?;
    let (target, key) = (bench.target(), bench.text("key"));
    standin::run(["store", "init", &target, "--encrypt", "--key-file", &key])?;
    import(&bench, &["--key-file", &key])?;
    standin::run(["replicate", &target, BUCKET])?;
    image::scribble(&disk, 5 * MIB, 4096, 3)?;
    import(&bench, &["--key-file", &key])?;
    let second = standin::json(["replicate", &target, BUCKET])?;
    ensure!(second["copied_bytes"].as_u64() < Some(200_000), "{second}");
    // The same keys open it.
    let mut with_key = server.settings();
    with_key.push(("STANDIN_KEY_FILE".into(), key));
    standin::set_environment(with_key);
    bench.set_target(BUCKET);
    bench.compare("vm@2", None, &disk)?;
    standin::run(["point", "verify", "--all", "--target", BUCKET])?;
    // A store with another key is no replica.
    standin::set_environment(server.settings());
    let other = format!("dir:{}", bench.text("other"));
    standin::run(["store", "init", &other])?;
    standin::refuse(
        ["replicate", &target, &other],
        1,
        &["not encrypted with the same key"],
    )?;
    standin::refuse(
        ["replicate", &other, &target],
        1,
        &["not encrypted with the same key"],
    )
    .map(drop)
}
