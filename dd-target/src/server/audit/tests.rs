//! What the log promises, whatever happens to its files.

use std::fs;
use std::path::PathBuf;

use super::*;
use block::SystemClock;

fn audit(dir: &tempfile::TempDir) -> Audit {
    let state = Arc::new(StateDir::open(&dir.path().join("state")).unwrap());
    Audit::new(&state, &(Arc::new(SystemClock::new()) as Arc<dyn Clock>))
}

fn refused(what: &str) -> Entry {
    Entry {
        event: Event::Refused,
        token: None,
        peer: Some("10.0.0.1:5".into()),
        vault: None,
        what: what.into(),
        why: Some("no \"token\"\n".into()),
    }
}

fn log_of(audit: &Audit) -> PathBuf {
    audit.files.dir.path("audit.log")
}

fn spoil(audit: &Audit, from: &str, to: &str) {
    let path = log_of(audit);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(from, to)).unwrap();
}

#[test]
fn lines_follow_from_each_other_over_restarts_and_torn_ends() {
    let dir = tempfile::tempdir().unwrap();
    audit(&dir).write(refused("one")).unwrap();
    let again = audit(&dir);
    again.write(refused("two")).unwrap();
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(log_of(&again))
        .unwrap();
    file.write_all(b"{\"n\":3,\"at\":").unwrap();
    again.write(refused("three")).unwrap();
    let page = again.page(1).unwrap();
    assert!(page.whole && !page.more);
    let whats: Vec<_> = page
        .lines
        .iter()
        .map(|line| (line.n, &*line.what))
        .collect();
    assert_eq!(whats, [(2, "two"), (3, "three")]);
}

#[test]
fn a_line_that_was_changed_or_removed_shows() {
    let removed = "{\"n\":2";
    for (from, to) in [
        ("two", "ten"),
        ("10.0.0.1", "10.0.0.2"),
        (removed, "{\"n\":9"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let audit = audit(&dir);
        for what in ["one", "two", "three"] {
            audit.write(refused(what)).unwrap();
        }
        assert!(audit.page(0).unwrap().whole);
        spoil(&audit, from, to);
        assert!(!audit.page(0).unwrap().whole, "{from}");
    }
    let dir = tempfile::tempdir().unwrap();
    let audit = audit(&dir);
    for what in ["one", "two", "three"] {
        audit.write(refused(what)).unwrap();
    }
    let path = log_of(&audit);
    let text = fs::read_to_string(&path).unwrap();
    let without: String = text
        .lines()
        .filter(|line| !line.contains("two"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&path, without).unwrap();
    assert!(!audit.page(0).unwrap().whole);
}

#[test]
fn whoever_is_refused_cannot_fill_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let audit = audit(&dir);
    for token in [None, Some("revoked")] {
        let due = |_: &u32| audit.is_due(Event::Refused, token).is_some();
        let written = (0..1_000).filter(due);
        // The minute may end meanwhile.
        assert!(written.count() <= 2 * LINES_PER_MINUTE as usize);
    }
    assert!(audit.is_due(Event::Refused, Some("another")).is_some());
    let poisoned = audit.is_due(Event::Poisoned, Some("revoked"));
    assert_eq!(poisoned, Some(0), "refusals leave no poison out");
}

/// Who pasted a whole token where its id belongs had its secret in the log.
#[test]
fn secrets_are_not_written_down_wherever_they_stand() {
    let secret = "0123456789abcdef".repeat(4);
    let what = format!("DELETE /v1/tokens/standin-0123456789ab-{secret}");
    let hidden = "DELETE /v1/tokens/standin-0123456789ab-***";
    assert_eq!(field(&what), hidden);
    assert_eq!(
        field(&format!("{what}/{secret}x")),
        format!("{hidden}/***x")
    );
    let lineage = "lineage 0123456789abcdef0123456789abcdef, point g@1";
    assert_eq!(field(lineage), lineage);
}

/// A log whose files are full after a few lines.
fn rotating(dir: &tempfile::TempDir) -> Audit {
    let mut audit = audit(dir);
    audit.files.bytes_max = 1_000;
    audit
}

fn numbers(page: &AuditPage) -> Vec<u64> {
    page.lines.iter().map(|line| line.n).collect()
}

fn names(dir: &tempfile::TempDir) -> Vec<String> {
    let all = fs::read_dir(dir.path().join("state")).unwrap();
    let names = all.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("audit.log")).collect();
    names.sort();
    names
}

/// The log grew for ever: whoever was refused again and again filled the disk in the end.
#[test]
fn full_files_get_other_names_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let audit = rotating(&dir);
    for n in 1..=100 {
        audit.write(refused("a call")).unwrap();
        let page = audit.page(n - 1).unwrap();
        assert!(page.whole && numbers(&page) == [n], "{n}: {page:?}");
    }
    let kept = names(&dir);
    assert_eq!(kept.len(), 1 + files::OLDER_MAX, "{kept:?}");
    let page = audit.page(0).unwrap();
    let (first, last) = (page.lines[0].n, page.lines.last().unwrap().n);
    assert!(page.whole && first > 1 && last == 100);
    assert!(numbers(&page).into_iter().eq(first..=100));
    for after in first..100 {
        let page = audit.page(after).unwrap();
        assert!(page.whole && numbers(&page).into_iter().eq(after + 1..=100));
    }
}

#[test]
fn a_rotation_that_was_broken_off_is_gone_on_with_and_loses_no_line() {
    for moved in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let audit = rotating(&dir);
        while !names(&dir).contains(&"audit.log.3".to_owned()) {
            audit.write(refused("a call")).unwrap();
        }
        let written = audit.page(0).unwrap().lines.len() as u64;
        let path = |name: String| dir.path().join("state").join(name);
        for number in (0..4_usize).rev().take(moved) {
            let from = match number {
                0 => "audit.log".to_owned(),
                _ => format!("audit.log.{number}"),
            };
            fs::rename(path(from), path(format!("audit.log.{}", number + 1))).unwrap();
        }
        for _ in 0..20 {
            audit.write(refused("a call")).unwrap();
        }
        let page = audit.page(0).unwrap();
        assert!(page.whole, "{moved}: {:?}", names(&dir));
        assert!(numbers(&page).into_iter().eq(1..=written + 20));
    }
}

#[test]
fn a_file_that_was_changed_or_removed_shows() {
    let spoil: [fn(&std::path::Path); 3] = [
        |path| fs::remove_file(path).unwrap(),
        |path| {
            fs::write(
                path,
                fs::read_to_string(path)
                    .unwrap()
                    .replace("a call", "another"),
            )
            .unwrap()
        },
        |path| fs::write(path, "").unwrap(),
    ];
    for (spoil, name) in spoil
        .into_iter()
        .flat_map(|s| [(s, "audit.log.1"), (s, "audit.log.3")])
    {
        let dir = tempfile::tempdir().unwrap();
        let audit = rotating(&dir);
        while !names(&dir).contains(&"audit.log.3".to_owned()) {
            audit.write(refused("a call")).unwrap();
        }
        assert!(audit.page(0).unwrap().whole);
        spoil(&dir.path().join("state").join(name));
        assert!(!audit.page(0).unwrap().whole, "{name}");
    }
}
