//! Files, loop devices and foreign tools for the tests of the backends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Deterministic bytes with holes: about half of the 64 KiB blocks, and single sectors elsewhere.
pub(crate) fn sparse_content(size: usize, seed: u64) -> Vec<u8> {
    let mut content = vec![0; size];
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    for block in content.chunks_mut(64 << 10) {
        match next() % 4 {
            0 | 1 => {}
            2 => block.iter_mut().for_each(|b| *b = next().to_le_bytes()[0]),
            _ => {
                let end = block.len().min(512);
                block[..end].fill(next().to_le_bytes()[0] | 1);
            }
        }
    }
    content
}

pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir().expect("temporary directory")
}

/// Writes `content` as a sparse file.
pub(crate) fn raw_file(path: &Path, content: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::create(path).expect("create");
    file.set_len(content.len() as u64).expect("size");
    for (number, block) in content.chunks(4096).enumerate() {
        if block.iter().any(|b| *b != 0) {
            file.write_all_at(block, number as u64 * 4096)
                .expect("write");
        }
    }
}

/// Runs a tool that must succeed; its standard output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = attempt(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("tools print text")
}

pub(crate) fn attempt(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}; tests/setup.sh installs it"))
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// A loop device over a file, detached when dropped.
pub(crate) struct LoopDevice {
    pub(crate) path: PathBuf,
    kept: Option<TempDir>,
}

impl LoopDevice {
    pub(crate) fn new(size: u64, sector_bytes: u32) -> Self {
        let dir = scratch();
        let file = dir.path().join("disk");
        let content = sparse_content(usize::try_from(size).expect("small"), 7);
        raw_file(&file, &content);
        let mut device = Self::over(&file, sector_bytes);
        device.kept = Some(dir);
        device
    }

    pub(crate) fn over(file: &Path, sector_bytes: u32) -> Self {
        let sector = sector_bytes.to_string();
        let arguments = ["--find", "--show", "--sector-size", &sector, text(file)];
        let path = PathBuf::from(run("losetup", &arguments).trim());
        Self { path, kept: None }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = attempt("losetup", &["--detach", text(&self.path)]);
    }
}
