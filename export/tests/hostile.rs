//! Clients that lie, stall, flood and vanish harm only themselves.

mod common;

use std::io::Read;
use std::time::Duration;

use common::Fixture;
use common::client::*;
use common::gate::{GATED, PANICKING};
use export::{Limits, ServerOptions};

fn limited(limits: Limits) -> ServerOptions {
    ServerOptions {
        limits,
        ..ServerOptions::default()
    }
}

#[test]
fn a_handshake_that_takes_too_long_is_ended() {
    let limits = Limits {
        handshake_max: Duration::from_millis(200),
        ..Limits::default()
    };
    let (fixture, _) = Fixture::with(limited(limits));
    let mut silent = Client::silent(&fixture.path);
    silent.bytes(18);
    silent.assert_closed();
    // One that talks all the time, too.
    let mut chatty = fixture.connect();
    let mut sink = [0; 4096];
    let ended = (0..10_000_000).any(|_| {
        let list = b"IHAVEOPT\0\0\0\x03\0\0\0\0";
        let gone = std::io::Write::write_all(&mut chatty.stream, list).is_err();
        gone || chatty.stream.read(&mut sink).is_ok_and(|n| n == 0)
    });
    assert!(ended);
    // In transmission a client may be silent.
    let mut client = fixture.connect().go(Framing::Simple, &[]);
    silent = Client::silent(&fixture.path);
    silent.bytes(18);
    silent.assert_closed();
    assert_eq!(client.read(0, 512), [0; 512]);
}

#[test]
fn handshakes_and_connections_have_caps_and_room_comes_back() {
    let limits = Limits {
        handshakes_max: 2,
        connections_max: 3,
        ..Limits::default()
    };
    let (fixture, _) = Fixture::with(limited(limits));
    let one = fixture.connect();
    let two = fixture.connect();
    Client::silent(&fixture.path).assert_closed();
    let mut one = one.go(Framing::Simple, &[]);
    // Answered: the server, too, has left the handshake behind.
    assert_eq!(one.read(0, 512), [0; 512]);
    let three = fixture.connect();
    Client::silent(&fixture.path).assert_closed();
    drop((one, two, three));
    // The server sees the ends in its own time.
    let connected = (0..1000).any(|_| {
        let mut client = Client::silent(&fixture.path);
        let mut byte = [0];
        client.stream.read(&mut byte).is_ok_and(|n| n == 1)
    });
    assert!(connected);
}

#[test]
fn a_client_that_stops_in_the_middle_of_a_request_is_cut_off() {
    let limits = Limits {
        stall_max: Duration::from_millis(100),
        ..Limits::default()
    };
    let (fixture, _) = Fixture::with(limited(limits));
    let mut other = fixture.connect().go(Framing::Simple, &[]);
    let mut client = fixture.connect().go(Framing::Simple, &[]);
    let mut half = client.request(0, WRITE, 1, 0, 4096);
    half.extend([1; 100]);
    client.send(&half);
    client.assert_closed();
    let mut client = fixture.connect().go(Framing::Simple, &[]);
    client.send(&[0x25, 0x60]);
    client.assert_closed();
    // Longer than the stall limit without a request is no stall.
    assert_eq!(other.read(0, 512), [0; 512]);
}

#[test]
fn a_client_that_takes_no_replies_is_cut_off_and_harms_nobody() {
    let limits = Limits {
        stall_max: Duration::from_millis(300),
        ..Limits::default()
    };
    let (fixture, _) = Fixture::with(limited(limits));
    let mut stalled = fixture.connect().go(Framing::Simple, &[]);
    for cookie in 0..32 {
        stalled.send_request(0, READ, cookie, 0, 1 << 20);
    }
    let mut other = fixture.connect().go(Framing::Simple, &[]);
    for _ in 0..100 {
        assert_eq!(other.read(0, 4096).len(), 4096);
    }
    // Reading would end the stall, so first the server must have given up.
    wait_for_hang_up(&stalled);
    let mut rest = Vec::new();
    // What fitted into the socket, and then the end.
    let _ = stalled.stream.read_to_end(&mut rest);
    assert!(rest.len() < 32 << 20);
    assert_eq!(other.read(0, 512), [0; 512]);
}

/// Until the other side has shut down, which needs no reading of data.
fn wait_for_hang_up(client: &Client) {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(&client.stream, PollFlags::RDHUP)];
    let patience = PATIENCE.try_into().expect("small");
    let ready = poll(&mut fds, Some(&patience)).expect("poll works");
    assert_eq!(ready, 1, "the server did not hang up");
}

#[test]
fn nonsense_in_transmission_closes() {
    let fixture = Fixture::new();
    let mut client = fixture.connect().go(Framing::Extended, &[]);
    client.send(&[0; 64]);
    client.assert_closed();
    // A compact request on an extended connection is out of step as well.
    let mut client = fixture.connect().go(Framing::Extended, &[]);
    client.framing = Framing::Simple;
    client.send_request(0, READ, 1, 0, 512);
    client.send(&[0; 64]);
    client.assert_closed();
    // A payload that would take for ever.
    let mut client = fixture.connect().go(Framing::Extended, &[]);
    client.send_request(1 << 5, WRITE, 1, 0, u64::MAX);
    client.assert_closed();
}

#[test]
fn a_client_that_vanishes_in_the_middle_harms_nobody() {
    let (fixture, device) = Fixture::with(ServerOptions::default());
    let mut other = fixture.connect().go(Framing::Simple, &[]);
    for _ in 0..20 {
        let mut client = fixture.connect().go(Framing::Structured, &[]);
        client.send_request(0, READ, 1, GATED, 512);
        client.send_request(0, READ, 2, 0, 8 << 20);
        let mut half = client.request(0, WRITE, 3, 0, 1 << 20);
        half.extend([1; 1000]);
        client.send(&half);
    }
    device.open_gate();
    assert_eq!(other.read(0, 512), [0; 512], "half a write is no write");
}

#[test]
fn a_device_that_panics_takes_its_connection_along_and_no_other() {
    let fixture = Fixture::new();
    let mut other = fixture.connect().go(Framing::Simple, &[]);
    let mut client = fixture.connect().go(Framing::Simple, &[]);
    client.send_request(0, READ, 1, PANICKING, 512);
    client.assert_closed();
    assert_eq!(other.read(0, 512), [0; 512]);
    fixture.connect().go(Framing::Simple, &[]);
}

#[test]
fn payload_in_memory_is_bounded_by_not_reading_on() {
    let (fixture, device) = Fixture::with(ServerOptions::default());
    let mut client = fixture.connect().go(Framing::Simple, &[]);
    // Each holds 30 MiB at the gate, so the third must wait outside.
    for cookie in 0..3 {
        client.send_request(0, READ, cookie, GATED, 30 << 20);
    }
    device.await_waiting(2);
    let mut other = fixture.connect().go(Framing::Simple, &[]);
    for _ in 0..50 {
        other.read(0, 4096);
    }
    assert_eq!(device.most_waiting(), 2);
    device.open_gate();
    let mut cookies: Vec<u64> = (0..3).map(|_| client.reply(|_| 30 << 20).0).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, [0, 1, 2]);
}
