//! How much memory the process has for itself.

use std::fs;

/// Bytes that are no file's: buffers, indexes, stacks. 0 where the kernel does not say.
pub(crate) fn private_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse(&status)
}

fn parse(status: &str) -> u64 {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_it() {
        assert_eq!(parse("VmRSS:\t  9 kB\nRssAnon:\t    2048 kB\n"), 2 << 20);
        assert_eq!((parse(""), parse("RssAnon: x kB")), (0, 0));
        assert!(private_bytes() > 0);
    }
}
