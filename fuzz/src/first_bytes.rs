//! What a connection speaks, by its first bytes; the ticket that a native one starts with.

use nodepass::wire::first_bytes::{Grace, Opening, recognise_opening};
use nodepass::wire::sniff::{PREFIX_SIZE_MAX, Verdict, recognise};
use nodepass::wire::ticket::{PREFACE_SIZE, TICKET_SIZE, Ticket};

use super::recordings;

/// A verdict stays as it is whatever comes behind, and does not keep one waiting for ever. A ticket
/// is read as it was written, in one spelling.
pub fn run(input: &[u8]) -> bool {
    let prefix = &input[..input.len().min(PREFIX_SIZE_MAX + 1)];
    let opening = check_openings(prefix);
    let verdict = check_verdicts(prefix);
    let has_ticket = check_tickets(input);
    let is_known = !matches!(opening, None | Some(Opening::Unknown | Opening::Silence));
    is_known || matches!(verdict, Some(Verdict::Is(_))) || has_ticket
}

fn check_openings(prefix: &[u8]) -> Option<Opening> {
    assert_eq!(recognise_opening(&[], Grace::Running), None);
    assert_eq!(recognise_opening(&[], Grace::Over), Some(Opening::Silence));
    let mut last = None;
    for end in 1..=prefix.len() {
        let opening = recognise_opening(&prefix[..end], Grace::Running);
        assert_eq!(opening, recognise_opening(&prefix[..end], Grace::Over));
        assert!(last.is_none() || opening == last);
        assert!(opening.is_some() || end <= PREFIX_SIZE_MAX);
        last = opening;
    }
    last
}

fn check_verdicts(prefix: &[u8]) -> Option<Verdict> {
    let mut last = recognise(&[]);
    assert_eq!(last, None);
    for end in 1..=prefix.len() {
        let verdict = recognise(&prefix[..end]);
        match (last, verdict) {
            (Some(Verdict::MayBe(before)), Some(Verdict::Is(now) | Verdict::MayBe(now))) => {
                assert_eq!(before, now);
            }
            (None | Some(Verdict::MayBe(_)), Some(_)) => {}
            (before, now) => assert_eq!(before, now),
        }
        assert!(end < PREFIX_SIZE_MAX || !matches!(verdict, Some(Verdict::MayBe(_))));
        last = verdict;
    }
    last
}

fn check_tickets(input: &[u8]) -> bool {
    if let Some(ticket) = Ticket::decode_header(input) {
        assert_eq!(ticket.encode_header().as_bytes(), input);
        return true;
    }
    if let Some(bytes) = input.first_chunk::<TICKET_SIZE>() {
        let ticket = Ticket::decode(bytes);
        assert_eq!(ticket.encode(), *bytes);
        assert_eq!(
            Ticket::decode_header(ticket.encode_header().as_bytes()),
            Some(ticket)
        );
    }
    match Ticket::decode_preface(input) {
        Ok(Some(ticket)) => {
            assert_eq!(ticket.encode_preface(), input[..PREFACE_SIZE]);
            true
        }
        Ok(None) => {
            assert!(input.len() < PREFACE_SIZE);
            false
        }
        Err(_) => false,
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let ticket = Ticket::decode(&[7; TICKET_SIZE]);
    let mut seeds: Vec<Vec<u8>> = vec![
        ticket.encode_preface(),
        ticket.encode_header().into_bytes(),
        b"\x16\x03\x01\x02\x00\x01".to_vec(),
        b"\x04\x01\x00\x50".to_vec(),
        b"\x05\x02\x00\x02".to_vec(),
        b"\r\nPROPFIND /\r\n".to_vec(),
        b"CONNECT host:1 HTTP/1.1\r\n".to_vec(),
        b"M-SEARCH * HTTP/1.1\r\n".to_vec(),
    ];
    for recording in recordings::CONNECTIONS {
        seeds.extend(recordings::said(recording, "client").into_iter().take(1));
    }
    seeds
}
