//! Heads of requests to the API.

use nodepass::limits::{API_BODY_SIZE_MAX, API_FIELDS_MAX, API_HEAD_SIZE_MAX};
use nodepass::wire::http1::request::{BodyLength, HEAD_TOO_LARGE, RequestHead, Version};

use super::recordings;

/// What passes is plain text that says the same to whoever reads it behind.
pub fn run(input: &[u8]) -> bool {
    let (head, size) = match RequestHead::parse(input) {
        Ok(Some(found)) => found,
        Ok(None) => {
            assert!(input.len() < API_HEAD_SIZE_MAX);
            return false;
        }
        Err(refusal) => {
            assert!((400..600).contains(&refusal.status) && !refusal.why.is_empty());
            return false;
        }
    };
    assert!(size <= input.len() && size <= API_HEAD_SIZE_MAX);
    assert_eq!(
        RequestHead::parse(&input[..size]),
        Ok(Some((head.clone(), size)))
    );
    assert_eq!(RequestHead::parse(&input[..size - 1]), Ok(None));
    if let BodyLength::Exactly(size) = head.body {
        assert!(size <= API_BODY_SIZE_MAX);
    }
    check_encoded(&head);
    true
}

fn check_encoded(head: &RequestHead) {
    let encoded = head.encode(1, 7);
    assert!(encoded.is_ascii());
    // The only lines are those that end as lines do, and only the last one is empty.
    let (lines, behind) = encoded.split_once("\r\n\r\n").expect("an end");
    assert_eq!(behind, "");
    let is_line = |line: &str| !line.is_empty() && !line.contains(['\r', '\n', '\0']);
    assert!(lines.split("\r\n").all(is_line));
    let count_of = |name: &str| {
        let is_it = |line: &&str| {
            line.split_once(':')
                .is_some_and(|(found, _)| found.eq_ignore_ascii_case(name))
        };
        lines.split("\r\n").skip(1).filter(is_it).count()
    };
    let has_body = head.body != BodyLength::Nothing;
    assert_eq!(count_of("Content-Length"), usize::from(has_body));
    assert_eq!(count_of("Nodepass-Call"), 1);
    assert_eq!(count_of("Connection"), 1);
    assert_eq!(count_of("Transfer-Encoding"), 0);
    assert!(count_of("Host") <= 1);
    match RequestHead::parse(encoded.as_bytes()) {
        Ok(Some((again, size))) => {
            assert_eq!(size, encoded.len());
            // The number of the call is never taken from a client.
            assert_eq!(again.encode(1, 7), encoded);
            assert_eq!(again.is_head, head.is_head);
            assert!(!again.stays_open && !again.expects_continue);
        }
        // With what is added to it.
        Err(HEAD_TOO_LARGE) => {
            let fields_count = lines.split("\r\n").count() - 1;
            assert!(encoded.len() > API_HEAD_SIZE_MAX || fields_count > API_FIELDS_MAX);
        }
        Err(refusal) => {
            assert_eq!(
                (refusal.why, head.version),
                ("Host header required", Version::Http10)
            );
        }
        Ok(None) => panic!("it has an end"),
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let with = |fields: &str| {
        format!("POST /api/v1/instances?a=b HTTP/1.1\r\nHost: h:1\r\n{fields}\r\n").into_bytes()
    };
    let mut seeds = vec![
        with("Content-Length: 12\r\nX-API-Key: 0123\r\nExpect: 100-continue\r\n"),
        with("Transfer-Encoding: chunked\r\nConnection: keep-alive, x\r\nX: y\r\n"),
        with("Accept: é\r\nConnection: close\r\nnodepass-call: 7\r\n"),
        b"GET http://host:1/a?b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".to_vec(),
        b"OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n".to_vec(),
        b"CONNECT host:1 HTTP/1.1\nHost: host:1\n\n".to_vec(),
        b"\r\nHEAD HTTPS://host?x HTTP/1.1\r\nHost: a\r\nTE: x\r\n\r\n".to_vec(),
    ];
    seeds.extend(
        recordings::said(recordings::CONNECTIONS[0], "client")
            .into_iter()
            .take(1),
    );
    seeds
}
