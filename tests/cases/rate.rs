//! Option `rate` among many: nobody who shares the limit keeps the others from their turns.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::support::program::{Checkpoint, Launch, Program, forward_url};
use crate::support::servers::{TcpServer, UdpServer, drain, echo_both};
use crate::support::visitors::{
    dial, exchange, exchange_datagram, receive_datagram, try_exchange_datagram, udp_visitor,
};
use crate::support::{DEADLINE, eventually, free_address};

/// How long a datagram may wait for its turn.
const PATIENCE: Duration = Duration::from_secs(3);

/// Bytes of a datagram on an ordinary network.
const DATAGRAM_SIZE: u16 = 1400;

/// Sends without end, until the connection is shut down.
fn flood(mut stream: &TcpStream) {
    let chunk = vec![0; 64 * 1024];
    while stream.write(&chunk).is_ok() {}
}

/// Asserts that of six new visitors over UDP at least five get their echo: one datagram may
/// be lost.
#[track_caller]
fn assert_echoes(address: SocketAddr) {
    let answered = (0..6)
        .filter(|_| try_exchange_datagram(&udp_visitor(address), b"ping", PATIENCE))
        .count();
    assert!(answered >= 5, "{answered} of 6 visitors got an answer");
}

/// Sends `size` bytes in datagrams, many with one call where the system can do that.
fn send_burst(socket: &UdpSocket, size: usize) {
    const BLOCK: usize = DATAGRAM_SIZE as usize * 40;
    // Without it the burst has fewer and larger datagrams.
    let _ = setsockopt(socket, sockopt::UdpGsoSegment, &i32::from(DATAGRAM_SIZE));
    for _ in 0..size / BLOCK {
        // What does not fit is lost on its way.
        let _ = socket.send(&[b'z'; BLOCK]);
    }
}

/// Checks that datagrams are answered while connections, served by `serve` and used by `visit`,
/// take all they can get of the rate, which `is_busy` tells.
#[track_caller]
fn assert_echoes_beside(
    serve: impl Fn(&TcpStream) + Send + Sync + 'static,
    visit: impl Fn(&TcpStream) + Sync,
    is_busy: impl Fn(&Checkpoint) -> bool,
) {
    const FLOWS: usize = 4;
    let address = free_address();
    let _tcp = TcpServer::start_at(address, serve);
    let _udp = UdpServer::echo_at(address);
    let program = Launch::new(&[&forward_url(address, "rate=8")])
        .env("NP_REPORT_INTERVAL", "100ms")
        .start();
    let flows = [(); FLOWS].map(|()| dial(program.tcp_address()));
    thread::scope(|scope| {
        for flow in &flows {
            scope.spawn(|| visit(flow));
        }
        program.wait_checkpoint(is_busy);
        let outcome = std::panic::catch_unwind(|| assert_echoes(program.udp_address()));
        for flow in &flows {
            let _ = flow.shutdown(Shutdown::Both);
        }
        outcome.unwrap();
    });
}

#[test]
fn saturated_uploads_leave_datagrams_their_turns() {
    let serve = |stream: &TcpStream| drop(drain(stream));
    assert_echoes_beside(serve, flood, |checkpoint| {
        checkpoint.tcp_received > 1_000_000
    });
}

#[test]
fn saturated_downloads_leave_datagrams_their_turns() {
    let visit = |stream: &TcpStream| drop(drain(stream));
    assert_echoes_beside(flood, visit, |checkpoint| checkpoint.tcp_sent > 1_000_000);
}

#[test]
fn target_that_floods_one_visitor_leaves_the_others_their_replies() {
    let is_over = Arc::new(AtomicBool::new(false));
    let has_ended = Arc::clone(&is_over);
    // Sends much more than the rate to whoever asks for it; an echo to the others.
    let target = UdpServer::start_at(
        SocketAddr::from(([127, 0, 0, 1], 0)),
        move |socket, datagram, sender| {
            if datagram != b"flood" {
                let _ = socket.send_to(datagram, sender);
                return;
            }
            let (socket, has_ended) = (socket.try_clone().unwrap(), Arc::clone(&has_ended));
            thread::spawn(move || {
                while !has_ended.load(Ordering::SeqCst) {
                    for _ in 0..40 {
                        let _ = socket.send_to(&[b'f'; DATAGRAM_SIZE as usize], sender);
                    }
                    thread::sleep(Duration::from_millis(5));
                }
            });
        },
    );
    let program = Program::forward_to(target.address(), "rate=8");
    let flooded = udp_visitor(program.udp_address());
    flooded.send(b"flood").unwrap();
    // More than a second's worth, so that it has begun in earnest.
    for _ in 0..800 {
        receive_datagram(&flooded);
    }
    let outcome = std::panic::catch_unwind(|| assert_echoes(program.udp_address()));
    is_over.store(true, Ordering::SeqCst);
    outcome.unwrap();
}

#[test]
fn burst_of_datagrams_silences_no_connection() {
    const BURST: usize = 3_000_000;
    // A burst that is let in whole takes its 24 seconds.
    const SILENCE_MAX: Duration = Duration::from_secs(4);
    let address = free_address();
    let _tcp = TcpServer::echo_at(address);
    let _udp = UdpServer::start_at(address, |_, _, _| {});
    let program = Program::forward_to(address, "rate=1");
    let open = dial(program.tcp_address());
    exchange(&open, b"before");
    let visitor = udp_visitor(program.udp_address());
    send_burst(&visitor, BURST);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        let asked_at = Instant::now();
        exchange(&open, b"x");
        let silence = asked_at.elapsed();
        assert!(silence < SILENCE_MAX, "no answer for {silence:?}");
    }
}

#[test]
fn burst_of_replies_silences_no_connection() {
    const BURST: usize = 3_000_000;
    const SILENCE_MAX: Duration = Duration::from_secs(4);
    let address = free_address();
    let _tcp = TcpServer::echo_at(address);
    let _udp = UdpServer::start_at(address, |socket, _, sender| {
        // A socket of its own, which may be connected.
        let burst = socket.try_clone().unwrap();
        burst.connect(sender).unwrap();
        send_burst(&burst, BURST);
    });
    let program = Program::forward_to(address, "rate=1");
    let open = dial(program.tcp_address());
    exchange(&open, b"before");
    let visitor = udp_visitor(program.udp_address());
    visitor.send(b"burst").unwrap();
    receive_datagram(&visitor);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        let asked_at = Instant::now();
        exchange(&open, b"x");
        let silence = asked_at.elapsed();
        assert!(silence < SILENCE_MAX, "no answer for {silence:?}");
    }
}

#[test]
fn datagrams_keep_to_the_rate_without_losing_what_fits_the_buffers() {
    const COUNT: usize = 100;
    let (_tcp, udp) = echo_both();
    let program = Program::forward_to(udp.address(), "rate=1");
    let visitor = udp_visitor(program.udp_address());
    exchange_datagram(&visitor, b"first");
    let began = Instant::now();
    for index in 0..COUNT {
        visitor.send(&[u8::try_from(index).unwrap(); 1250]).unwrap();
    }
    for index in 0..COUNT {
        let expected = [u8::try_from(index).unwrap(); 1250];
        assert!(receive_datagram(&visitor) == expected, "datagram {index}");
    }
    // 125,000 bytes at 125,000 bytes a second.
    let elapsed = began.elapsed();
    assert!(elapsed > Duration::from_millis(850), "took {elapsed:?}");
    assert!(elapsed < DEADLINE / 4, "took {elapsed:?}");
}

#[test]
fn visitors_that_wait_for_their_turn_are_not_idle() {
    const UPLOADS: usize = 100;
    const WINDOW: Duration = Duration::from_secs(3);
    let target = TcpServer::start(|stream| drop(drain(stream)));
    let url = forward_url(target.address(), "rate=1&read=500ms&log=debug");
    let program = Launch::new(&[&url])
        .env("NP_REPORT_INTERVAL", "100ms")
        .start();
    let uploads: Vec<TcpStream> = (0..UPLOADS).map(|_| dial(program.tcp_address())).collect();
    thread::scope(|scope| {
        for upload in &uploads {
            scope.spawn(|| flood(upload));
        }
        let began = Instant::now();
        let mut ended = Vec::new();
        eventually("the end of the window", || {
            ended = program.lines();
            ended.retain(|line| line.contains("disconnected"));
            (began.elapsed() > WINDOW || !ended.is_empty()).then_some(())
        });
        for upload in &uploads {
            let _ = upload.shutdown(Shutdown::Both);
        }
        assert!(ended.is_empty(), "{ended:#?}");
    });
}
