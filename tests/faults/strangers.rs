//! Strangers at the tunnel port, while visitors pass.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::each::for_each;
use crate::support::ends::{End, QUICK, Reverse};
use crate::support::eventually;
use crate::support::program::raise_descriptor_limit;
use crate::support::servers::TcpServer;
use crate::support::tunnel::{Combination, Flow};
use crate::support::visitors::{dial, exchange, read_to_end, try_dial};

const VISITORS: usize = 30;

#[track_caller]
fn check_visitors(entry: SocketAddr) {
    for _ in 0..VISITORS {
        exchange(&dial(entry), b"served all the same");
    }
}

/// Another client joins, and the first one has not lost its session.
#[track_caller]
fn check_clients(both: &Reverse, target: &TcpServer) {
    let address = target.address().to_string();
    let another = End::client(both.tunnel, &address, "min=2", QUICK);
    another.wait_up(1);
    check_visitors(both.entry);
    assert_eq!(both.client.ended_count(), 0);
    another.kill();
    // Until that is noticed, which by UDP is not at once, it costs visitors.
    both.server.wait_ended(1, &[]);
}

/// Each of `openings` is said by some strangers, who then wait; visitors and clients do not mind.
#[track_caller]
fn check_openings(combinations: &[Combination], openings: &[&[u8]]) {
    const EACH: usize = 10;
    for_each(combinations, |combination| {
        let target = TcpServer::echo();
        let both = Reverse::start(target.address(), &combination.server_options(), "min=4");
        let mut strangers = Vec::new();
        for opening in openings {
            for _ in 0..EACH {
                let mut stranger = dial(both.tunnel);
                stranger.write_all(opening).unwrap();
                strangers.push(stranger);
            }
        }
        check_visitors(both.entry);
        check_clients(&both, &target);
        // None of them is kept for longer than a handshake may take.
        for stranger in &strangers {
            read_to_end(stranger);
        }
    });
}

#[test]
fn garbage_on_the_tunnel_port_disturbs_nobody() {
    let long = vec![0xa5; 64 * 1024];
    check_openings(
        &Combination::plainest(Flow::Reverse),
        &[
            b"\0\0\0\0\0\0\0\0",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"\x05\x01\x00",
            b"GET /../../etc/passwd HTTP/1.1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
            b"NPC1 but no ticket that is as long as one has to be, or almost",
            &long[..1024],
        ],
    );
}

#[test]
fn silence_and_halves_on_the_tunnel_port_disturb_nobody() {
    check_openings(
        &Combination::plainest(Flow::Reverse),
        &[
            b"",
            b"G",
            b"GET / HTTP/1.1\r\nHost: no",
            b"NPC1",
            b"NPC1half a ticket",
        ],
    );
}

#[test]
#[cfg_attr(not(feature = "tls"), ignore = "needs the feature tls")]
fn tls_that_stops_in_the_middle_of_its_hello_disturbs_nobody() {
    // A record that announces 512 bytes of a hello, and the first few of them.
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let mut all = Combination::plain_and_encrypted();
    all.retain(|one| one.flow == Flow::Reverse);
    check_openings(&all, &[b"\x16", hello]);
}

#[test]
fn request_that_comes_byte_by_byte_disturbs_nobody() {
    for_each(&Combination::plainest(Flow::Reverse), |combination| {
        let target = TcpServer::echo();
        let both = Reverse::start(target.address(), &combination.server_options(), "min=4");
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let slow = || {
                let mut stranger = dial(both.tunnel);
                let request = b"GET / HTTP/1.1\r\nX: ".iter().chain([b'x'; 4096].iter());
                for byte in request {
                    if is_over.load(Ordering::SeqCst) || stranger.write_all(&[*byte]).is_err() {
                        return;
                    }
                    // Slow is what this stranger is.
                    thread::sleep(Duration::from_millis(10));
                }
            };
            for _ in 0..8 {
                scope.spawn(slow);
            }
            check_visitors(both.entry);
            check_clients(&both, &target);
            is_over.store(true, Ordering::SeqCst);
        });
    });
}

#[test]
fn five_hundred_open_connections_of_a_stranger_disturb_nobody() {
    for_each(&Combination::plainest(Flow::Reverse), |combination| {
        const STRANGERS: usize = 500;
        raise_descriptor_limit();
        let target = TcpServer::echo();
        let both = Reverse::start(target.address(), &combination.server_options(), "min=4");
        let strangers: Vec<TcpStream> = (0..STRANGERS).map(|_| dial(both.tunnel)).collect();
        check_visitors(both.entry);
        check_clients(&both, &target);
        drop(strangers);
        check_visitors(both.entry);
    });
}

#[test]
fn stranger_who_opens_and_closes_without_end_disturbs_nobody() {
    let target = TcpServer::echo();
    let both = Reverse::start(target.address(), "", "min=4");
    let memory = both.server.memory_size();
    let (is_over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    // A refusal would be an answer as well.
                    if let Ok(mut stranger) = try_dial(both.tunnel) {
                        let _ = stranger.write_all(b"NP");
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    // More than this machine can receive would show how fast it is, and no more.
                    thread::sleep(Duration::from_millis(1));
                }
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("a thousand strangers", || {
                exchange(&dial(both.entry), b"served all the same");
                (count.load(Ordering::SeqCst) >= 1000).then_some(())
            });
            check_clients(&both, &target);
        }));
        is_over.store(true, Ordering::SeqCst);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    let grown = both.server.memory_size().saturating_sub(memory);
    assert!(grown < 64 << 20, "memory has grown by {grown} bytes");
}

#[test]
fn enormous_words_of_a_stranger_make_no_enormous_lines() {
    let target = TcpServer::echo();
    let both = Reverse::start(target.address(), "", "min=4");
    let path = "\u{1b}[31m".repeat(1000);
    let requests = [
        format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(7000)),
        format!("GET /{path} HTTP/1.1\r\n\r\n"),
        format!("{} / HTTP/1.1\r\n\r\n", "M".repeat(7000)),
        format!(
            "GET / HTTP/1.1\r\nNodePass-Version: {}\r\n\r\n",
            "9".repeat(7000)
        ),
        format!(
            "GET / HTTP/1.1\r\nAuthorization: Bearer {}\r\n\r\n",
            "f".repeat(7000)
        ),
    ];
    for request in &requests {
        let mut stranger = dial(both.tunnel);
        stranger.write_all(request.as_bytes()).unwrap();
        read_to_end(&stranger);
    }
    check_visitors(both.entry);
    let longest = both.server.lines().iter().map(String::len).max().unwrap();
    assert!(longest < 1024, "a line of {longest} bytes");
    assert!(
        !both
            .server
            .lines()
            .iter()
            .any(|line| line.contains('\u{1b}'))
    );
}
