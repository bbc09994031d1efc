//! One stranger who sends more than he is answered, or hangs up at a bad moment.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nodepass::wire::handshake::client::AwaitChallenge;
use rustix::process::Signal;

use crate::support::ends::{End, KEY, QUICK, Reverse};
use crate::support::eventually;
use crate::support::peer::{handshake, key, random};
use crate::support::servers::{TcpServer, reset_on_close};
use crate::support::visitors::{dial, exchange};

/// How soon handshakes and visitors are through, whatever a stranger does.
const SOON: Duration = Duration::from_secs(3);

/// How soon a server ends that has nothing to wait for.
const PROMPT: Duration = Duration::from_secs(5);

/// Most requests of one connection that are answered.
const ANSWERS_MAX: usize = 3;

/// Bytes after which a flood has begun.
const BEGUN_SIZE: u64 = 64 * 1024;

/// One connection on which a stranger sends without end, and reads what is answered. Dropping it
/// ends it.
struct Flood {
    stream: TcpStream,
    sent: Arc<AtomicU64>,
    is_cut: Arc<AtomicBool>,
    writer: Option<JoinHandle<()>>,
    reader: Option<JoinHandle<Vec<u8>>>,
}

impl Flood {
    /// Sends `opening`, then `more` again and again; waits until it is on its way.
    #[track_caller]
    fn start(server: SocketAddr, opening: &[u8], more: Vec<u8>) -> Self {
        let stream = dial(server);
        (&stream).write_all(opening).unwrap();
        let (sent, is_cut) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let writer = thread::spawn({
            let mut stream = stream.try_clone().unwrap();
            let (sent, is_cut) = (Arc::clone(&sent), Arc::clone(&is_cut));
            move || {
                while let Ok(count) = stream.write(&more) {
                    sent.fetch_add(u64::try_from(count).unwrap(), Ordering::SeqCst);
                }
                is_cut.store(true, Ordering::SeqCst);
            }
        });
        let reader = thread::spawn({
            let mut stream = stream.try_clone().unwrap();
            move || {
                let mut answers = Vec::new();
                // However it ends.
                let _ = stream.read_to_end(&mut answers);
                answers
            }
        });
        let flood = Self {
            stream,
            sent,
            is_cut,
            writer: Some(writer),
            reader: Some(reader),
        };
        eventually("a flood", || flood.has_begun().then_some(()));
        flood
    }

    fn has_begun(&self) -> bool {
        self.is_cut() || self.sent.load(Ordering::SeqCst) >= BEGUN_SIZE
    }

    /// Whether the server has put an end to it.
    fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::SeqCst)
    }

    /// Ends it; how many requests have been answered.
    fn finish(mut self) -> usize {
        let _ = self.stream.shutdown(Shutdown::Both);
        let answers = self.reader.take().unwrap().join().unwrap();
        let answers = String::from_utf8_lossy(&answers).into_owned();
        answers.matches("HTTP/1.1 ").count()
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        // The server may have ended it already.
        let _ = self.stream.shutdown(Shutdown::Both);
        let _ = self.writer.take().unwrap().join();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The first request of a native handshake.
fn hello() -> Vec<u8> {
    AwaitChallenge::start(key(KEY), "none", random(), None).0
}

fn hellos() -> (Vec<u8>, Vec<u8>) {
    (Vec::new(), hello().repeat(200))
}

/// A request that is answered once and for all, then anything.
fn afterthoughts() -> (Vec<u8>, Vec<u8>) {
    let request = b"GET /favicon.ico HTTP/1.1\r\nHost: none\r\n\r\n".to_vec();
    (request, vec![b'x'; 256 * 1024])
}

/// Others do not mind such a flood, and neither does the end of the server.
#[track_caller]
fn check_flood(make: fn() -> (Vec<u8>, Vec<u8>), answers_max: usize) {
    let target = TcpServer::echo();
    let mut both = Reverse::start(target.address(), "", "min=4");
    let start = || {
        let (opening, more) = make();
        Flood::start(both.tunnel, &opening, more)
    };
    let flood = start();
    let began = Instant::now();
    handshake(both.tunnel, &key(KEY)).unwrap();
    for _ in 0..10 {
        exchange(&dial(both.entry), b"served all the same");
    }
    let elapsed = began.elapsed();
    assert!(elapsed < SOON, "a handshake and visitors took {elapsed:?}");
    eventually("an end of the flood", || flood.is_cut().then_some(()));
    let answers = flood.finish();
    assert!(
        (1..=answers_max).contains(&answers),
        "{answers} requests have been answered"
    );

    let _flood = start();
    let signalled_at = Instant::now();
    both.server.signal(Signal::TERM);
    assert_eq!(both.server.wait_exit(), 0);
    let elapsed = signalled_at.elapsed();
    assert!(elapsed < PROMPT, "the end took {elapsed:?}");
}

#[test]
fn handshake_requests_without_end_on_one_connection_disturb_nobody() {
    check_flood(hellos, ANSWERS_MAX);
}

#[test]
fn bytes_without_end_after_the_last_answer_disturb_nobody() {
    check_flood(afterthoughts, 1);
}

#[test]
fn reset_while_an_answer_is_held_back_keeps_nobody_busy() {
    const WRONG_KEYS: usize = 7;
    const WATCHED: Duration = Duration::from_millis(1000);
    const BUSY: Duration = Duration::from_millis(300);
    // Answers may be held back for half as long.
    let long = [("NP_HANDSHAKE_TIMEOUT", "5s"), ("NP_REPORT_INTERVAL", "5s")];
    let env = [QUICK, &long].concat();
    let server = End::server("127.0.0.1:0", "127.0.0.1:0", "mode=1", &env);
    let tunnel = server.tunnel_address();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: none\r\nAuthorization: Bearer {}\r\n\r\n",
        "0".repeat(64)
    );
    let mut strangers: Vec<TcpStream> = Vec::new();
    for count in 1..=WRONG_KEYS {
        let mut stranger = dial(tunnel);
        stranger.write_all(request.as_bytes()).unwrap();
        server.wait_for_count("key is not ours", count);
        strangers.push(stranger);
    }
    for stranger in &strangers {
        reset_on_close(stranger);
    }
    let before = server.processor_time();
    drop(strangers);
    // Nothing but time tells whether it does nothing.
    thread::sleep(WATCHED);
    let used = server.processor_time().saturating_sub(before);
    assert!(used < BUSY, "{used:?} of processor time");
    // It has not merely stopped.
    handshake(tunnel, &key(KEY)).unwrap();
}
