//! TCP forwarding: every byte and every end arrives.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::support::pattern::{Pattern, receive, send};
use crate::support::program::{Launch, Program, forward_url, raise_descriptor_limit};
use crate::support::servers::{TcpServer, drain, echo, reset_on_close, set_deadline};
use crate::support::visitors::{
    End, assert_closed, dial, exchange, exchange_bytes, read_count, read_to_end,
};
use crate::support::{DEADLINE, eventually};

const MEBIBYTE: u64 = 1024 * 1024;

#[test]
fn one_gibibyte_each_way_at_once_arrives_whole() {
    const SIZE: u64 = 1024 * MEBIBYTE;
    let (report, received) = mpsc::channel();
    let target = TcpServer::start(move |stream| {
        set_deadline(stream);
        thread::scope(|scope| {
            scope.spawn(|| send(stream, 2, SIZE));
            receive(stream, 1, SIZE);
        });
        report.send(()).unwrap();
    });
    let program = Program::forward_to(target.address(), "");
    let visitor = dial(program.tcp_address());
    thread::scope(|scope| {
        scope.spawn(|| send(&visitor, 1, SIZE));
        receive(&visitor, 2, SIZE);
    });
    received
        .recv_timeout(DEADLINE)
        .expect("the target did not get every byte as it was sent");
}

#[test]
fn visitor_that_ends_first_still_gets_the_answer() {
    const SIZE: u64 = 3 * MEBIBYTE + 17;
    let target = TcpServer::start(|stream| {
        receive(stream, 1, SIZE);
        assert_eq!(drain(stream).unwrap(), 0, "bytes after the last one");
        send(stream, 2, SIZE);
    });
    let program = Program::forward_to(target.address(), "");
    let visitor = dial(program.tcp_address());
    send(&visitor, 1, SIZE);
    visitor.shutdown(Shutdown::Write).unwrap();
    receive(&visitor, 2, SIZE);
    assert_closed(&visitor);
}

#[test]
fn target_that_ends_first_still_gets_the_rest() {
    const SIZE: u64 = 3 * MEBIBYTE + 17;
    let (report, received) = mpsc::channel();
    let target = TcpServer::start(move |mut stream| {
        stream.write_all(b"goodbye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        receive(stream, 1, SIZE);
        report.send(drain(stream).unwrap()).unwrap();
    });
    let program = Program::forward_to(target.address(), "");
    let visitor = dial(program.tcp_address());
    assert_eq!(read_to_end(&visitor), (b"goodbye".to_vec(), End::Finished));
    send(&visitor, 1, SIZE);
    visitor.shutdown(Shutdown::Write).unwrap();
    assert_eq!(received.recv_timeout(DEADLINE), Ok(0));
}

#[test]
fn two_thousand_connections_at_once_all_carry_data() {
    const THREADS: usize = 4;
    const EACH: usize = 500;
    raise_descriptor_limit();
    let target = TcpServer::echo();
    let url = forward_url(target.address(), "");
    let program = Launch::new(&[&url])
        .env("NP_REPORT_INTERVAL", "100ms")
        .start();
    let address = program.tcp_address();
    let all_open = Barrier::new(THREADS + 1);
    let counted = Barrier::new(THREADS + 1);
    thread::scope(|scope| {
        for thread_index in 0..THREADS {
            let (all_open, counted) = (&all_open, &counted);
            scope.spawn(move || {
                let message = |index: usize| format!("visitor {thread_index} {index}\n");
                let visitors: Vec<TcpStream> = (0..EACH)
                    .map(|index| {
                        let visitor = dial(address);
                        exchange(&visitor, message(index).as_bytes());
                        visitor
                    })
                    .collect();
                all_open.wait();
                counted.wait();
                for (index, mut visitor) in visitors.iter().enumerate() {
                    visitor.write_all(message(index).as_bytes()).unwrap();
                }
                for (index, visitor) in visitors.iter().enumerate() {
                    let sent = message(index);
                    assert_eq!(read_count(visitor, sent.len()), sent.as_bytes());
                }
                for visitor in &visitors {
                    visitor.shutdown(Shutdown::Write).unwrap();
                    assert_closed(visitor);
                }
            });
        }
        all_open.wait();
        let expected = u64::try_from(THREADS * EACH).unwrap();
        program.wait_checkpoint(|checkpoint| checkpoint.tcp_sessions == expected);
        counted.wait();
    });
    program.wait_checkpoint(|checkpoint| checkpoint.tcp_sessions == 0);
}

#[test]
fn single_byte_writes_arrive_in_order() {
    const COUNT: usize = 2000;
    let target = TcpServer::echo_by_bytes();
    let program = Program::forward_to(target.address(), "");
    exchange_bytes(&dial(program.tcp_address()), COUNT);
}

#[test]
fn reset_by_the_target_reaches_the_visitor_as_a_reset() {
    let target = TcpServer::start(|mut stream| {
        let mut byte = [0];
        let _ = stream.read(&mut byte);
        reset_on_close(stream);
    });
    let program = Program::forward_to(target.address(), "");
    let visitor = dial(program.tcp_address());
    (&visitor).write_all(b"x").unwrap();
    assert_eq!(read_to_end(&visitor), (Vec::new(), End::Reset));
}

#[test]
fn reset_by_the_visitor_reaches_the_target_as_a_reset() {
    let (report, reported) = mpsc::channel();
    let target = TcpServer::start(move |mut stream| {
        set_deadline(stream);
        let mut greeting = [0; 5];
        if stream.read_exact(&mut greeting).is_ok() {
            stream.write_all(&greeting).unwrap();
            report.send(read_to_end(stream)).unwrap();
        }
    });
    let program = Program::forward_to(target.address(), "");
    let visitor = dial(program.tcp_address());
    exchange(&visitor, b"hello");
    (&visitor).write_all(b"last words").unwrap();
    reset_on_close(&visitor);
    drop(visitor);
    let last = (b"last words".to_vec(), End::Reset);
    assert_eq!(reported.recv_timeout(DEADLINE), Ok(last));
}

#[test]
fn data_sent_before_a_reset_arrive_before_it() {
    const SIZE: u64 = 32 * 1024;
    let target = TcpServer::start(|mut stream| {
        let mut byte = [0];
        let _ = stream.read(&mut byte);
        send(stream, 3, SIZE);
        reset_on_close(stream);
    });
    let program = Program::forward_to(target.address(), "");
    for _ in 0..20 {
        let visitor = dial(program.tcp_address());
        (&visitor).write_all(b"x").unwrap();
        receive(&visitor, 3, SIZE);
        assert_eq!(read_to_end(&visitor), (Vec::new(), End::Reset));
    }
}

#[test]
fn visitors_that_leave_at_once_leave_nothing_behind() {
    let target = TcpServer::echo();
    let url = forward_url(target.address(), "");
    let program = Launch::new(&[&url])
        .env("NP_REPORT_INTERVAL", "100ms")
        .start();
    for index in 0..200 {
        let visitor = dial(program.tcp_address());
        if index % 2 == 0 {
            reset_on_close(&visitor);
        }
    }
    exchange(&dial(program.tcp_address()), b"still there");
    program.wait_checkpoint(|checkpoint| checkpoint.tcp_sessions == 0);
}

#[test]
fn stalled_readers_cost_little_memory_and_stop_nobody() {
    const STALLED: usize = 20;
    const GROWTH_MAX: u64 = 16 * MEBIBYTE;
    let written = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&written);
    // The first byte of a visitor says what it wants: a flood, or an echo.
    let target = TcpServer::start(move |mut stream| {
        let mut wish = [0];
        if stream.read_exact(&mut wish).is_err() || wish != *b"F" {
            return echo(stream);
        }
        let chunk = vec![0; 64 * 1024];
        while let Ok(count) = stream.write(&chunk) {
            counter.fetch_add(u64::try_from(count).unwrap(), Ordering::SeqCst);
        }
    });
    let program = Program::forward_to(target.address(), "");
    let other = dial(program.tcp_address());
    (&other).write_all(b"E").unwrap();
    exchange(&other, b"before");
    let memory_before = program.memory_size();
    let stalled: Vec<TcpStream> = (0..STALLED)
        .map(|_| {
            let visitor = dial(program.tcp_address());
            (&visitor).write_all(b"F").unwrap();
            visitor
        })
        .collect();
    let mut last = (0, Instant::now());
    eventually("floods that have come to a halt", || {
        let now = written.load(Ordering::SeqCst);
        if now != last.0 {
            last = (now, Instant::now());
        }
        exchange(&other, b"meanwhile");
        (now > 0 && last.1.elapsed() > Duration::from_millis(500)).then_some(())
    });
    let growth = program.memory_size().saturating_sub(memory_before);
    assert!(
        growth < GROWTH_MAX,
        "{STALLED} stalled readers took {growth} bytes"
    );
    exchange(&other, b"after");
    drop(stalled);
}

/// Writes the stream of seed 9 in two parts with an urgent byte between them.
#[track_caller]
fn send_around_urgent_byte(mut stream: &TcpStream, parts: [u64; 2]) {
    let mut pattern = Pattern::new(9);
    for (index, size) in parts.into_iter().enumerate() {
        if index > 0 {
            SockRef::from(stream).send_out_of_band(b"!").unwrap();
        }
        for start in (0..size).step_by(1 << 20) {
            let count = usize::try_from((size - start).min(MEBIBYTE)).unwrap();
            stream.write_all(&pattern.take(count)).unwrap();
        }
    }
}

/// Parts that pass through a buffer, and parts that come as bulk.
const AROUND_URGENT: [[u64; 2]; 3] = [
    [1000, 1000],
    [40 * MEBIBYTE, 100_000],
    [40 * MEBIBYTE, 40 * MEBIBYTE],
];

#[test]
fn urgent_byte_stops_no_ordinary_one() {
    for parts in AROUND_URGENT {
        let size = parts.iter().sum();
        let (report, received) = mpsc::channel();
        let target = TcpServer::start(move |stream| {
            set_deadline(stream);
            if stream.peek(&mut [0]).is_ok_and(|count| count == 1) {
                receive(stream, 9, size);
                send_around_urgent_byte(stream, parts);
                report.send(()).unwrap();
                let _ = drain(stream);
            }
        });
        let program = Program::forward_to(target.address(), "");
        let visitor = dial(program.tcp_address());
        send_around_urgent_byte(&visitor, parts);
        receive(&visitor, 9, size);
        assert_eq!(received.recv_timeout(DEADLINE), Ok(()));
        // The connection is open and has nothing to do.
        let (time_before, window) = (program.processor_time(), Duration::from_millis(500));
        thread::sleep(window);
        let used = program.processor_time() - time_before;
        assert!(used < window / 2, "spins after an urgent byte: {used:?}");
    }
}

#[test]
fn urgent_byte_before_the_end_loses_nothing() {
    for parts in AROUND_URGENT {
        let size = parts.iter().sum();
        let (report, received) = mpsc::channel();
        let target = TcpServer::start(move |stream| {
            set_deadline(stream);
            if stream.peek(&mut [0]).is_ok_and(|count| count == 1) {
                receive(stream, 9, size);
                report.send(drain(stream).unwrap()).unwrap();
            }
        });
        let program = Program::forward_to(target.address(), "");
        let visitor = dial(program.tcp_address());
        send_around_urgent_byte(&visitor, parts);
        visitor.shutdown(Shutdown::Write).unwrap();
        assert_closed(&visitor);
        assert_eq!(received.recv_timeout(DEADLINE), Ok(0));
    }
}
