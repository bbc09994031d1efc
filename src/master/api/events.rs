//! `/events`: what happens, as it happens (HTML Living Standard, "Server-sent events").

use std::convert::Infallible;
use std::io::{self, Write};

use crossbeam_channel::{Receiver, RecvTimeoutError, Select};
use tiny_http::Request;

use super::headers::CORS_FIELDS;
use super::reply::Reply;
use crate::limits::{EVENT_BATCH_SIZE, EVENT_KEEPALIVE_INTERVAL};
use crate::master::registry::{EventText, Registry};

/// A comment: keeps proxies from closing a silent stream, and finds clients that are gone.
const KEEP_ALIVE: &str = ": keep-alive\n\n";

/// Sends events until the client leaves, does not read, or the subscription ends.
///
/// Blocks: until then.
pub fn stream(registry: &Registry, request: Request, departure: &Receiver<Infallible>) {
    let Some((first, rest)) = registry.subscribe(departure.clone()) else {
        // Whoever has left does not need it.
        let _ = Reply::error(503, "The master is stopping").send(request);
        return;
    };
    // It ends when the client leaves.
    let _ = send(request.into_writer(), first, &rest, departure);
}

/// What answers HEAD.
pub fn head() -> Reply {
    Reply::event_stream()
}

fn send(
    mut writer: impl Write,
    first: EventText,
    rest: &Receiver<EventText>,
    departure: &Receiver<Infallible>,
) -> io::Result<()> {
    let mut head = String::from("HTTP/1.1 200 OK\r\n");
    for (name, value) in CORS_FIELDS {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(
        "Cache-Control: no-cache\r\nContent-Type: text/event-stream\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
    );
    writer.write_all(head.as_bytes())?;
    // All instances: not to be had twice, nor for as long as the stream goes on.
    let mut left = &*first;
    while !left.is_empty() {
        let (piece, others) = left.split_at(whole_events(left));
        send_chunk(&mut writer, piece)?;
        left = others;
    }
    drop(first);
    loop {
        if rest.is_full() {
            // He does not keep up. To send him what has gathered could take for ever.
            return Err(io::ErrorKind::TimedOut.into());
        }
        match next(rest, departure) {
            Ok(event) => {
                // Each leaves at once; those that wait leave with it.
                let mut text = String::from(&*event);
                while text.len() < EVENT_BATCH_SIZE
                    && let Ok(next) = rest.try_recv()
                {
                    text.push_str(&next);
                }
                send_chunk(&mut writer, &text)?;
            }
            Err(RecvTimeoutError::Timeout) => send_chunk(&mut writer, KEEP_ALIVE)?,
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    writer.write_all(b"0\r\n\r\n")?;
    writer.flush()
}

/// Returns how many bytes of `text` leave together: whole events, as many as fit or one.
fn whole_events(text: &str) -> usize {
    const END: &[u8] = b"\n\n";
    if text.len() <= EVENT_BATCH_SIZE {
        return text.len();
    }
    let (fitting, rest) = text.as_bytes().split_at(EVENT_BATCH_SIZE);
    let last = fitting.windows(END.len()).rposition(|at| at == END);
    let next = || {
        let at = rest.windows(END.len()).position(|at| at == END)?;
        Some(fitting.len() + at)
    };
    last.or_else(next).map_or(text.len(), |at| at + END.len())
}

/// Waits for the next event, for as long as the stream may be silent.
///
/// Errors: the subscription has ended, the client has left, or it has been silent for too long.
fn next(
    rest: &Receiver<EventText>,
    departure: &Receiver<Infallible>,
) -> Result<EventText, RecvTimeoutError> {
    let mut select = Select::new();
    let event = select.recv(rest);
    select.recv(departure);
    let ready = select.select_timeout(EVENT_KEEPALIVE_INTERVAL);
    let ready = ready.map_err(|_| RecvTimeoutError::Timeout)?;
    if ready.index() == event {
        let event = ready.recv(rest);
        return event.map_err(|_| RecvTimeoutError::Disconnected);
    }
    // Nothing is ever sent there.
    let _ = ready.recv(departure);
    Err(RecvTimeoutError::Disconnected)
}

fn send_chunk(writer: &mut impl Write, text: &str) -> io::Result<()> {
    // One write, so that a chunk leaves in one piece.
    let chunk = format!("{:x}\r\n{text}\r\n", text.len());
    writer.write_all(chunk.as_bytes())?;
    writer.flush()
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;

    #[test]
    fn a_stream_has_its_head_its_events_and_its_end() {
        let (sender, receiver) = bounded::<EventText>(4);
        for text in ["one\n\n", "two\n\n"] {
            sender.send(text.into()).unwrap();
        }
        drop(sender);
        let mut sent = Vec::new();
        let (_presence, departure) = bounded(0);
        send(&mut sent, "first\n\n".into(), &receiver, &departure).unwrap();
        let sent = String::from_utf8(sent).unwrap();
        let (head, body) = sent.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(head.contains("\r\nContent-Type: text/event-stream\r\n"));
        assert_eq!(body, "7\r\nfirst\n\n\r\na\r\none\n\ntwo\n\n\r\n0\r\n\r\n");
    }

    #[test]
    fn a_stream_that_does_not_keep_up_is_cut() {
        let (sender, receiver) = bounded::<EventText>(2);
        let (_presence, departure) = bounded(0);
        for _ in 0..2 {
            sender.send("event\n\n".into()).unwrap();
        }
        let mut sent = Vec::new();
        let error = send(&mut sent, "first\n\n".into(), &receiver, &departure).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(sent.ends_with(b"first\n\n\r\n"));
    }

    #[test]
    fn a_stream_ends_when_its_client_leaves() {
        let (_sender, receiver) = bounded::<EventText>(4);
        let (presence, departure) = bounded(0);
        drop(presence);
        let mut sent = Vec::new();
        send(&mut sent, "first\n\n".into(), &receiver, &departure).unwrap();
        assert!(sent.ends_with(b"7\r\nfirst\n\n\r\n0\r\n\r\n"));
    }

    #[test]
    fn events_leave_whole() {
        assert_eq!(whole_events("a\n\nb\n\n"), 6);
        let event = format!("{}\n\n", "é".repeat(100));
        let many = event.repeat(1000);
        let size = whole_events(&many);
        assert!(size <= EVENT_BATCH_SIZE && size.is_multiple_of(event.len()));
        let long = format!("{}\n\n", "é".repeat(EVENT_BATCH_SIZE));
        assert_eq!(whole_events(&format!("{long}{event}")), long.len());
    }
}
