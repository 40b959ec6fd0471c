//! The way down: what is in work is finished and answered, and nothing else is begun.

mod common;

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use common::Fixture;
use common::client::*;
use common::gate::GATED;
use export::{DrainReport, Listen, Server, ServerOptions};

#[test]
fn requests_in_work_are_answered_and_idle_clients_see_the_end() {
    let (fixture, device) = Fixture::with(ServerOptions::default());
    let Fixture { server, path, .. } = &fixture;
    assert_eq!(
        server.local_addresses()[0].to_string(),
        format!("unix:{}", path.display())
    );
    let mut idle = fixture.connect().go(Framing::Simple, &[]);
    let mut greeting = fixture.connect();
    let mut busy = fixture.connect().go(Framing::Simple, &[]);
    busy.send_write(0, 1, GATED, &[4; 512]);
    device.await_waiting(1);
    let Fixture {
        server, path, dir, ..
    } = fixture;
    let drain = thread::spawn(move || server.drain(PATIENCE));
    idle.assert_closed();
    greeting.assert_closed();
    assert!(!path.exists());
    assert!(UnixStream::connect(&path).is_err());
    device.open_gate();
    assert_eq!(busy.reply(|_| 0), (1, Reply::default()));
    busy.assert_closed();
    let report = drain.join().expect("it does not panic");
    assert_eq!((report.connections, report.aborted), (3, 0));
    drop(dir);
}

#[test]
fn a_request_that_never_ends_is_cut_off_at_the_deadline() {
    let (fixture, device) = Fixture::with(ServerOptions::default());
    let mut busy = fixture.connect().go(Framing::Simple, &[]);
    busy.send_request(0, READ, 1, GATED, 512);
    device.await_waiting(1);
    let report = fixture.server.drain(Duration::from_millis(50));
    let expected = DrainReport {
        connections: 1,
        aborted: 1,
    };
    assert_eq!(report, expected);
    busy.assert_closed();
    device.open_gate();
}

#[test]
fn an_address_in_use_is_refused_and_a_dropped_server_frees_it() {
    let fixture = Fixture::new();
    let listen = [Listen::Unix(fixture.path.clone())];
    let start = || Server::start(&listen, fixture.exports.clone(), ServerOptions::default());
    assert!(start().is_err());
    drop(fixture.server);
    assert!(start().is_ok());
}

#[test]
fn tcp_serves_on_a_free_port_and_says_which() {
    let fixture = Fixture::new();
    let listen = ["tcp:127.0.0.1:0".parse().expect("an address")];
    let server = Server::start(&listen, fixture.exports.clone(), ServerOptions::default());
    let server = server.expect("a free port");
    let address = server.local_addresses()[0].to_string();
    let address = address.strip_prefix("tcp:").expect("TCP");
    let mut stream = std::net::TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("legal");
    let mut greeting = [0; 18];
    std::io::Read::read_exact(&mut stream, &mut greeting).expect("a greeting");
    assert_eq!(&greeting[..8], b"NBDMAGIC");
}
