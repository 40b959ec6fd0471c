//! The option phase: every option answered, nonsense refused, and always in step.

mod common;

use common::Fixture;
use common::client::*;

#[test]
fn unknown_malformed_and_huge_options_are_refused_and_the_next_is_understood() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    for code in [0, 4, 12, 99, u32::MAX] {
        assert_eq!(client.outcome(code, b"some data"), UNSUP, "option {code}");
    }
    assert_eq!(client.outcome(OPT_LIST, b"x"), INVALID);
    assert_eq!(client.outcome(OPT_GO, b""), INVALID);
    assert_eq!(
        client.outcome(OPT_GO, &[0xff; 20]),
        TOO_BIG,
        "a name of 4 GiB"
    );
    assert_eq!(
        client.outcome(OPT_INFO, &info_data(&"x".repeat(5000), &[])),
        TOO_BIG
    );
    assert_eq!(
        client.outcome(OPT_INFO, &[0, 0, 0, 1, 0xff, 0, 0]),
        INVALID,
        "not UTF-8"
    );
    assert_eq!(
        client.outcome(OPT_SET_META, b"\0\0\0\0\xff\xff\xff\xff"),
        INVALID
    );
    assert_eq!(client.outcome(77, &vec![0; 5 << 20]), TOO_BIG);
    assert_eq!(client.outcome(OPT_STARTTLS, &[]), UNSUP);
    assert_eq!(client.outcome(OPT_STRUCTURED, b"x"), INVALID);
    assert_eq!(client.outcome(OPT_GO, &info_data("nobody", &[])), UNKNOWN);
    let mut client = client.go(Framing::Structured, &[]);
    assert_eq!(client.read(0, 512), [0; 512]);
}

#[test]
fn go_tells_size_flags_block_sizes_name_and_description() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    let replies = client.option(OPT_INFO, &info_data("", &[1, 2, 3, 1000]));
    let info = |kind: u16| -> Vec<u8> {
        let found = replies
            .iter()
            .find(|(_, data)| data.starts_with(&kind.to_be_bytes()));
        found.expect("told").1[2..].to_vec()
    };
    assert_eq!(info(0)[..8], common::SIZE.to_be_bytes());
    assert_eq!(info(1), b"disk");
    assert_eq!(info(2), b"of tests");
    let sizes = [1_u32, 4096, 32 << 20].map(u32::to_be_bytes).concat();
    assert_eq!(info(3), sizes);
    assert_eq!(replies.last().expect("the end").0, ACK);
}

#[test]
fn transmission_flags_follow_the_device_and_the_mode() {
    let flags = |fixture: &Fixture, framing| {
        let mut client = fixture.connect();
        client.negotiate(framing);
        let replies = client.option(OPT_INFO, &info_data("", &[]));
        u16::from_be_bytes(replies[0].1[10..12].try_into().expect("two"))
    };
    let writable = Fixture::new();
    assert_eq!(flags(&writable, Framing::Simple), 0b0_1101_0110_1101);
    assert_eq!(flags(&writable, Framing::Structured), 0b0_1101_1110_1101);
    assert_eq!(flags(&writable, Framing::Extended), 0b1_1101_1110_1101);
    assert_eq!(
        flags(&Fixture::read_only(), Framing::Simple),
        0b0_0101_0000_1111
    );
}

#[test]
fn export_name_works_for_old_clients_and_closes_on_unknown_names() {
    let fixture = Fixture::new();
    let mut client = Client::silent(&fixture.path);
    client.bytes(18);
    client.send(&1_u32.to_be_bytes());
    client.send_option(OPT_EXPORT_NAME, b"disk");
    let reply = client.bytes(8 + 2 + 124);
    assert_eq!(reply[..8], common::SIZE.to_be_bytes());
    assert_eq!(reply[10..], [0; 124]);
    assert_eq!(client.write(512, &[7; 512]), 0);
    assert_eq!(client.read(512, 512), [7; 512]);

    let mut client = fixture.connect();
    client.send_option(OPT_EXPORT_NAME, b"nobody");
    client.assert_closed();
}

#[test]
fn list_names_every_export_as_they_come_and_go() {
    let fixture = Fixture::new();
    let names = |client: &mut Client| -> Vec<String> {
        let replies = client.option(OPT_LIST, &[]);
        let servers = replies.iter().filter(|(kind, _)| *kind == 2);
        servers
            .map(|(_, data)| {
                let len = u32::from_be_bytes(data[..4].try_into().expect("four")) as usize;
                String::from_utf8(data[4..4 + len].to_vec()).expect("text")
            })
            .collect()
    };
    let mut client = fixture.connect();
    assert_eq!(names(&mut client), ["disk"]);
    let disk = fixture.exports.find("disk").expect("it is there");
    let second = export::Export {
        name: "a second".to_owned(),
        description: String::new(),
        device: disk.device.clone(),
        bitmaps: Vec::new(),
        multi_conn: false,
    };
    fixture.exports.add(second).expect("free");
    assert_eq!(names(&mut client), ["a second", "disk"]);
    fixture.exports.remove("disk");
    assert_eq!(names(&mut client), ["a second"]);
    assert_eq!(client.outcome(OPT_GO, &info_data("", &[])), UNKNOWN);
    assert_eq!(client.outcome(OPT_GO, &info_data("a second", &[])), ACK);
}

#[test]
fn contexts_are_listed_by_namespace_and_set_by_name() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    assert_eq!(
        client.outcome(OPT_LIST_META, &meta_data("", &[])),
        INVALID,
        "not yet"
    );
    client.negotiate(Framing::Structured);
    let names = |client: &mut Client, code, queries: &[&str]| -> Vec<String> {
        let replies = client.option(code, &meta_data("disk", queries));
        assert_eq!(replies.last().expect("the end").0, ACK);
        let contexts = replies.iter().filter(|(kind, _)| *kind == 4);
        contexts
            .map(|(_, data)| String::from_utf8(data[4..].to_vec()).expect("text"))
            .collect()
    };
    let (base, dirty) = ("base:allocation", "qemu:dirty-bitmap:written");
    assert_eq!(names(&mut client, OPT_LIST_META, &[]), [base, dirty]);
    assert_eq!(names(&mut client, OPT_LIST_META, &["qemu:"]), [dirty]);
    assert_eq!(
        names(&mut client, OPT_LIST_META, &["qemu:dirty-bitmap:"]),
        [dirty]
    );
    assert_eq!(names(&mut client, OPT_LIST_META, &["base:", "x:y"]), [base]);
    assert_eq!(
        names(&mut client, OPT_SET_META, &["base:", "qemu:"]),
        [""; 0]
    );
    assert_eq!(
        names(&mut client, OPT_SET_META, &[dirty, dirty, base]),
        [base, dirty]
    );
    let of_nobody = meta_data("nobody", &[base]);
    assert_eq!(client.outcome(OPT_SET_META, &of_nobody), UNKNOWN);
    // The failed SET voided the one before.
    assert_eq!(client.outcome(OPT_GO, &info_data("", &[])), ACK);
    assert_eq!(client.ask(0, STATUS, 0, 4096).errno, 22);
}

#[test]
fn modes_only_rise() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    assert_eq!(client.outcome(OPT_STRUCTURED, &[]), ACK);
    assert_eq!(client.outcome(OPT_STRUCTURED, &[]), INVALID);
    assert_eq!(client.outcome(OPT_EXTENDED, &[]), ACK);
    assert_eq!(client.outcome(OPT_EXTENDED, &[]), INVALID);
    assert_eq!(client.outcome(OPT_STRUCTURED, &[]), EXT_HEADER_REQD);
}

#[test]
fn abort_is_acknowledged_and_nonsense_closes() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    assert_eq!(client.outcome(OPT_ABORT, &[]), ACK);
    client.assert_closed();

    let mut client = fixture.connect();
    client.send(b"GET / HTTP/1.1\r\n\r\n");
    client.assert_closed();

    let mut client = Client::silent(&fixture.path);
    client.bytes(18);
    client.send(&0x8000_0003_u32.to_be_bytes());
    client.assert_closed();

    let mut client = fixture.connect();
    client.send(b"IHAVEOPT\0\0\0\x63\xff\xff\xff\xff");
    client.assert_closed();
}
