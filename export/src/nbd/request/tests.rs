//! Requests: what is legal, what is refused with which errno, and how many bytes follow.

use proptest::prelude::*;

use super::*;

const SIZE: u64 = 256 << 20;

fn terms(mode: Mode) -> Terms {
    Terms {
        mode,
        size: SIZE,
        writable: true,
        contexts: 2,
    }
}

fn header(kind: u16, flags: u16, offset: u64, len: u64) -> Header {
    Header {
        flags,
        kind,
        cookie: 7,
        offset,
        len,
    }
}

fn refused(terms: Terms, header: Header) -> u32 {
    let verdict = terms.judge(header).verdict;
    verdict.expect_err("must be refused").errno.0
}

fn encode(mode: Mode, header: Header) -> Vec<u8> {
    let mut bytes = Vec::new();
    let magic = match mode {
        Mode::Extended => EXTENDED_REQUEST_MAGIC,
        _ => REQUEST_MAGIC,
    };
    bytes.extend(magic.to_be_bytes());
    bytes.extend(header.flags.to_be_bytes());
    bytes.extend(header.kind.to_be_bytes());
    bytes.extend(header.cookie.to_be_bytes());
    bytes.extend(header.offset.to_be_bytes());
    match mode {
        Mode::Extended => bytes.extend(header.len.to_be_bytes()),
        _ => bytes.extend(u32::try_from(header.len).expect("32 bits").to_be_bytes()),
    }
    bytes
}

fn any_header() -> impl Strategy<Value = Header> {
    let len = prop_oneof![0..10_000_u64, any::<u32>().prop_map(u64::from)];
    let offset = prop_oneof![0..SIZE, SIZE - 10..SIZE + 10, any::<u64>()];
    let parts = (0..10_u16, 0..128_u16, any::<u64>(), offset, len);
    parts.prop_map(|(kind, flags, cookie, offset, len)| Header {
        flags,
        kind,
        cookie,
        offset,
        len,
    })
}

const MODES: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];

proptest! {
    #[test]
    fn headers_come_back_as_they_were(header in any_header()) {
        for mode in MODES {
            let bytes = encode(mode, header);
            prop_assert_eq!(bytes.len(), Header::len_in(mode));
            prop_assert_eq!(Header::decode(mode, &bytes), Some(header));
        }
    }

    #[test]
    fn what_is_legal_lies_inside_the_device_and_fits_in_memory(
        header in any_header(), writable: bool, contexts in 0..3_usize,
    ) {
        for mode in MODES {
            let terms = Terms { mode, size: SIZE, writable, contexts };
            let judged = terms.judge(header);
            prop_assert_eq!(judged.cookie, header.cookie);
            let Ok(command) = judged.verdict else { continue };
            match command {
                Command::Read { range, .. } => {
                    prop_assert!(range.end() <= SIZE && range.len() <= 64 << 20);
                    prop_assert_eq!(judged.payload, 0);
                }
                Command::Write { range, .. } => {
                    prop_assert!(writable && range.end() <= SIZE && range.len() <= 64 << 20);
                    prop_assert_eq!(judged.payload, range.len());
                }
                Command::Trim { range, .. } | Command::WriteZeroes { range, .. } => {
                    prop_assert!(writable && range.end() <= SIZE);
                }
                Command::Cache { range } | Command::BlockStatus { range, .. } => {
                    prop_assert!(range.end() <= SIZE);
                }
                Command::FilteredStatus { .. } => {
                    prop_assert!(judged.payload <= 8 + 4 * contexts as u64);
                }
                Command::Flush | Command::Disconnect => {}
            }
        }
    }

    #[test]
    fn any_filter_is_decoded_or_refused(payload in proptest::collection::vec(any::<u8>(), 0..40)) {
        if let Ok(filter) = StatusFilter::decode(4096, SIZE, &payload) {
            prop_assert!(filter.range.end() <= SIZE);
        }
    }
}

#[test]
fn errors_are_those_of_the_specification() {
    let at = terms(Mode::Structured);
    let (einval, enospc, eperm) = (22, 28, 1);
    assert_eq!(refused(at, header(cmd::READ, 0, SIZE, 1)), einval);
    assert_eq!(refused(at, header(cmd::READ, 0, u64::MAX, 2)), einval);
    assert_eq!(refused(at, header(cmd::WRITE, 0, SIZE - 1, 2)), enospc);
    assert_eq!(refused(at, header(cmd::WRITE_ZEROES, 0, SIZE, 1)), enospc);
    assert_eq!(refused(at, header(cmd::TRIM, 0, SIZE, 1)), enospc);
    assert_eq!(refused(at, header(cmd::CACHE, 0, SIZE, 1)), einval);
    assert_eq!(refused(at, header(cmd::BLOCK_STATUS, 0, 0, 0)), einval);
    assert_eq!(refused(at, header(cmd::READ, 0, 0, 65 << 20)), einval);
    assert_eq!(refused(at, header(8, 0, 0, 0)), einval);
    assert_eq!(refused(at, header(99, 0, 0, 0)), einval);
    let read_only = Terms {
        writable: false,
        ..at
    };
    assert_eq!(refused(read_only, header(cmd::WRITE, 0, 0, 1)), eperm);
    assert_eq!(refused(read_only, header(cmd::TRIM, 0, 0, 1)), eperm);
    let no_contexts = Terms { contexts: 0, ..at };
    assert_eq!(
        refused(no_contexts, header(cmd::BLOCK_STATUS, 0, 0, 1)),
        einval
    );
}

#[test]
fn flags_are_legal_where_they_mean_something() {
    let all = [
        (cmd::READ, cmd_flag::DF),
        (cmd::WRITE_ZEROES, cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO),
        (cmd::BLOCK_STATUS, cmd_flag::REQ_ONE),
        (cmd::TRIM, 0),
        (cmd::FLUSH, 0),
        (cmd::CACHE, 0),
    ];
    for (kind, own) in all {
        for bit in 0..16 {
            let flag = 1 << bit;
            let legal = flag == cmd_flag::FUA || own & flag != 0;
            let verdict = terms(Mode::Structured)
                .judge(header(kind, flag, 0, 512))
                .verdict;
            assert_eq!(verdict.is_ok(), legal, "command {kind} flag {flag:#x}");
        }
    }
    assert_eq!(
        refused(terms(Mode::Simple), header(cmd::READ, cmd_flag::DF, 0, 1)),
        22
    );
}

#[test]
fn a_refused_write_still_has_its_payload() {
    for mode in MODES {
        let judged = terms(mode).judge(header(cmd::WRITE, 0x8000, SIZE, 1 << 31));
        assert!(judged.verdict.is_err());
        assert_eq!(judged.payload, 1 << 31);
    }
}

#[test]
fn only_extended_headers_give_other_commands_a_payload() {
    let with_payload = header(cmd::READ, cmd_flag::PAYLOAD_LEN, 0, 100);
    assert_eq!(terms(Mode::Structured).judge(with_payload).payload, 0);
    let judged = terms(Mode::Extended).judge(with_payload);
    assert_eq!(judged.payload, 100);
    assert!(judged.verdict.is_err());
}

#[test]
fn a_filter_has_at_least_one_context_and_none_twice() {
    let payload = |len: u64, ids: &[u32]| {
        let ids = ids.iter().flat_map(|id| id.to_be_bytes());
        len.to_be_bytes()
            .into_iter()
            .chain(ids)
            .collect::<Vec<u8>>()
    };
    let filter = |len, ids: &[u32]| StatusFilter::decode(0, SIZE, &payload(len, ids));
    assert_eq!(filter(4096, &[1, 0]).expect("legal").ids, [1, 0]);
    assert!(filter(4096, &[1, 1]).is_err());
    assert!(filter(SIZE + 1, &[1]).is_err());
    assert!(filter(0, &[1]).is_err());
    let with_len = |len| {
        let header = header(cmd::BLOCK_STATUS, cmd_flag::PAYLOAD_LEN, 0, len);
        terms(Mode::Extended).judge(header).verdict
    };
    assert!(with_len(12).is_ok() && with_len(16).is_ok());
    for bad in [0, 7, 8, 11, 13, 20, 1 << 40] {
        assert!(with_len(bad).is_err(), "{bad}");
    }
}
