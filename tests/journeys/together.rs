//! A vault that is used by everybody at once, while everybody is killed: points are imported, restored, removed, collected
//! and scrubbed, and the server dies every few seconds.
//!
//! ```text
//! STANDIN_TOGETHER_S=1800 STANDIN_SEED=.. cargo nextest run -p tests -E 'test(together_a_vault)'
//! ```
//!
//! Held: a point that was told to be there is there until somebody asks for its removal; every point restores to an image
//! that was imported; at the end nothing is left that no point needs, and no process ever took more than its memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tests::process::Beside;
use tests::time::{count_from_env, elapsed, let_pass, wait_for};
use tests::{Bench, image, standin};

use crate::places::{LIMIT, MIB};
use crate::wire::Wire;

const DISK: u64 = 24 * MIB;
const GROUPS: [&str; 2] = ["a", "b"];
/// So many points of a group stay, at least.
const KEPT: usize = 6;
/// What no process of ours may ever have resident.
const MEMORY: u64 = 256 * MIB;

/// What the vault was asked for and has answered.
#[derive(Default)]
struct Told {
    /// What each point holds.
    points: BTreeMap<String, u64>,
    /// What imports, those that were killed among them, may have made points of.
    attempts: BTreeSet<u64>,
    /// Points that somebody has asked to remove.
    going: BTreeSet<String>,
    /// Commands that ended well, by their names; and those that were killed.
    done: BTreeMap<String, u64>,
    killed: u64,
    peak_memory: u64,
}

/// What all threads share.
struct Room<'a> {
    bench: &'a Bench,
    wire: &'a Wire,
    told: Mutex<Told>,
    /// Odd while the server is down.
    deaths: AtomicU64,
    failed: AtomicBool,
    end: Duration,
}

/// How a command ended.
enum Ended {
    Well(Value),
    /// Somebody was killed: it may have done what it was asked for, or not.
    Killed,
    Failed(String),
}

/// One who uses the vault.
struct User<'a> {
    room: &'a Room<'a>,
    name: String,
    rng: ChaCha8Rng,
}

impl User<'_> {
    /// Runs `standin ARGS`, and kills it one time in four.
    fn run(&mut self, args: &[&str]) -> Result<Ended> {
        let before = self.room.deaths.load(SeqCst);
        let log = self.room.bench.path(&format!("{}.log", self.name));
        fs::write(&log, "")?;
        let mut process = Beside::start(standin::command(args).arg("--json"), &log)?;
        let patience = match self.rng.random_bool(0.25) {
            true => Duration::from_millis(self.rng.random_range(0..600)),
            false => LIMIT,
        };
        let end = elapsed() + patience;
        let mut peak = 0;
        let status = wait_for(&format!("{args:?}"), LIMIT * 2, || {
            peak = peak.max(process.peak_memory().unwrap_or(0));
            let status = process.ended()?;
            Ok((status.is_some() || elapsed() >= end).then_some(status))
        })?;
        let text = process.log();
        let mut told = self.room.told.lock();
        told.peak_memory = told.peak_memory.max(peak);
        let Some(status) = status else {
            ensure!(patience < LIMIT, "{args:?} hangs:\n{text}");
            process.kill9()?;
            told.killed += 1;
            return Ok(Ended::Killed);
        };
        ensure!(!text.contains("panicked"), "{args:?}:\n{text}");
        if status.success() {
            *told.done.entry(self.name.clone()).or_default() += 1;
            let json = text.find('{').context("no document")?;
            return Ok(Ended::Well(serde_json::from_str(&text[json..])?));
        }
        let after = self.room.deaths.load(SeqCst);
        Ok(match before == after && before.is_multiple_of(2) {
            true => Ended::Failed(text),
            false => Ended::Killed,
        })
    }

    /// A command that can fail for no other reason than that somebody was killed.
    fn must(&mut self, args: &[&str]) -> Result<Option<Value>> {
        match self.run(args)? {
            Ended::Well(json) => Ok(Some(json)),
            Ended::Killed => Ok(None),
            Ended::Failed(text) => bail!("{args:?}:\n{text}"),
        }
    }

    fn goes_on(&self) -> bool {
        // While the server is down there is nothing to do.
        let_pass(Duration::from_millis(20));
        self.room.goes_on()
    }

    fn listed(&mut self) -> Result<Vec<String>> {
        let target = self.room.bench.target();
        let list = self.must(&["point", "list", "--target", &target])?;
        list.as_ref().map_or(Ok(Vec::new()), ids)
    }

    /// Changes an image here and there, partly to what was there some time ago, and imports it.
    fn import(&mut self, group: &str) -> Result<()> {
        let target = self.room.bench.target();
        let path = self.room.bench.path(&format!("{group}.raw"));
        image::sparse(&path, DISK)?;
        while self.goes_on() {
            for _ in 0..self.rng.random_range(1..12) {
                let offset = self.rng.random_range(0..DISK / 4096) * 4096;
                let len = self.rng.random_range(1..300_000).min(DISK - offset);
                let content = match self.rng.random_bool(0.5) {
                    true => self.rng.random_range(0..20),
                    false => self.rng.next_u64(),
                };
                image::scribble(&path, offset, len, content)?;
            }
            let holds = digest(&path)?;
            self.room.told.lock().attempts.insert(holds);
            let text = path.display().to_string();
            let args = ["import", &text, "--target", &target, "--group", group];
            if let Some(made) = self.must(&args)? {
                let point = made["point"].as_str().context("no point")?;
                let mut told = self.room.told.lock();
                told.points.insert(point.to_owned(), holds);
            }
        }
        Ok(())
    }

    fn restore(&mut self) -> Result<()> {
        let target = self.room.bench.target();
        let output = self.room.bench.text("restored.raw");
        while self.goes_on() {
            let listed = self.listed()?;
            if listed.is_empty() {
                continue;
            }
            let point = &listed[self.rng.random_range(0..listed.len())];
            let args = [
                "restore", point, "--target", &target, "--output", &output, "--force",
            ];
            match self.run(&args)? {
                Ended::Killed => {}
                Ended::Well(_) => self.room.expect(point, Path::new(&output))?,
                Ended::Failed(text) => {
                    let going = self.room.told.lock().going.contains(point);
                    ensure!(going, "{point} does not restore:\n{text}");
                }
            }
        }
        Ok(())
    }

    /// Removes some points, or all but the newest.
    fn retain(&mut self) -> Result<()> {
        let target = self.room.bench.target();
        while self.goes_on() {
            let_pass(Duration::from_millis(self.rng.random_range(0..3000)));
            let mut listed = self.listed()?;
            for group in GROUPS {
                let mine = |id: &String| id.starts_with(&format!("{group}@"));
                let older = listed.iter().filter(|id| mine(id)).count();
                let older = older.saturating_sub(KEPT);
                let stays = listed.iter().filter(|id| mine(id)).skip(older).cloned();
                let stays: BTreeSet<String> = stays.collect();
                listed.retain(|id| !stays.contains(id));
            }
            if self.rng.random_bool(0.5) {
                listed.retain(|_| self.rng.random_bool(0.5));
            }
            if listed.is_empty() {
                continue;
            }
            self.room.told.lock().going.extend(listed.iter().cloned());
            let mut args = vec!["point", "delete", "--target", &target, "--delay", "0"];
            args.extend(listed.iter().map(String::as_str));
            self.must(&args)?;
        }
        Ok(())
    }

    fn look_after(&mut self) -> Result<()> {
        let target = self.room.bench.target();
        let thorough = ["store", "gc", &target, "--quarantine", "0", "--thorough"];
        while self.goes_on() {
            match self.rng.random_range(0..4) {
                0 => {
                    if let Some(found) = self.must(&["store", "scrub", &target])? {
                        ensure!(found["whole"] == true, "{found}");
                    }
                }
                1 => self.collect(&thorough)?,
                _ => self.collect(&thorough[..5])?,
            }
        }
        Ok(())
    }

    /// Also while the server is at work for a client that was killed.
    fn collect(&mut self, args: &[&str]) -> Result<()> {
        match self.run(args)? {
            Ended::Failed(text) if !text.contains("running already") => bail!("{args:?}:\n{text}"),
            _ => Ok(()),
        }
    }
}

impl<'a> Room<'a> {
    /// Called by the thread that is this user: the token is shown by thread.
    fn user(&'a self, name: &str, number: u64) -> User<'a> {
        self.wire.show("all");
        User {
            room: self,
            name: name.to_owned(),
            rng: ChaCha8Rng::seed_from_u64(self.bench.seed ^ (number << 40)),
        }
    }

    fn goes_on(&self) -> bool {
        elapsed() < self.end && !self.failed.load(SeqCst)
    }

    /// What one user met ends all.
    fn watch(&self, done: Result<()>) -> Result<()> {
        if done.is_err() {
            self.failed.store(true, SeqCst);
        }
        done
    }

    /// The file holds what the point does.
    fn expect(&self, point: &str, file: &Path) -> Result<()> {
        let found = digest(file)?;
        let told = self.told.lock();
        match told.points.get(point) {
            Some(holds) => ensure!(*holds == found, "{point} holds something else"),
            None => ensure!(told.attempts.contains(&found), "{point} was never imported"),
        }
        Ok(())
    }

    /// Ends when the time is over, or one of the users has failed.
    fn kill_servers(&self, server: &mut Beside) -> Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.bench.seed ^ 0xdead);
        while self.goes_on() {
            let_pass(Duration::from_millis(rng.random_range(300..9000)));
            let peak = server.peak_memory()?;
            self.deaths.fetch_add(1, SeqCst);
            server.kill9()?;
            *server = self.wire.serve()?;
            self.deaths.fetch_add(1, SeqCst);
            let mut told = self.told.lock();
            told.peak_memory = told.peak_memory.max(peak);
        }
        Ok(())
    }

    /// All is quiet: every point that must be there is, is whole and exact, and there is nothing else.
    fn check(&self) -> Result<()> {
        self.wire.show("all");
        let target = self.bench.target();
        let gc = ["store", "gc", &target, "--quarantine", "0", "--thorough"];
        standin::json(gc)?;
        let again = standin::json(gc)?;
        let none = ["containers_gone", "trees_gone", "quarantined_bytes"];
        ensure!(
            again["live_chunks"] == again["chunks"] && none.iter().all(|gone| again[gone] == 0),
            "garbage is left: {again}"
        );
        // Small containers, in which all is live, are laid together by more of them, each into larger ones; that ends.
        wait_for("the last collection", LIMIT, || {
            let report = standin::json(gc)?;
            Ok((report["freed_bytes"] == 0).then_some(()))
        })?;
        let scrub = standin::json(["store", "scrub", &target])?;
        ensure!(scrub["whole"] == true, "{scrub}");
        let listed = ids(&standin::json(["point", "list", "--target", &target])?)?;
        for point in &listed {
            self.expect(point, &self.bench.restore(point, None)?)?;
        }
        standin::run(["point", "verify", "--all", "--target", &target])?;
        let told = self.told.lock();
        let gone = |point: &&String| !listed.contains(point) && !told.going.contains(*point);
        let gone: Vec<_> = told.points.keys().filter(gone).collect();
        ensure!(gone.is_empty(), "points are gone: {gone:?}");
        eprintln!(
            "{} points listed, {:?}, {} clients and {} servers killed, {} MiB at most",
            listed.len(),
            told.done,
            told.killed,
            self.deaths.load(SeqCst) / 2,
            told.peak_memory / MIB
        );
        ensure!(told.peak_memory <= MEMORY, "too much memory");
        Ok(())
    }
}

fn ids(list: &Value) -> Result<Vec<String>> {
    let points = list["points"].as_array().context("a list")?;
    let id = |point: &Value| Some(point["id"].as_str()?.to_owned());
    points
        .iter()
        .map(|point| id(point).context("an id"))
        .collect()
}

fn digest(path: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    fs::read(path)?.hash(&mut hasher);
    Ok(hasher.finish())
}

#[test]
fn together_a_vault_keeps_every_point_while_all_is_used_and_killed() -> Result<()> {
    let mut wire = Wire::start()?;
    wire.make_token("all", &["ship", "restore", "retention", "admin"], &[])?;
    let mut server = wire.take_server()?;
    let lasting = Duration::from_secs(count_from_env("STANDIN_TOGETHER_S", 25));
    let room = Room {
        bench: &wire.bench,
        wire: &wire,
        told: Mutex::default(),
        deaths: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        end: elapsed() + lasting,
    };
    std::thread::scope(|scope| -> Result<()> {
        let users = [
            scope.spawn(|| room.watch(room.user("import-a", 1).import(GROUPS[0]))),
            scope.spawn(|| room.watch(room.user("import-b", 2).import(GROUPS[1]))),
            scope.spawn(|| room.watch(room.user("restore", 3).restore())),
            scope.spawn(|| room.watch(room.user("retention", 4).retain())),
            scope.spawn(|| room.watch(room.user("upkeep", 5).look_after())),
        ];
        let killed = room.watch(room.kill_servers(&mut server));
        for user in users {
            user.join().expect("no user panics")?;
        }
        killed
    })?;
    room.check()
}
