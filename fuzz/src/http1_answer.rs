//! Answers of the server behind the front of the API.

use nodepass::limits::{API_FIELDS_MAX, API_HEAD_SIZE_MAX};
use nodepass::wire::http1::answer::{AnswerBody, AnswerHead, BadAnswer, BodyEnd, Form};

use super::{recordings, take_byte, with_byte};

/// The head that a client gets says where the body ends; a body is the same however it is cut.
pub fn run(mut input: &[u8]) -> bool {
    let how = take_byte(&mut input);
    let is_head = how & 1 == 1;
    let form = if how & 2 == 0 { Form::AsIs } else { Form::Bare };
    let (head, size) = match AnswerHead::parse(input, is_head) {
        Ok(Some(found)) => found,
        Ok(None) => {
            assert!(input.len() < API_HEAD_SIZE_MAX);
            return false;
        }
        Err(BadAnswer) => return false,
    };
    assert!(size <= input.len() && size <= API_HEAD_SIZE_MAX);
    check_encoded(&head, form, is_head);
    let body = &input[size..];
    let whole = take_all(&head, form, body, body.len().max(1));
    assert_eq!(take_all(&head, form, body, 1 + usize::from(how / 4)), whole);
    whole.is_ok()
}

fn check_encoded(head: &AnswerHead, form: Form, is_head: bool) {
    let encoded = head.encode(form, true);
    let Ok(Some((again, size))) = AnswerHead::parse(&encoded, is_head) else {
        // With what is added to it.
        let lines_count = encoded.split(|byte| *byte == b'\n').count();
        assert!(encoded.len() >= API_HEAD_SIZE_MAX || lines_count > API_FIELDS_MAX);
        return;
    };
    assert_eq!(size, encoded.len());
    assert_eq!(again.is_events, head.is_events);
    let is_bare = head.body == BodyEnd::Chunked && form == Form::Bare;
    assert_eq!(again.body, if is_bare { BodyEnd::Close } else { head.body });
    assert_eq!(head.can_stay_open(form), again.body != BodyEnd::Close);
}

/// Returns how much belongs to the body, what the client gets of it, and whether it is over.
fn take_all(
    head: &AnswerHead,
    form: Form,
    input: &[u8],
    piece_size: usize,
) -> Result<(usize, Vec<u8>, bool), BadAnswer> {
    let mut body = AnswerBody::new(head, form);
    let (mut size, mut passed) = (0, Vec::new());
    for mut piece in input.chunks(piece_size) {
        while !piece.is_empty() && !body.is_over() {
            let (taken, some) = body.take(piece)?;
            assert!(taken > 0);
            assert!(form == Form::Bare || some == &piece[..taken]);
            size += taken;
            passed.extend_from_slice(some);
            piece = &piece[taken..];
        }
    }
    assert_eq!(body.ends_with_connection(), head.body == BodyEnd::Close);
    Ok((size, passed, body.is_over()))
}

pub fn seeds() -> Vec<Vec<u8>> {
    let chunked =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nA: b\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let endless = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream; x\r\n\r\ndata: 1\n\n";
    let mut seeds = vec![
        with_byte(0, chunked),
        with_byte(10, chunked),
        with_byte(4, endless),
        with_byte(
            0,
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nServer: x\r\n\r\n",
        ),
    ];
    for (answer, how) in recordings::ANSWERS.into_iter().zip([8, 4, 1, 2]) {
        seeds.push(with_byte(how, answer));
    }
    seeds
}
