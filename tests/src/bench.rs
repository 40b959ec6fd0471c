//! One journey's place: a temporary directory with disks, state, target and sockets.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::image;
use crate::ledger::{Ledger, Origin, Survey, Window};
use crate::standin;

/// The place. Removed when dropped, unless `STANDIN_KEEP` is set.
#[derive(Debug)]
pub struct Bench {
    dir: TempDir,
    /// The target's URL.
    target: String,
    /// Everything random in the journey follows from it.
    pub seed: u64,
}

impl Bench {
    /// An empty place; prints the seed.
    ///
    /// # Errors
    /// File errors.
    pub fn new() -> Result<Self> {
        let mut dir = tempfile::Builder::new().prefix("standin-").tempdir()?;
        dir.disable_cleanup(std::env::var_os("STANDIN_KEEP").is_some());
        for name in ["state", "diffs"] {
            std::fs::create_dir(dir.path().join(name))?;
        }
        let target = format!("dir:{}", dir.path().join("target").display());
        Ok(Self {
            dir,
            target,
            seed: sim::seed_from_env(u64::from(std::process::id())),
        })
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The whole.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Lets `NAME` lie at `at`: a link. An empty directory of that name goes.
    ///
    /// # Errors
    /// File errors.
    pub fn place(&self, name: &str, at: &Path) -> Result<()> {
        let link = self.path(name);
        if link.is_dir() {
            std::fs::remove_dir(&link)?;
        }
        Ok(std::os::unix::fs::symlink(at, link)?)
    }

    /// Keeps it when dropped: something in it must be looked at.
    pub fn keep(&mut self) {
        self.dir.disable_cleanup(true);
    }

    /// The state directory, as an argument.
    #[must_use]
    pub fn state(&self) -> String {
        self.text("state")
    }

    /// The target's URL.
    #[must_use]
    pub fn target(&self) -> String {
        self.target.clone()
    }

    /// Lets points go elsewhere.
    pub fn set_target(&mut self, url: &str) {
        url.clone_into(&mut self.target);
    }

    /// A path in it, as an argument.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        self.path(name)
            .to_str()
            .expect("temporary paths are text")
            .to_owned()
    }

    /// A disk `NAME.raw` of stamps, and its ledger.
    ///
    /// # Errors
    /// File errors.
    pub fn stamped_disk(&self, name: &str, size: u64) -> Result<(PathBuf, Arc<Ledger>)> {
        let path = self.path(&format!("{name}.raw"));
        image::stamped(&path, image::sectors(size))?;
        Ok((
            path,
            Arc::new(Ledger::new(image::sectors(size), Origin::Stamps)),
        ))
    }

    /// A disk `NAME.raw` that holds nothing, and its ledger.
    ///
    /// # Errors
    /// File errors.
    pub fn empty_disk(&self, name: &str, size: u64) -> Result<(PathBuf, Arc<Ledger>)> {
        let path = self.path(&format!("{name}.raw"));
        image::sparse(&path, size)?;
        Ok((
            path,
            Arc::new(Ledger::new(image::sectors(size), Origin::Zeroes)),
        ))
    }

    /// The points on the target, oldest first, as `point list --json` gives them.
    ///
    /// # Errors
    /// If the command fails.
    pub fn points(&self) -> Result<Vec<Value>> {
        let listed = standin::json(["point", "list", "--target", &self.target()])?;
        let points = listed.get("points").unwrap_or(&listed);
        points
            .as_array()
            .cloned()
            .with_context(|| format!("no list of points: {listed}"))
    }

    /// Restores a point's disk (the only one, if `disk` is `None`) to a new file.
    ///
    /// # Errors
    /// If the command fails.
    pub fn restore(&self, point: &str, disk: Option<&str>) -> Result<PathBuf> {
        let name = format!(
            "restored-{}-{}.raw",
            point.replace('@', "-"),
            disk.unwrap_or("only")
        );
        let output = self.text(&name);
        let target = self.target();
        let mut args = vec![
            "restore", point, "--target", &target, "--output", &output, "--sparse",
        ];
        if let Some(disk) = disk {
            args.extend(["--disk", disk]);
        }
        standin::run(args)?;
        Ok(output.into())
    }

    /// Restores `point` and holds it against the ledger.
    ///
    /// # Errors
    /// If the point is not one instant.
    pub fn check_point(&self, point: &str, ledger: &Ledger, window: Window) -> Result<()> {
        self.check_point_of(point, ledger, None, window)
    }

    /// As [`check_point`](Self::check_point), of a disk that held at first what `original` holds.
    ///
    /// # Errors
    /// If the point is not one instant.
    pub fn check_point_of(
        &self,
        point: &str,
        ledger: &Ledger,
        original: Option<&Path>,
        window: Window,
    ) -> Result<()> {
        let path = self.restore(point, None)?;
        let open =
            |path: &Path| File::open(path).map(|file| BufReader::with_capacity(1 << 20, file));
        let mut original = original.map(open).transpose()?;
        let original = original.as_mut().map(|file| file as &mut dyn Read);
        ledger
            .check(open(&path)?, original, window)
            .with_context(|| format!("point {point}"))?;
        Ok(std::fs::remove_file(&path)?)
    }

    /// Restores a disk of `point` and looks which write each sector holds.
    ///
    /// # Errors
    /// If it cannot be restored, or holds what it cannot.
    pub fn survey(
        &self,
        point: &str,
        disk: &str,
        ledger: &Ledger,
        window: Window,
    ) -> Result<Survey> {
        let path = self.restore(point, Some(disk))?;
        let file = BufReader::with_capacity(1 << 20, File::open(&path)?);
        let survey = ledger.survey(file, None, window);
        let survey = survey.with_context(|| format!("point {point}, disk {disk}"))?;
        std::fs::remove_file(&path)?;
        Ok(survey)
    }

    /// Restores `point` and compares it with the production disk, on which nobody writes.
    ///
    /// # Errors
    /// If they differ, with the first byte that does.
    pub fn compare(&self, point: &str, disk: Option<&str>, production: &Path) -> Result<()> {
        let path = self.restore(point, disk)?;
        if let Some(byte) = image::difference(&path, production)? {
            bail!(
                "{point} differs from {} at byte {byte}",
                production.display()
            );
        }
        Ok(std::fs::remove_file(&path)?)
    }
}
