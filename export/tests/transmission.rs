//! The transmission phase: right answers in every framing, errors that never cost the connection.

mod common;

use block::index;
use common::client::*;
use common::gate::{FAILING, FULL, GATED};
use common::{Fixture, SIZE};
use export::ServerOptions;
use proptest::prelude::*;

const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;
const PAYLOAD_LEN: u16 = 32;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize, u8),
    Zero(u64, u64, u16),
    Read(u64, usize),
}

/// Small offsets on a few pages, sector-aligned or not, so that steps overlap.
fn step() -> impl Strategy<Value = Step> {
    let at = prop_oneof![0..400_000_u64, (0..800_u64).prop_map(|sector| sector * 512)];
    let len = prop_oneof![
        1..100_000_usize,
        (1..200_usize).prop_map(|sectors| sectors * 512)
    ];
    prop_oneof![
        (at.clone(), len.clone(), any::<u8>())
            .prop_map(|(at, len, byte)| Step::Write(at, len, byte)),
        (
            at.clone(),
            1..200_000_u64,
            prop_oneof![Just(0), Just(NO_HOLE), Just(FUA)]
        )
            .prop_map(|(at, len, flags)| Step::Zero(at, len, flags)),
        (at, len).prop_map(|(at, len)| Step::Read(at, len)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_disk_behaves_as_a_vector(steps in proptest::collection::vec(step(), 1..40)) {
        for framing in FRAMINGS {
            let fixture = Fixture::new();
            let mut client = fixture.connect().go(framing, &[]);
            let mut model = vec![0; 1 << 20];
            for step in &steps {
                match *step {
                    Step::Write(at, len, byte) => {
                        let data: Vec<u8> = (0..len).map(|i| byte ^ i.to_le_bytes()[0]).collect();
                        prop_assert_eq!(client.write(at, &data), 0);
                        model[index(at)..][..len].copy_from_slice(&data);
                    }
                    Step::Zero(at, len, flags) => {
                        prop_assert_eq!(client.ask(flags, ZERO, at, len).errno, 0);
                        model[index(at)..][..index(len)].fill(0);
                    }
                    Step::Read(at, len) => {
                        prop_assert!(client.read(at, len) == model[index(at)..][..len]);
                    }
                }
            }
            prop_assert!(client.read(0, model.len()) == model);
        }
    }
}

#[test]
fn no_error_costs_the_connection() {
    for framing in FRAMINGS {
        let fixture = Fixture::new();
        let mut client = fixture.connect().go(framing, &[]);
        let (eio, einval, enospc, enotsup) = (5, 22, 28, 95);
        assert_eq!(client.ask(0, READ, SIZE, 512).errno, einval);
        assert_eq!(client.ask(0, READ, SIZE - 512, 1024).errno, einval);
        assert_eq!(client.ask(0, READ, u64::MAX - 100, 512).errno, einval);
        assert_eq!(client.ask(0, READ, 0, 0xffff_ffff).errno, einval);
        assert_eq!(client.ask(0, READ, FAILING, 512).errno, eio);
        assert_eq!(client.ask(0x80, READ, 0, 512).errno, einval);
        assert_eq!(client.ask(0, 99, 0, 512).errno, einval);
        assert_eq!(client.ask(0, TRIM, SIZE, 512).errno, enospc);
        assert_eq!(client.ask(0, ZERO, SIZE, 512).errno, enospc);
        assert_eq!(client.ask(FAST_ZERO, ZERO, 512, 512).errno, enotsup);
        assert_eq!(client.ask(0, CACHE, SIZE, 1).errno, einval);
        assert_eq!(client.ask(0, STATUS, 0, 512).errno, einval, "no context");
        assert_eq!(client.write(SIZE, &[1; 4096]), enospc);
        assert_eq!(client.write(FULL, &[1; 4096]), enospc);
        assert_eq!(client.write(0, &vec![1; (64 << 20) + 1]), enospc);
        assert_eq!(client.write(4096, &[9; 4096]), 0);
        assert_eq!(client.read(4096, 4096), [9; 4096]);
    }
}

#[test]
fn a_read_only_export_refuses_what_would_change_it() {
    let fixture = Fixture::read_only();
    let mut client = fixture
        .connect()
        .go(Framing::Extended, &["base:allocation"]);
    let eperm = 1;
    assert_eq!(client.write(0, &[1; 512]), eperm);
    assert_eq!(client.ask(0, ZERO, 0, 512).errno, eperm);
    assert_eq!(client.ask(0, TRIM, 0, 512).errno, eperm);
    assert_eq!(client.ask(0, FLUSH, 0, 0).errno, 0);
    assert_eq!(client.read(0, 512), [0; 512]);
}

#[test]
fn sixty_four_mebibytes_fit_in_one_request() {
    for framing in FRAMINGS {
        let fixture = Fixture::new();
        let mut client = fixture.connect().go(framing, &[]);
        let data: Vec<u8> = (0..SIZE).map(|i| (i / 511).to_le_bytes()[0]).collect();
        assert_eq!(client.write(0, &data), 0);
        assert!(client.read(0, data.len()) == data);
    }
}

#[test]
fn holes_come_as_holes_unless_the_client_wants_one_piece() {
    for framing in [Framing::Structured, Framing::Extended] {
        let fixture = Fixture::new();
        let mut client = fixture.connect().go(framing, &[]);
        assert_eq!(client.write(65536, &[5; 65536]), 0);
        let (data, hole) = (1, 2);
        let all = client.ask(0, READ, 0, 3 * 65536);
        assert_eq!(all.kinds(), [hole, data, hole]);
        let one = client.ask(DF, READ, 0, 3 * 65536);
        assert_eq!(one.kinds(), [data]);
        assert_eq!(
            client.ask(0, READ, 0, 512).kinds(),
            [data],
            "small: not worth asking"
        );
        assert_eq!(
            client.ask(0, READ, 4096, 0).kinds(),
            [0_u16; 0],
            "nothing: no chunk"
        );
    }
}

#[test]
fn block_status_tells_holes_and_dirty_ranges() {
    for framing in [Framing::Structured, Framing::Extended] {
        let fixture = Fixture::new();
        let contexts = ["base:allocation", "qemu:dirty-bitmap:written"];
        let mut client = fixture.connect().go(framing, &contexts);
        assert_eq!(client.write(65536, &[5; 512]), 0);
        let reply = client.ask(0, STATUS, 0, 1 << 20);
        let rest = (1 << 20) - 2 * 65536;
        assert_eq!(
            extents(framing, &reply.chunks[0]),
            (0, vec![(65536, 3), (65536, 0), (rest, 3)])
        );
        assert_eq!(
            extents(framing, &reply.chunks[1]),
            (1, vec![(65536, 0), (65536, 1), (rest, 0)])
        );
        let reply = client.ask(REQ_ONE, STATUS, 512, 1 << 20);
        assert_eq!(
            extents(framing, &reply.chunks[0]),
            (0, vec![(65536 - 512, 3)])
        );
        assert_eq!(reply.chunks.len(), 2);
    }
}

/// Context id and extents of a block status chunk.
fn extents(framing: Framing, (kind, data): &(u16, Vec<u8>)) -> (u32, Vec<(u64, u64)>) {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    let id = u32::from_be_bytes(data[..4].try_into().expect("four"));
    let (expected, width, from) = match framing {
        Framing::Extended => (6, 8, 8),
        _ => (5, 4, 4),
    };
    assert_eq!(*kind, expected);
    let pairs = data[from..].chunks(2 * width);
    (
        id,
        pairs
            .map(|pair| (number(&pair[..width]), number(&pair[width..])))
            .collect(),
    )
}

#[test]
fn block_status_payload_chooses_contexts_and_nonsense_is_refused() {
    let fixture = Fixture::new();
    let contexts = ["base:allocation", "qemu:dirty-bitmap:written"];
    let mut client = fixture.connect().go(Framing::Extended, &contexts);
    let mut filtered = |len: u64, ids: &[u32]| {
        let mut payload = len.to_be_bytes().to_vec();
        ids.iter().for_each(|id| payload.extend(id.to_be_bytes()));
        let mut bytes = client.request(PAYLOAD_LEN, STATUS, 5, 4096, payload.len() as u64);
        bytes.extend(payload);
        client.send(&bytes);
        client.reply(|_| 0).1
    };
    let reply = filtered(65536, &[1]);
    assert_eq!(extents(Framing::Extended, &reply.chunks[0]).0, 1);
    assert_eq!(reply.chunks.len(), 1);
    for (len, ids) in [
        (65536, vec![]),
        (65536, vec![0, 0]),
        (65536, vec![9]),
        (0, vec![0]),
        (SIZE, vec![0]),
        (65536, vec![0, 1, 2]),
    ] {
        assert_eq!(filtered(len, &ids).errno, 22, "{len} {ids:?}");
    }
    // A payload where none belongs is read past.
    let mut bytes = client.request(PAYLOAD_LEN, READ, 6, 0, 1000);
    bytes.extend([0x55; 1000]);
    client.send(&bytes);
    assert_eq!(client.reply(|_| 0).1.errno, 22);
    assert_eq!(client.read(0, 512), [0; 512]);
}

#[test]
fn flush_and_fua_reach_the_device() {
    let (fixture, device) = Fixture::with(ServerOptions::default());
    let mut client = fixture.connect().go(Framing::Simple, &[]);
    assert_eq!(client.ask(0, FLUSH, 0, 0).errno, 0);
    assert_eq!(client.ask(FUA, FLUSH, 0, 0).errno, 0);
    assert_eq!(device.memory.flushes(), 2);
    assert_eq!(client.ask(FUA, ZERO, 0, 512).errno, 0);
    assert_eq!(client.ask(FUA, TRIM, 0, 65536).errno, 0);
    assert_eq!(client.ask(FUA, CACHE, 0, 65536).errno, 0);
}

#[test]
fn a_slow_request_is_overtaken() {
    let (fixture, device) = Fixture::with(ServerOptions::default());
    let mut client = fixture.connect().go(Framing::Simple, &[]);
    // Many quick ones first: the leader comes to expect more of them.
    for _ in 0..100 {
        client.read(0, 512);
    }
    client.send_request(0, READ, 1, GATED, 512);
    device.await_waiting(1);
    for cookie in 2..50 {
        client.send_request(0, READ, cookie, 0, 512);
        assert_eq!(client.reply(|_| 512).0, cookie);
    }
    device.open_gate();
    assert_eq!(client.reply(|_| 512).0, 1);
}

#[test]
fn sixteen_requests_are_in_work_at_once_and_the_rest_wait() {
    let (fixture, device) = Fixture::with(ServerOptions::default());
    let mut client = fixture.connect().go(Framing::Structured, &[]);
    for cookie in 0..40 {
        client.send_request(0, READ, cookie, GATED, 512);
    }
    device.await_waiting(16);
    device.open_gate();
    let mut cookies: Vec<u64> = (0..40).map(|_| client.reply(|_| 512).0).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..40).collect::<Vec<_>>());
    assert_eq!(device.most_waiting(), 16);
}

/// Requests that come in one piece are answered in one piece, unless one of them hangs: then those before
/// and behind it are answered all the same.
#[test]
fn a_burst_is_answered_but_for_the_request_that_hangs() {
    for framing in FRAMINGS {
        let (fixture, device) = Fixture::with(ServerOptions::default());
        let mut client = fixture.connect().go(framing, &[]);
        let burst = (0..20).flat_map(|cookie| match cookie {
            9 => client.request(0, READ, cookie, GATED, 512),
            odd if odd % 2 == 1 => client.request(0, READ, odd, odd * 4096, 512),
            even => {
                let flag = u16::from(framing == Framing::Extended) * PAYLOAD_LEN;
                let mut write = client.request(flag, WRITE, even, even * 4096, 512);
                write.extend([7; 512]);
                write
            }
        });
        client.send(&burst.collect::<Vec<u8>>());
        let data_len = |cookie: u64| if cookie % 2 == 1 { 512 } else { 0 };
        let mut answered: Vec<u64> = (0..19).map(|_| client.reply(data_len).0).collect();
        answered.sort_unstable();
        assert_eq!(
            answered,
            (0..20).filter(|cookie| *cookie != 9).collect::<Vec<_>>()
        );
        device.await_waiting(1);
        device.open_gate();
        assert_eq!(client.reply(data_len).0, 9);
        assert_eq!(client.read(2 * 4096, 512), [7; 512]);
    }
}

#[test]
fn disconnect_lets_requests_in_work_finish() {
    let (fixture, device) = Fixture::with(ServerOptions::default());
    let mut client = fixture.connect().go(Framing::Simple, &[]);
    client.send_write(0, 1, GATED, &[3; 512]);
    device.await_waiting(1);
    client.send_request(0, DISC, 0, 0, 0);
    device.open_gate();
    assert_eq!(client.reply(|_| 0).1.errno, 0);
    client.assert_closed();
    let mut again = fixture.connect().go(Framing::Simple, &[]);
    assert_eq!(again.read(GATED, 512), [3; 512]);
}

#[test]
fn a_write_on_one_connection_is_seen_and_flushed_by_another() {
    let (fixture, device) = Fixture::with(ServerOptions::default());
    let mut one = fixture.connect().go(Framing::Extended, &[]);
    let mut other = fixture.connect().go(Framing::Simple, &[]);
    assert_eq!(one.write(0, &[6; 4096]), 0);
    assert_eq!(other.read(0, 4096), [6; 4096]);
    assert_eq!(other.ask(0, FLUSH, 0, 0).errno, 0);
    assert_eq!(device.memory.flushes(), 1);
}
