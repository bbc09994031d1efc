//! `/events`: what happens, as it happens (HTML Living Standard, "Server-sent events").

use std::convert::Infallible;
use std::io::{self, Write};

use crossbeam_channel::Receiver;
use tiny_http::Request;

use super::headers::CORS_FIELDS;
use super::reply::Reply;
use crate::limits::EVENT_KEEPALIVE_INTERVAL;
use crate::master::registry::Registry;
use crate::master::subscription::{End, Subscription};

/// A comment: keeps proxies from closing a silent stream, and finds clients that are gone.
const KEEP_ALIVE: &str = ": keep-alive\n\n";

/// Sends events until the client leaves, does not read, or the subscription ends.
///
/// Blocks: until then.
pub fn stream(registry: &Registry, request: Request, departure: &Receiver<Infallible>) {
    let Some(subscription) = registry.subscribe(departure.clone()) else {
        // Whoever has left does not need it.
        let _ = Reply::error(503, "The master is stopping").send(request);
        return;
    };
    // It ends when the client leaves.
    let _ = send(request.into_writer(), &subscription);
}

/// What answers HEAD.
pub fn head() -> Reply {
    Reply::event_stream()
}

fn send(mut writer: impl Write, subscription: &Subscription) -> io::Result<()> {
    let mut head = String::from("HTTP/1.1 200 OK\r\n");
    for (name, value) in CORS_FIELDS {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(
        "Cache-Control: no-cache\r\nContent-Type: text/event-stream\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
    );
    writer.write_all(head.as_bytes())?;
    loop {
        match subscription.next(EVENT_KEEPALIVE_INTERVAL) {
            Ok(Some(text)) => send_chunk(&mut writer, text)?,
            Ok(None) => send_chunk(&mut writer, String::from(KEEP_ALIVE))?,
            Err(End::Over | End::Left) => break,
            // Without an end of the body he sees that there is more.
            Err(End::TooSlow) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    writer.write_all(b"0\r\n\r\n")?;
    writer.flush()
}

/// Sends a text that leaves at once.
fn send_chunk(writer: &mut impl Write, text: String) -> io::Result<()> {
    // One write, so that a chunk leaves in one piece; and one copy while it does.
    let chunk = format!("{:x}\r\n{text}\r\n", text.len());
    drop(text);
    writer.write_all(chunk.as_bytes())?;
    writer.flush()
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;
    use crate::master::subscription::subscription;

    const FIRST: &str = "\r\n\r\nd\r\nretry: 3000\n\n\r\n";

    #[test]
    fn a_stream_has_its_head_its_events_and_its_end() {
        let (_presence, departure) = bounded(0);
        let (subscriber, rest) = subscription(&[], departure);
        for text in ["one\n\n", "two\n\n"] {
            assert!(subscriber.offer(&text.into()));
        }
        drop(subscriber);
        let mut sent = Vec::new();
        send(&mut sent, &rest).unwrap();
        let sent = String::from_utf8(sent).unwrap();
        let (head, body) = sent.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(head.contains("\r\nContent-Type: text/event-stream\r\n"));
        assert_eq!(body, "17\r\nretry: 3000\n\none\n\ntwo\n\n\r\n0\r\n\r\n");
    }

    #[test]
    fn a_stream_that_does_not_keep_up_is_cut() {
        let (_presence, departure) = bounded(0);
        let (subscriber, rest) = subscription(&[], departure);
        rest.next(std::time::Duration::ZERO).unwrap();
        let event = "event\n\n".into();
        while subscriber.offer(&event) {}
        let mut sent = Vec::new();
        let error = send(&mut sent, &rest).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(sent.ends_with(b"\r\n\r\n") && !sent.ends_with(b"0\r\n\r\n"));
    }

    #[test]
    fn a_stream_ends_when_its_client_leaves() {
        let (presence, departure) = bounded(0);
        let (_subscriber, rest) = subscription(&[], departure);
        drop(presence);
        let mut sent = Vec::new();
        send(&mut sent, &rest).unwrap();
        let sent = String::from_utf8(sent).unwrap();
        assert!(sent.ends_with(&format!("{FIRST}0\r\n\r\n")), "{sent}");
    }
}
