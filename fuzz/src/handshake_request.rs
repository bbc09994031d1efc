//! Requests on the tunnel port.

use std::time::Duration;

use nodepass::limits::HANDSHAKE_HEAD_SIZE_MAX;
use nodepass::wire::handshake::challenge::{AnsweredChallenges, BootSecret};
use nodepass::wire::handshake::client::{AwaitChallenge, AwaitOffer, Challenged, decode_response};
use nodepass::wire::handshake::server::{Request, decode_request};
use nodepass::wire::handshake::upgrade::AwaitUpgrade;
use nodepass::wire::key::{ServerKeys, TunnelKey};
use nodepass::wire::proof::SessionId;
use nodepass::wire::ticket::{TICKET_SIZE, Ticket};

use super::recordings;

const NOW: Duration = Duration::from_secs(50);

/// A request ends where it says; nobody without the key gets in; each answer can be read.
pub fn run(input: &[u8]) -> bool {
    let (request, size) = match decode_request(input) {
        Ok(Some(found)) => found,
        Ok(None) => {
            assert!(input.len() < HANDSHAKE_HEAD_SIZE_MAX);
            return false;
        }
        Err(refusal) => {
            assert!(refusal.to_string().len() < 2048);
            refusal
                .answer()
                .iter()
                .for_each(|answer| check_answer(answer));
            return false;
        }
    };
    assert!(size <= input.len() && size <= HANDSHAKE_HEAD_SIZE_MAX);
    let alone = decode_request(&input[..size])
        .expect("the same request")
        .expect("all of it");
    assert_eq!(
        (format!("{:?}", alone.0), alone.1),
        (format!("{request:?}"), size)
    );
    let cut = usize::from(input[0]) % size;
    assert!(matches!(decode_request(&input[..cut]), Ok(None)));
    answer(request);
    true
}

fn answer(request: Request) {
    // No input has anything that was made with this one.
    let keys = ServerKeys::explicit(TunnelKey::new(b"another key".to_vec()));
    let secret = BootSecret::new([0xb0; 32]);
    match request {
        Request::Bearer(request) => {
            let refusal = request
                .verify(&keys)
                .map(|_| ())
                .expect_err("no such token");
            check_answer(&refusal.answer().expect("an answer"));
        }
        Request::Hello(hello) => check_answer(&hello.challenge(&secret, NOW, [7; 8])),
        Request::Proof(request) => {
            let mut answered = AnsweredChallenges::default();
            let verified = request.verify(&keys, &secret, &mut answered, NOW);
            let refusal = verified.map(|_| ()).expect_err("no such proof");
            check_answer(&refusal.answer().expect("an answer"));
        }
        Request::WebSocket(upgrade) => {
            let _either_way = upgrade.ticket().map(Ticket::session);
            check_answer(&upgrade.accept());
        }
    }
}

fn check_answer(answer: &[u8]) {
    let (_, size) = decode_response(answer)
        .expect("an answer")
        .expect("all of it");
    assert_eq!(size, answer.len());
}

pub fn seeds() -> Vec<Vec<u8>> {
    let key = || TunnelKey::new(recordings::KEY.to_vec());
    let (hello, state) =
        AwaitChallenge::start(key(), "host.example", [1; 32], Some(SessionId([2; 16])));
    let challenge = match decode_request(&hello) {
        Ok(Some((Request::Hello(hello), _))) => {
            hello.challenge(&BootSecret::new([3; 32]), NOW, [4; 8])
        }
        other => panic!("{other:?}"),
    };
    let (challenge, _) = decode_response(&challenge)
        .expect("an answer")
        .expect("all of it");
    let proof = match state.take(&challenge) {
        Ok(Challenged::Native { request, .. }) => request,
        other => panic!("{other:?}"),
    };
    let ticket = Ticket::decode(&[7; TICKET_SIZE]);
    let mut seeds = vec![
        hello,
        proof,
        AwaitOffer::start(key(), "[2001:db8::1]").0,
        AwaitUpgrade::start("host", [5; 16], Some(&ticket)).0,
        AwaitUpgrade::start("host", [5; 16], None).0,
    ];
    for recording in recordings::CONNECTIONS {
        seeds.extend(recordings::said(recording, "client").into_iter().take(1));
    }
    seeds
}
