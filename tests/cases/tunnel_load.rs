//! Much at once through the tunnel: many visitors, long transfers, a rate that datagrams keep.

use std::net::{Shutdown, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::each::for_each;
use crate::support::pattern::{receive, send};
use crate::support::program::raise_descriptor_limit;
use crate::support::servers::{TcpServer, UdpServer, drain, set_deadline};
use crate::support::tunnel::{Combination, Flow, Place, Tls};
use crate::support::visitors::{
    ask, assert_closed, dial, exchange_datagram, receive_datagram, udp_visitor,
};

const MEBIBYTE: u64 = 1024 * 1024;

#[test]
fn thousand_datagram_sessions_at_once_get_their_own_answers() {
    const VISITORS: usize = 1000;
    // Many at once may overflow a buffer of the kernel, so whoever hears nothing asks again.
    const ATTEMPTS: usize = 5;
    const WAIT: Duration = Duration::from_secs(2);
    raise_descriptor_limit();
    for_each(&Flow::ALL, |flow| {
        let target = UdpServer::echo();
        let tunnel = Combination::plain(*flow).to(target.address()).start();
        let address = tunnel.udp();
        let visitors: Vec<UdpSocket> = (0..VISITORS).map(|_| udp_visitor(address)).collect();
        let message = |index: usize| format!("visitor {index}").into_bytes();
        for (index, visitor) in visitors.iter().enumerate() {
            visitor.send(&message(index)).unwrap();
        }
        for (index, visitor) in visitors.iter().enumerate() {
            visitor.set_read_timeout(Some(WAIT)).unwrap();
            let mut buffer = [0; 64];
            let mut answer = visitor.recv(&mut buffer).ok();
            if let Some(count) = answer {
                assert_eq!(buffer[..count], message(index));
            }
            for _ in 0..ATTEMPTS {
                if answer.is_some() {
                    break;
                }
                answer = ask(visitor, &message(index), WAIT).map(|bytes| {
                    assert_eq!(bytes, message(index));
                    bytes.len()
                });
            }
            assert!(answer.is_some(), "visitor {index} was not answered");
        }
        let expected = u64::try_from(VISITORS).unwrap();
        for program in tunnel.programs() {
            program.wait_checkpoint(|now| now.udp_sessions == expected);
        }
    });
}

#[test]
#[cfg_attr(not(feature = "tls"), ignore = "needs the feature tls")]
fn long_transfers_both_ways_leave_the_control_channel_prompt() {
    const SIZE: u64 = 64 * MEBIBYTE;
    const PING_MAX: u64 = 250;
    // So many intervals it has to last.
    const REPORTS: usize = 5;
    for_each(&Flow::ALL, |flow| {
        let target = TcpServer::start(|stream| {
            set_deadline(stream);
            thread::scope(|scope| {
                scope.spawn(|| {
                    send(stream, 2, SIZE);
                    stream.shutdown(Shutdown::Write).unwrap();
                });
                receive(stream, 1, SIZE);
            });
            let _ = drain(stream);
        });
        let combination = Combination::plain(*flow).with_tls(Tls::SelfSigned);
        let tunnel = combination.to(target.address()).report("300ms").start();
        let reports_counts = || tunnel.programs().map(|program| program.checkpoints().len());
        while reports_counts().iter().any(|count| *count < REPORTS) {
            let visitor = dial(tunnel.tcp());
            thread::scope(|scope| {
                scope.spawn(|| {
                    send(&visitor, 1, SIZE);
                    visitor.shutdown(Shutdown::Write).unwrap();
                });
                receive(&visitor, 2, SIZE);
            });
            assert_closed(&visitor);
        }
        for program in tunnel.programs() {
            let mut pings: Vec<u64> = program.checkpoints().iter().map(|now| now.ping).collect();
            pings.sort_unstable();
            // One late answer may be the machine's; half of them are not.
            let median = pings[pings.len() / 2];
            assert!(median < PING_MAX, "round trips: {pings:?} ms");
            assert_eq!(program.count(" ended: "), 0);
        }
    });
}

#[test]
fn datagrams_keep_to_the_rate_of_either_end_in_both_directions() {
    const WINDOW: Duration = Duration::from_secs(3);
    const SIZE: usize = 1000;
    for_each(&Place::all(), |place| {
        let reached = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&reached);
        let target = UdpServer::start_at(
            ([127, 0, 0, 1], 0).into(),
            move |socket, datagram, sender| {
                counter.fetch_add(u64::try_from(datagram.len()).unwrap(), Ordering::SeqCst);
                let _ = socket.send_to(datagram, sender);
            },
        );
        let plan = Combination::plain(place.flow).to(target.address());
        let tunnel = plan.options(place.end, "rate=8").start();
        let visitor = udp_visitor(tunnel.udp());
        exchange_datagram(&visitor, b"first");
        let is_over = AtomicBool::new(false);
        let (up, down) = thread::scope(|scope| {
            scope.spawn(|| {
                // Three times what may pass, in steps, so that no buffer has it all.
                while !is_over.load(Ordering::SeqCst) {
                    for _ in 0..15 {
                        let _ = visitor.send(&[7; SIZE]);
                    }
                    thread::sleep(Duration::from_millis(5));
                }
            });
            // What the buffers on the way have taken before the limit was felt.
            let begin = Instant::now() + Duration::from_secs(1);
            let mut buffer = [0; 2 * SIZE];
            let mut before = 0;
            let mut down = 0;
            let up = loop {
                let count = visitor.recv(&mut buffer).unwrap();
                let now = Instant::now();
                if now < begin {
                    before = reached.load(Ordering::SeqCst);
                    continue;
                }
                if now > begin + WINDOW {
                    break reached.load(Ordering::SeqCst) - before;
                }
                down += u64::try_from(count).unwrap();
            };
            is_over.store(true, Ordering::SeqCst);
            (up, down)
        });
        // One megabyte a second.
        // What the machine may stand still is lost to the rate.
        let range = 1_500_000..3_500_000;
        assert!(range.contains(&up), "{up} bytes up");
        assert!(range.contains(&down), "{down} bytes down");
        // Whoever stops is served again once the queues are empty.
        visitor.send(b"still there").unwrap();
        while receive_datagram(&visitor) != b"still there" {}
    });
}
