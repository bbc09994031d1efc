//! The tunnel in all its combinations: what passes without a tunnel passes here as well.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use crate::support::each::for_each;
use crate::support::pattern::{Pattern, receive, send};
use crate::support::program::raise_descriptor_limit;
use crate::support::servers::{TcpServer, UdpServer, drain, reset_on_close, set_deadline};
use crate::support::tunnel::{Combination, Tunnel};
use crate::support::visitors::{
    End, assert_closed, dial, exchange, exchange_bytes, exchange_datagram, read_count, read_to_end,
    receive_datagram, udp_visitor,
};
use crate::support::{DEADLINE, free_address};

const MEBIBYTE: u64 = 1024 * 1024;

/// Waits until neither end has a session of a visitor.
#[track_caller]
fn wait_empty(tunnel: &Tunnel) {
    for program in tunnel.programs() {
        program.wait_checkpoint(|now| now.tcp_sessions == 0 && now.udp_sessions == 0);
    }
}

// TCP.

#[test]
fn bulk_both_ways_at_once_arrives_whole_in_every_combination() {
    for_each(&Combination::all(), |combination| {
        // Long enough for whatever moves bulk in another way than small messages.
        let size = if combination.is_plainest() {
            64 * MEBIBYTE
        } else {
            8 * MEBIBYTE
        };
        let (report, received) = mpsc::channel();
        let target = TcpServer::start(move |stream| {
            set_deadline(stream);
            thread::scope(|scope| {
                scope.spawn(|| send(stream, 2, size));
                receive(stream, 1, size);
            });
            report.send(()).unwrap();
        });
        // On a machine with more to do than it can, an end may be late with its answers.
        let tunnel = combination.to(target.address()).report("5s").start();
        let visitor = dial(tunnel.tcp());
        thread::scope(|scope| {
            scope.spawn(|| send(&visitor, 1, size));
            receive(&visitor, 2, size);
        });
        received
            .recv_timeout(DEADLINE)
            .expect("the target did not get every byte as it was sent");
    });
}

/// The combinations in which one direction can end before the other.
fn with_half_close() -> Vec<Combination> {
    let mut all = Combination::all();
    all.retain(|combination| combination.has_half_close());
    all
}

#[test]
fn visitor_that_ends_first_still_gets_the_answer_in_every_combination() {
    const SIZE: u64 = 3 * MEBIBYTE + 17;
    for_each(&with_half_close(), |combination| {
        let target = TcpServer::start(|stream| {
            set_deadline(stream);
            receive(stream, 1, SIZE);
            assert_eq!(drain(stream).unwrap(), 0, "bytes after the last one");
            send(stream, 2, SIZE);
        });
        let tunnel = combination.to(target.address()).start();
        let visitor = dial(tunnel.tcp());
        send(&visitor, 1, SIZE);
        visitor.shutdown(Shutdown::Write).unwrap();
        receive(&visitor, 2, SIZE);
        assert_closed(&visitor);
    });
}

#[test]
fn visitor_that_ends_without_a_word_still_gets_the_answer_in_every_combination() {
    for_each(&with_half_close(), |combination| {
        let target = TcpServer::start(|mut stream| {
            set_deadline(stream);
            assert_eq!(drain(stream).unwrap(), 0, "bytes nobody has sent");
            let _ = stream.write_all(b"good day");
        });
        let tunnel = combination.to(target.address()).start();
        let visitor = dial(tunnel.tcp());
        visitor.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&visitor), (b"good day".to_vec(), End::Finished));
    });
}

#[test]
fn target_that_ends_first_still_gets_the_rest_in_every_combination() {
    const SIZE: u64 = 3 * MEBIBYTE + 17;
    for_each(&with_half_close(), |combination| {
        let (report, received) = mpsc::channel();
        let target = TcpServer::start(move |mut stream| {
            set_deadline(stream);
            stream.write_all(b"goodbye").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            receive(stream, 1, SIZE);
            report.send(drain(stream).unwrap()).unwrap();
        });
        let tunnel = combination.to(target.address()).start();
        let visitor = dial(tunnel.tcp());
        assert_eq!(read_to_end(&visitor), (b"goodbye".to_vec(), End::Finished));
        send(&visitor, 1, SIZE);
        visitor.shutdown(Shutdown::Write).unwrap();
        assert_eq!(received.recv_timeout(DEADLINE), Ok(0));
    });
}

#[test]
fn five_hundred_visitors_at_once_are_served_in_every_combination() {
    const VISITORS: usize = 500;
    raise_descriptor_limit();
    for_each(&Combination::all(), |combination| {
        let target = TcpServer::echo();
        // Three of these without an answer end a session, and a busy machine may take a while; so
        // may a target whose queue is full, which the kernel asks again after 1, 3 and 7 seconds.
        let plan = combination.to(target.address()).report("2s");
        let tunnel = plan.env("NP_TCP_DIAL_TIMEOUT", "15s").start();
        let address = tunnel.tcp();
        let message = |index: usize, round: &str| format!("visitor {index} {round}\n").into_bytes();
        let visitors: Vec<TcpStream> = (0..VISITORS)
            .map(|index| {
                let visitor = dial(address);
                (&visitor).write_all(&message(index, "first")).unwrap();
                visitor
            })
            .collect();
        for (index, visitor) in visitors.iter().enumerate() {
            let sent = message(index, "first");
            assert_eq!(read_count(visitor, sent.len()), sent);
        }
        let expected = u64::try_from(VISITORS).unwrap();
        for program in tunnel.programs() {
            program.wait_checkpoint(|now| now.tcp_sessions == expected);
        }
        for (index, visitor) in visitors.iter().enumerate() {
            exchange(visitor, &message(index, "second"));
        }
        for visitor in &visitors {
            visitor.shutdown(Shutdown::Write).unwrap();
        }
        for visitor in &visitors {
            assert_closed(visitor);
        }
        drop(visitors);
        wait_empty(&tunnel);
    });
}

#[test]
fn single_byte_writes_arrive_in_order_in_every_combination() {
    const COUNT: usize = 1000;
    for_each(&Combination::all(), |combination| {
        let target = TcpServer::echo_by_bytes();
        let tunnel = combination.to(target.address()).start();
        exchange_bytes(&dial(tunnel.tcp()), COUNT);
    });
}

#[test]
fn silent_visitor_hears_a_target_that_speaks_first_in_every_combination() {
    for_each(&Combination::all(), |combination| {
        let target = TcpServer::banner("220 ready\r\n");
        let tunnel = combination.to(target.address()).start();
        let visitors = [(); 3].map(|()| dial(tunnel.tcp()));
        for visitor in &visitors {
            assert_eq!(read_count(visitor, 11), b"220 ready\r\n");
            exchange(visitor, b"EHLO there\r\n");
        }
    });
}

#[test]
fn refused_target_closes_the_visitor_and_only_him_in_every_combination() {
    for_each(&Combination::all(), |combination| {
        let address = free_address();
        let tunnel = combination.to(address).report("300ms").start();
        let refused = dial(tunnel.tcp());
        let name = refused.local_addr().unwrap().to_string();
        // What is on its way to a target that is not there must not matter.
        // He may have been turned away by then.
        let _ = (&refused).write_all(b"anyone?");
        assert_closed(&refused);
        let words = ["not served", &name, &address.to_string(), "refused"];
        tunnel.exit().wait_complaint(&words);
        let _target = TcpServer::echo_at(address);
        exchange(&dial(tunnel.tcp()), b"served");
        wait_empty(&tunnel);
    });
}

#[test]
fn silent_visitor_of_a_refused_target_has_no_place_even_if_he_stays_in_every_combination() {
    for_each(&Combination::all(), |combination| {
        let address = free_address();
        let tunnel = combination.to(address).report("300ms").start();
        let refused = dial(tunnel.tcp());
        assert_closed(&refused);
        wait_empty(&tunnel);
        drop(refused);
    });
}

#[test]
fn visitors_that_leave_at_once_leave_nothing_behind_in_every_combination() {
    for_each(&Combination::all(), |combination| {
        let target = TcpServer::echo();
        let tunnel = combination.to(target.address()).report("500ms").start();
        for index in 0..60 {
            let visitor = dial(tunnel.tcp());
            if index % 3 > 0 {
                let _ = (&visitor).write_all(b"never mind");
            }
            if index % 2 == 0 {
                reset_on_close(&visitor);
            }
        }
        exchange(&dial(tunnel.tcp()), b"still there");
        wait_empty(&tunnel);
    });
}

#[test]
fn reset_by_either_side_ends_the_other_in_every_combination() {
    for_each(&Combination::all(), |combination| {
        let (report, reported) = mpsc::channel();
        let report = Mutex::new(report);
        // The first byte of a visitor says who resets.
        let target = TcpServer::start(move |mut stream| {
            set_deadline(stream);
            let mut wish = [0];
            if stream.read_exact(&mut wish).is_err() || stream.write_all(&wish).is_err() {
                return;
            }
            match wish {
                [b'T'] => reset_on_close(stream),
                _ => report.lock().unwrap().send(read_to_end(stream)).unwrap(),
            }
        });
        let tunnel = combination.to(target.address()).report("300ms").start();
        let reset = dial(tunnel.tcp());
        // A reset may overtake the echo; how the end looks is for the transport to say.
        (&reset).write_all(b"T").unwrap();
        let (bytes, _) = read_to_end(&reset);
        assert!(b"T".starts_with(&bytes), "{bytes:?}");
        let resets = dial(tunnel.tcp());
        exchange(&resets, b"V");
        reset_on_close(&resets);
        drop(resets);
        let (bytes, _) = reported.recv_timeout(DEADLINE).unwrap();
        assert!(bytes.is_empty(), "{bytes:?}");
        wait_empty(&tunnel);
    });
}

// UDP.

#[test]
fn datagrams_of_every_size_pass_whole_in_every_combination() {
    for_each(&Combination::all(), |combination| {
        let target = UdpServer::echo();
        let tunnel = combination.to(target.address()).start();
        let visitor = udp_visitor(tunnel.udp());
        let mut pattern = Pattern::new(11);
        let most = combination.datagram_size_max();
        let sizes = [1, 2, 100, 1472, 1473, 8192, most - 1, most, 1];
        for size in sizes.into_iter().filter(|size| *size <= most) {
            for _ in 0..3 {
                exchange_datagram(&visitor, &pattern.take(size));
            }
        }
    });
}

#[test]
fn empty_datagrams_pass_in_every_combination_that_keeps_boundaries() {
    let mut all = Combination::all();
    all.retain(|combination| combination.keeps_boundaries());
    for_each(&all, |combination| {
        let target = UdpServer::echo();
        let tunnel = combination.to(target.address()).start();
        let visitor = udp_visitor(tunnel.udp());
        // The first one opens the session.
        for datagram in [&b""[..], b"", b"x", b"", b"y"] {
            exchange_datagram(&visitor, datagram);
        }
    });
}

#[test]
fn datagrams_over_the_size_limit_are_dropped_and_never_cut_in_every_combination() {
    for_each(&Combination::all(), |combination| {
        let target = UdpServer::start_at(
            ([127, 0, 0, 1], 0).into(),
            // Answers with the size, and to that with a datagram that is too large.
            |socket, datagram, sender| {
                if datagram == b"large" {
                    socket.send_to(&[b'L'; 16385], sender).unwrap();
                }
                let size = datagram.len().to_string();
                socket.send_to(size.as_bytes(), sender).unwrap();
            },
        );
        let tunnel = combination.to(target.address()).start();
        let visitor = udp_visitor(tunnel.udp());
        for size in [16385, 65507, 1000] {
            visitor.send(&vec![b'z'; size]).unwrap();
        }
        assert_eq!(receive_datagram(&visitor), b"1000");
        visitor.send(b"large").unwrap();
        assert_eq!(receive_datagram(&visitor), b"5");
    });
}

#[test]
fn hundred_datagram_visitors_at_once_get_their_own_answers_in_every_combination() {
    const VISITORS: usize = 100;
    for_each(&Combination::all(), |combination| {
        let target = UdpServer::echo();
        let tunnel = combination.to(target.address()).report("300ms").start();
        let address = tunnel.udp();
        let message = |index: usize, round: usize| format!("visitor {index} round {round}");
        let visitors: Vec<UdpSocket> = (0..VISITORS).map(|_| udp_visitor(address)).collect();
        for round in 0..3 {
            for (index, visitor) in visitors.iter().enumerate() {
                visitor.send(message(index, round).as_bytes()).unwrap();
            }
            for (index, visitor) in visitors.iter().enumerate() {
                let answer = String::from_utf8(receive_datagram(visitor)).unwrap();
                assert_eq!(answer, message(index, round));
            }
        }
        let expected = u64::try_from(VISITORS).unwrap();
        for program in tunnel.programs() {
            program.wait_checkpoint(|now| now.udp_sessions == expected);
        }
    });
}

#[test]
fn datagrams_at_a_moderate_pace_arrive_all_and_in_order_in_every_combination() {
    const WINDOWS: usize = 60;
    // Together no larger than one datagram may be: v1 may join what travels together.
    const WINDOW: usize = 12;
    for_each(&Combination::all(), |combination| {
        let target = UdpServer::echo();
        let tunnel = combination.to(target.address()).start();
        let visitor = udp_visitor(tunnel.udp());
        exchange_datagram(&visitor, b"first");
        let mut pattern = Pattern::new(13);
        for window in 0..WINDOWS {
            let sizes = (0..WINDOW).map(|index| 40 + (window * 97 + index * 331) % 1300);
            let sent: Vec<Vec<u8>> = sizes.map(|size| pattern.take(size)).collect();
            for datagram in &sent {
                visitor.send(datagram).unwrap();
            }
            if combination.keeps_boundaries() {
                for (index, datagram) in sent.iter().enumerate() {
                    let answer = receive_datagram(&visitor);
                    let place = format!("datagram {index} of window {window}");
                    assert_eq!(answer.len(), datagram.len(), "{place}");
                    assert!(answer == *datagram, "{place} is another one");
                }
            } else {
                let expected = sent.concat();
                let mut got = Vec::new();
                while got.len() < expected.len() {
                    got.extend(receive_datagram(&visitor));
                }
                assert!(got == expected, "window {window} differs");
            }
        }
    });
}

#[test]
fn idle_datagram_sessions_end_and_the_visitor_may_come_back_in_every_combination() {
    for_each(&Combination::all(), |combination| {
        let target = UdpServer::echo();
        let plan = combination.to(target.address()).report("300ms");
        let tunnel = plan.env("NP_UDP_READ_TIMEOUT", "1s").start();
        let visitor = udp_visitor(tunnel.udp());
        exchange_datagram(&visitor, b"hello");
        for program in tunnel.programs() {
            let was_counted = program.checkpoints();
            // It may have ended while the other end was asked.
            if !was_counted.iter().any(|then| then.udp_sessions == 1) {
                program.wait_checkpoint(|now| now.udp_sessions == 1);
            }
        }
        wait_empty(&tunnel);
        exchange_datagram(&visitor, b"hello again");
    });
}

#[test]
fn busy_datagram_sessions_outlive_the_idle_time_in_every_combination() {
    for_each(&Combination::all(), |combination| {
        let (report, sources) = mpsc::channel();
        let target = UdpServer::start_at(
            ([127, 0, 0, 1], 0).into(),
            move |socket, datagram, sender| {
                report.send(sender).unwrap();
                socket.send_to(datagram, sender).unwrap();
            },
        );
        let plan = combination.to(target.address());
        let tunnel = plan.env("NP_UDP_READ_TIMEOUT", "1s").start();
        let visitor = udp_visitor(tunnel.udp());
        for _ in 0..15 {
            exchange_datagram(&visitor, b"tick");
            thread::sleep(Duration::from_millis(100));
        }
        let mut sources: Vec<_> = sources.try_iter().collect();
        sources.dedup();
        assert_eq!(sources.len(), 1, "the session was replaced: {sources:?}");
    });
}
