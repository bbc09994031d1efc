//! Answers to handshakes, and to the wish for a WebSocket.

use std::sync::OnceLock;
use std::time::Duration;

use nodepass::limits::{HANDSHAKE_BODY_SIZE_MAX, HANDSHAKE_HEAD_SIZE_MAX, POOL_SIZE_MAX};
use nodepass::wire::handshake::NativeSession;
use nodepass::wire::handshake::challenge::{AnsweredChallenges, BootSecret};
use nodepass::wire::handshake::client::{
    AwaitChallenge, AwaitOffer, AwaitProof, Challenged, Response, decode_response,
};
use nodepass::wire::handshake::server::{BearerVerified, Request, decode_request};
use nodepass::wire::handshake::upgrade::AwaitUpgrade;
use nodepass::wire::key::{ServerKeys, TunnelKey};
use nodepass::wire::offer::{Flow, Offer, TlsMode, Transport};
use nodepass::wire::proof::SessionId;

use super::recordings;

const NOW: Duration = Duration::from_secs(50);
const OFFER: Offer = Offer {
    flow: Flow::Reverse,
    pool_max: 8,
    tls: TlsMode::Plain,
    transport: Transport::Tcp,
};

/// An answer ends where it says and is bounded; an offer that is taken can be made; no server
/// without the key is believed.
pub fn run(input: &[u8]) -> bool {
    let is_upgrade = check_upgrade(input);
    let (response, size) = match decode_response(input) {
        Ok(Some(found)) => found,
        Ok(None) => {
            assert!(input.len() < HANDSHAKE_HEAD_SIZE_MAX + HANDSHAKE_BODY_SIZE_MAX);
            return is_upgrade;
        }
        Err(error) => {
            assert!(error.to_string().len() < 2048);
            return is_upgrade;
        }
    };
    assert!(size <= input.len());
    assert_eq!(
        decode_response(&input[..size]),
        Ok(Some((response.clone(), size)))
    );
    let cut = usize::from(input[size - 1]) % size;
    assert_eq!(decode_response(&input[..cut]), Ok(None));
    if let Ok((offer, _)) = AwaitOffer::start(key(), "host").1.take(&response) {
        assert!((1..=POOL_SIZE_MAX).contains(&offer.pool_max));
        let made = read(&bearer().accept(&offer));
        let (again, _) = AwaitOffer::start(key(), "host")
            .1
            .take(&made)
            .expect("our offer");
        assert_eq!(again, offer);
    }
    if let Ok(Challenged::Native { request, next }) = hello().1.take(&response) {
        assert!(matches!(
            decode_request(&request),
            Ok(Some((Request::Proof(_), _)))
        ));
        let error = next
            .take(&response)
            .map(|_| ())
            .expect_err("its status is that of a refusal");
        assert!(!error.to_string().is_empty());
    }
    assert!(await_proof().take(&response).is_err());
    true
}

fn check_upgrade(input: &[u8]) -> bool {
    let (_, state) = AwaitUpgrade::start("host", *b"the sample nonce", None);
    match state.take(input) {
        Ok(Some(size)) => {
            assert_eq!(state.take(&input[..size]), Ok(Some(size)));
            assert_eq!(state.take(&input[..size - 1]), Ok(None));
            true
        }
        Ok(None) => {
            assert!(input.len() < HANDSHAKE_HEAD_SIZE_MAX);
            false
        }
        Err(error) => {
            assert!(error.to_string().len() < 2048);
            false
        }
    }
}

/// Returns both ends of a native session, the client's first; each time the same one.
pub fn native_session() -> (NativeSession, NativeSession) {
    let (proof, state) = challenged();
    let Ok(Some((Request::Proof(request), _))) = decode_request(&proof) else {
        panic!("a proof");
    };
    let mut answered = AnsweredChallenges::default();
    let verified = request
        .verify(&keys(), &secret(), &mut answered, NOW)
        .expect("the right key");
    let accepted = verified.accept(SessionId([0x5e; 16]), &OFFER, None);
    let client = state.take(&read(&accepted.answer)).expect("the right key");
    (client.session, accepted.session)
}

fn key() -> TunnelKey {
    TunnelKey::new(recordings::KEY.to_vec())
}

fn keys() -> ServerKeys {
    ServerKeys::explicit(key())
}

fn secret() -> BootSecret {
    BootSecret::new([0xb0; 32])
}

fn read(answer: &[u8]) -> Response {
    let (response, size) = decode_response(answer)
        .expect("an answer")
        .expect("all of it");
    assert_eq!(size, answer.len());
    response
}

fn hello() -> (Vec<u8>, AwaitChallenge) {
    AwaitChallenge::start(key(), "host", [0xc1; 32], None)
}

fn challenge() -> Vec<u8> {
    match decode_request(&hello().0) {
        Ok(Some((Request::Hello(hello), _))) => hello.challenge(&secret(), NOW, [7; 8]),
        other => panic!("{other:?}"),
    }
}

/// Returns what a client says that has been challenged, and what it waits for then.
fn challenged() -> (Vec<u8>, AwaitProof) {
    match hello().1.take(&read(&challenge())) {
        Ok(Challenged::Native { request, next }) => (request, next),
        other => panic!("{other:?}"),
    }
}

fn await_proof() -> AwaitProof {
    // Its nonce is another one than that which the seeds answer.
    let (_, state) = AwaitChallenge::start(key(), "host", [0xc2; 32], None);
    match state.take(&read(&challenge())) {
        Ok(Challenged::Native { next, .. }) => next,
        other => panic!("{other:?}"),
    }
}

/// Returns a v1 client that a server has verified.
fn bearer() -> &'static BearerVerified {
    static VERIFIED: OnceLock<BearerVerified> = OnceLock::new();
    VERIFIED.get_or_init(
        || match decode_request(&AwaitOffer::start(key(), "host").0) {
            Ok(Some((Request::Bearer(request), _))) => {
                request.verify(&keys()).expect("the right key")
            }
            other => panic!("{other:?}"),
        },
    )
}

pub fn seeds() -> Vec<Vec<u8>> {
    let Ok(Some((Request::Proof(request), _))) = decode_request(&challenged().0) else {
        panic!("a proof");
    };
    let mut answered = AnsweredChallenges::default();
    let verified = request
        .verify(&keys(), &secret(), &mut answered, NOW)
        .expect("the right key");
    let native = verified.accept(SessionId([0x5e; 16]), &OFFER, None).answer;
    let (upgrade, _) = AwaitUpgrade::start("host", *b"the sample nonce", None);
    let Ok(Some((Request::WebSocket(upgrade), _))) = decode_request(&upgrade) else {
        panic!("an upgrade");
    };
    let mut seeds = vec![
        challenge(),
        native,
        bearer().accept(&OFFER),
        upgrade.accept(),
    ];
    for recording in recordings::CONNECTIONS {
        seeds.extend(recordings::said(recording, "server").into_iter().take(1));
    }
    seeds
}
