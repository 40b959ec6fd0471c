//! What both ends of a connection agree on. `docs/formats/wire.md` draws the bytes.

/// Most bytes of an object that are sent in one answer.
pub(crate) const RANGE_MAX: u64 = 6 << 20;

/// The folder of commits.
pub(crate) const CATALOG: &str = "catalog";

/// The folder of what opens an encrypted store; its objects are worth nothing without a key or passphrase.
const KEYS: &str = "keys";

/// Folders whose objects lie in folders of numbers.
const NUMBERED: [&str; 3] = ["containers", "trees", "bundles"];

/// Whether it is the name of an object that readers may ask for.
pub(crate) fn is_object(name: &str) -> bool {
    match name.rsplit_once('/') {
        None => name == "format",
        Some((folder, plain)) => is_folder(folder) && is_plain(plain),
    }
}

/// Whether it is a folder with such objects.
pub(crate) fn is_folder(folder: &str) -> bool {
    match folder.split_once('/') {
        None => folder == CATALOG || folder == KEYS,
        Some((kind, number)) => {
            let digits = number.bytes().all(|byte| byte.is_ascii_hexdigit());
            NUMBERED.contains(&kind) && digits && (1..=16).contains(&number.len())
        }
    }
}

fn is_plain(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    (1..=64).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_readers_need_has_a_name() {
        for name in [
            "format",
            "catalog/commit-0000000000000001",
            "keys/slots-0000000000000001.copy",
            "containers/000000/00000000000a.con",
            "trees/000000/000000000001.tre",
            "bundles/000001/000000001001.bun",
        ] {
            assert!(is_object(name), "{name}");
        }
        for name in [
            "",
            "/",
            "lease/lock",
            "lease/epoch-0000000000000001",
            "headroom",
            "format/x",
            "catalog",
            "catalog/../format",
            "catalog/..",
            "containers/../lease/lock",
            "containers/000000/..",
            "containers/000000/x/y",
            "containers//x",
            "/containers/000000/x",
            "containers/000000/a b",
            "containers/000000/\u{e9}",
        ] {
            assert!(!is_object(name), "{name}");
        }
    }
}
