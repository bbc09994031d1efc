use std::time::Duration;

use super::challenge::{AnsweredChallenges, BootSecret, ChallengeError};
use super::client::{
    AwaitChallenge, AwaitOffer, AwaitProof, Challenged, ClientError, Response, ServerVerified,
    decode_response,
};
use super::server::{Accepted, Refusal, Request, decode_request};
use super::*;
use crate::limits::{CHALLENGE_AGE_MAX, HANDSHAKE_BODY_SIZE_MAX, HANDSHAKE_HEAD_SIZE_MAX};
use crate::wire::fingerprint::Fingerprint;
use crate::wire::key::{ServerKeys, TunnelKey};
use crate::wire::mutation::Xorshift;
use crate::wire::offer::{Flow, Offer, TlsMode, Transport};
use crate::wire::proof::encode_hex;
use crate::wire::recorded::{recorded_key, recordings};
use crate::wire::signal::{Received, Signal};

const NOW: Duration = Duration::from_secs(50);
const CLIENT_NONCE: Nonce = [0xc1; 32];
const SESSION: SessionId = SessionId([0x5e; 16]);
const OLD_SESSION: SessionId = SessionId([0x01; 16]);
const OFFER: Offer = Offer {
    flow: Flow::Reverse,
    pool_max: 8,
    tls: TlsMode::SelfSigned,
    transport: Transport::Tcp,
};

/// A server: its keys, and what it remembers.
struct Server {
    keys: ServerKeys,
    secret: BootSecret,
    answered: AnsweredChallenges,
}

fn server() -> Server {
    Server {
        keys: ServerKeys::explicit(recorded_key()),
        secret: BootSecret::new([0xb0; 32]),
        answered: AnsweredChallenges::default(),
    }
}

fn fingerprint() -> Fingerprint {
    Fingerprint::of_certificate(b"certificate")
}

impl Server {
    fn challenge(&self, hello: &[u8]) -> Result<Vec<u8>, Refusal> {
        match decode_request(hello)? {
            Some((Request::Hello(hello), _)) => Ok(hello.challenge(&self.secret, NOW, [7; 8])),
            other => panic!("{other:?}"),
        }
    }

    fn accept_at(&mut self, request: &[u8], now: Duration) -> Result<Accepted, Refusal> {
        match decode_request(request)? {
            Some((Request::Proof(request), _)) => {
                let (secret, answered) = (&self.secret, &mut self.answered);
                let verified = request.verify(&self.keys, secret, answered, now)?;
                Ok(verified.accept(SESSION, &OFFER, Some(fingerprint())))
            }
            // What was changed into another kind of request is none of ours.
            _ => Err(Refusal::NoToken),
        }
    }

    fn accept(&mut self, request: &[u8]) -> Result<Accepted, Refusal> {
        self.accept_at(request, NOW)
    }
}

fn response(bytes: &[u8]) -> Response {
    let (response, size) = decode_response(bytes).unwrap().unwrap();
    assert_eq!(size, bytes.len());
    response
}

fn hello(key: TunnelKey) -> (Vec<u8>, AwaitChallenge) {
    AwaitChallenge::start(key, "tunnel.example", CLIENT_NONCE, Some(OLD_SESSION))
}

fn native(challenged: Challenged) -> (Vec<u8>, AwaitProof) {
    match challenged {
        Challenged::Native { request, next } => (request, next),
        Challenged::V1 => panic!("taken for v1"),
    }
}

/// Returns the request of a client with `key` that has been challenged by `server`.
fn challenged(server: &Server, key: TunnelKey) -> (Vec<u8>, AwaitProof) {
    let (request, state) = hello(key);
    let answer = server.challenge(&request).unwrap();
    native(state.take(&response(&answer)).unwrap())
}

/// Checks that both ends of a session understand each other.
fn assert_same_session(client: NativeSession, server: NativeSession) {
    assert_eq!(client.id(), server.id());
    let (mut client_writer, mut client_reader, mut issuer) = client.into_client();
    let (mut server_writer, mut server_reader, mut tickets) = server.into_server();
    for (writer, reader) in [
        (&mut client_writer, &mut server_reader),
        (&mut server_writer, &mut client_reader),
    ] {
        let line = writer.encode(&Signal::Ping).unwrap();
        let received = reader.read(&mut &line[..]);
        assert_eq!(received, Ok(Some(Received::Signal(Signal::Ping))));
    }
    assert!(tickets.redeem(&issuer.issue()).is_ok());
}

#[test]
fn recorded_requests_and_answers_are_read() {
    let keys = ServerKeys::explicit(recorded_key());
    for recording in recordings() {
        let request = decode_request(&recording.request).unwrap();
        let Some((Request::Bearer(request), size)) = request else {
            panic!("{request:?}");
        };
        assert_eq!(size, recording.request.len());
        let verified = request.verify(&keys).unwrap();
        assert_eq!(verified.key(), &recorded_key());
        let (_, state) = AwaitOffer::start(recorded_key(), "none");
        let (offer, key) = state.take(&response(&recording.answer)).unwrap();
        assert_eq!(key, recorded_key());
        // Our answer differs from the recorded one in its headers alone, and a client of ours
        // reads the same from it.
        let answer = verified.accept(&offer);
        let body = recording
            .answer
            .split(|byte| *byte == b'{')
            .next_back()
            .unwrap();
        assert!(answer.ends_with(body));
        let (_, state) = AwaitOffer::start(recorded_key(), "none");
        assert_eq!(
            state.take(&response(&answer)).unwrap(),
            (offer, recorded_key())
        );
    }
}

#[test]
fn v1_messages_are_the_specified_ones() {
    let (request, _) = AwaitOffer::start(recorded_key(), "tunnel.example");
    assert_eq!(
        String::from_utf8(request.clone()).unwrap(),
        "GET / HTTP/1.1\r\nHost: tunnel.example\r\nAuthorization: Bearer \
         6debfeadd8df80dd8b3762fd569962db0f3bfbbe252972c28341591bf823aa2c\r\n\r\n"
    );
    let Some((Request::Bearer(bearer), _)) = decode_request(&request).unwrap() else {
        panic!("no handshake");
    };
    let offer = Offer {
        tls: TlsMode::Plain,
        ..OFFER
    };
    let answer = bearer.verify(&server().keys).unwrap().accept(&offer);
    assert_eq!(
        String::from_utf8(answer).unwrap(),
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: 42\r\n\r\n{\"flow\":\"-\",\"max\":8,\"tls\":\"0\",\"type\":\"0\"}\n"
    );
}

#[test]
fn v1_token_of_either_derived_key_is_accepted_and_names_the_key() {
    let keys = ServerKeys::derived(10101);
    for key in [
        TunnelKey::derived_from_port(10101),
        TunnelKey::derived_fnv(10101),
    ] {
        let (request, _) = AwaitOffer::start(key.clone(), "none");
        let Some((Request::Bearer(bearer), _)) = decode_request(&request).unwrap() else {
            panic!("no handshake");
        };
        assert_eq!(bearer.verify(&keys).unwrap().key(), &key);
    }
}

#[test]
fn a_token_is_never_printed() {
    let (request, _) = AwaitOffer::start(recorded_key(), "none");
    let (decoded, _) = decode_request(&request).unwrap().unwrap();
    assert_eq!(format!("{decoded:?}"), "Bearer(BearerRequest(***))");
}

#[test]
fn wrong_and_missing_tokens_are_refused() {
    let verify = |header: &str| {
        let request = format!("GET / HTTP/1.1\r\n{header}\r\n");
        match decode_request(request.as_bytes()).unwrap() {
            Some((Request::Bearer(bearer), _)) => bearer.verify(&server().keys).map(|_| ()),
            other => panic!("{other:?}"),
        }
    };
    let right = "6debfeadd8df80dd8b3762fd569962db0f3bfbbe252972c28341591bf823aa2c";
    assert_eq!(
        verify(&format!("authorization: bearer {right}\r\n")),
        Ok(())
    );
    for index in 0..right.len() {
        let mut wrong = right.to_owned().into_bytes();
        wrong[index] = if wrong[index] == b'0' { b'1' } else { b'0' };
        let wrong = String::from_utf8(wrong).unwrap();
        let refused = verify(&format!("Authorization: Bearer {wrong}\r\n"));
        assert_eq!(refused, Err(Refusal::WrongToken));
    }
    for header in [
        "",
        "Authorization: Bearer\r\n",
        "Authorization: Bearer 6d\r\n",
    ] {
        assert_eq!(verify(header), Err(Refusal::NoToken));
    }
    let basic = format!("Authorization: Basic {right}\r\n");
    assert_eq!(verify(&basic), Err(Refusal::NoToken));
    for refusal in [Refusal::NoToken, Refusal::WrongToken] {
        let answer = response(&refusal.answer().unwrap());
        let (_, state) = AwaitOffer::start(recorded_key(), "none");
        assert_eq!(state.take(&answer), Err(ClientError::KeyRefused));
        assert!(refusal.is_wrong_key());
    }
}

#[test]
fn requests_are_told_apart() {
    let decode = |head: &str| decode_request(format!("{head}\r\n\r\n").as_bytes());
    let nonce = encode_hex(&CLIENT_NONCE);
    let hello = format!("GET / HTTP/1.1\r\nNodePass-Version: 1\r\nNodePass-Nonce: {nonce}");
    assert!(matches!(
        decode("GET / HTTP/1.1"),
        Ok(Some((Request::Bearer(_), _)))
    ));
    assert!(matches!(decode(&hello), Ok(Some((Request::Hello(_), _)))));
    let upgrade = "GET / HTTP/1.1\r\nUpgrade: WebSocket\r\nConnection: Upgrade";
    let version = "Sec-WebSocket-Version: 13";
    let websocket =
        format!("{upgrade}\r\n{version}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==");
    let ticket = format!("{websocket}\r\nNodePass-Ticket: {}", "ab".repeat(40));
    for (head, has_ticket) in [(&websocket, false), (&ticket, true)] {
        let Ok(Some((Request::WebSocket(upgrade), _))) = decode(head) else {
            panic!("{head}");
        };
        assert_eq!(upgrade.ticket().is_some(), has_ticket);
    }
    for wrong in [
        upgrade.to_owned(),
        websocket.replace("13", "8"),
        websocket.replace("n: 13", "n: 13\r\nSec-WebSocket-Version: 13"),
        websocket.replace("dGhl", "dGhldGhl"),
        websocket.replace("dGhl", "????"),
        websocket.replace("n: Upgrade", "n: close"),
    ] {
        assert!(matches!(decode(&wrong), Err(Refusal::Head(_))), "{wrong}");
    }
    let status = |head: &str| {
        let answer = decode(head).unwrap_err().answer()?;
        let text = String::from_utf8(answer).unwrap();
        Some(text.split(' ').nth(1).unwrap().to_owned())
    };
    for (head, expected) in [
        ("GET /other HTTP/1.1", "404"),
        ("POST /other HTTP/1.1", "404"),
        ("POST / HTTP/1.1", "405"),
        ("HEAD / HTTP/1.1", "405"),
        ("GET / SSH/2.0", "400"),
        ("\u{16}\u{3}\u{1}", "400"),
        ("GET / HTTP/1.1\r\nContent-Length: 1", "400"),
        ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked", "400"),
        (
            "GET / HTTP/1.1\r\nAuthorization: a\r\nAuthorization: b",
            "400",
        ),
        ("GET / HTTP/1.1\r\nNodePass-Version: 1", "400"),
        ("GET / HTTP/1.1\r\nNodePass-Version: 2", "401"),
        (&format!("{hello}\r\nNodePass-Nonce: {nonce}"), "400"),
        (&format!("{hello}0"), "400"),
        (&format!("{hello}\r\nNodePass-Proof: {nonce}"), "400"),
        (&format!("{hello}\r\nNodePass-Proof: {nonce}x"), "400"),
    ] {
        assert_eq!(status(head).as_deref(), Some(expected), "{head}");
    }
    assert_eq!(status(&format!("{ticket}0")), None);
    let endless = vec![b'a'; HANDSHAKE_HEAD_SIZE_MAX];
    let refusal = decode_request(&[b"GET / HTTP/1.1\r\nA: ", &endless[..]].concat()).unwrap_err();
    assert_eq!(refusal, Refusal::Head(HeadError::TooLarge));
    assert_eq!(refusal.answer(), None);
}

#[test]
fn native_handshake_ends_in_one_session() {
    let mut server = server();
    let (request, state) = hello(recorded_key());
    let answer = server.challenge(&request).unwrap();
    let answer = response(&answer);
    assert_eq!(answer.connection(), Connection::KeptOpen);
    let (request, state) = native(state.take(&answer).unwrap());
    let accepted = server.accept(&request).unwrap();
    assert_eq!(accepted.replaces, Some(OLD_SESSION));
    let answer = response(&accepted.answer);
    assert_eq!(answer.connection(), Connection::Closed);
    let ServerVerified {
        offer,
        fingerprint: shown,
        session,
    } = state.take(&answer).unwrap();
    assert_eq!((offer, shown), (OFFER, Some(fingerprint())));
    assert_eq!(session.id(), SESSION);
    assert_same_session(session, accepted.session);
}

#[test]
fn native_messages_are_the_specified_ones() {
    let mut server = server();
    let (request, state) = hello(recorded_key());
    let cn = encode_hex(&CLIENT_NONCE);
    assert_eq!(
        String::from_utf8(request.clone()).unwrap(),
        format!(
            "GET / HTTP/1.1\r\nHost: tunnel.example\r\nNodePass-Version: 1\r\n\
             NodePass-Nonce: {cn}\r\n\r\n"
        )
    );
    let answer = server.challenge(&request).unwrap();
    let server_nonce = BootSecret::new([0xb0; 32]).challenge(&CLIENT_NONCE, NOW, [7; 8]);
    let sn = encode_hex(&server_nonce);
    assert_eq!(
        String::from_utf8(answer.clone()).unwrap(),
        format!(
            "HTTP/1.1 401 Unauthorized\r\nNodePass-Version: 1\r\nNodePass-Nonce: {sn}\r\n\
             Content-Length: 0\r\n\r\n"
        )
    );
    let (request, _) = native(state.take(&response(&answer)).unwrap());
    let proof = authenticate(b"k3y", "nodepass client", &[&CLIENT_NONCE, &server_nonce]);
    assert_eq!(
        String::from_utf8(request.clone()).unwrap(),
        format!(
            "GET / HTTP/1.1\r\nHost: tunnel.example\r\nNodePass-Version: 1\r\n\
             NodePass-Nonce: {cn}\r\nNodePass-Challenge: {sn}\r\nNodePass-Proof: {}\r\n\
             NodePass-Replaces: {OLD_SESSION}\r\n\r\n",
            encode_hex(&proof)
        )
    );
    let answer = String::from_utf8(server.accept(&request).unwrap().answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let parts: [&[u8]; 3] = [&CLIENT_NONCE, &server_nonce, body.as_bytes()];
    let proof = encode_hex(&authenticate(b"k3y", "nodepass server", &parts));
    assert!(head.ends_with(&format!("NodePass-Proof: {proof}")));
    let expected = format!(
        "{{\"flow\":\"-\",\"max\":8,\"tls\":\"1\",\"type\":\"0\",\"session\":\"{SESSION}\",\
         \"fp\":\"{}\"}}\n",
        fingerprint()
    );
    assert_eq!(body, expected);
}

#[test]
fn either_derived_key_leads_to_a_session() {
    for key in [TunnelKey::derived_from_port(80), TunnelKey::derived_fnv(80)] {
        let mut server = Server {
            keys: ServerKeys::derived(80),
            ..server()
        };
        let (request, state) = challenged(&server, key);
        let accepted = server.accept(&request).unwrap();
        let verified = state.take(&response(&accepted.answer)).unwrap();
        assert_same_session(verified.session, accepted.session);
    }
}

#[test]
fn a_client_with_another_key_is_refused() {
    let mut server = server();
    let (request, state) = challenged(&server, TunnelKey::new(b"k3z".to_vec()));
    let refusal = server.accept(&request).unwrap_err();
    assert_eq!(refusal, Refusal::WrongProof);
    let taken = state.take(&response(&refusal.answer().unwrap()));
    assert_eq!(taken.unwrap_err(), ClientError::KeyRefused);
}

#[test]
fn a_server_with_another_key_is_refused() {
    let mut server = server();
    let (request, _) = challenged(&server, recorded_key());
    let answer = response(&server.accept(&request).unwrap().answer);
    let (_, state) = challenged(&server, TunnelKey::new(b"k3z".to_vec()));
    assert_eq!(state.take(&answer).unwrap_err(), ClientError::WrongProof);
    let body = r#"{"flow":"-","max":8,"tls":"0","type":"0"}"#;
    let answer = |headers: &str| {
        let length = body.len();
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
        response(text.as_bytes())
    };
    let (_, v1_state) = AwaitOffer::start(recorded_key(), "none");
    assert!(v1_state.take(&answer("")).is_ok());
    let (_, state) = challenged(&server, recorded_key());
    let taken = state.take(&answer(""));
    assert_eq!(taken.unwrap_err(), ClientError::WrongProof);
    // A client's proof sent back is not one of a server.
    let (request, state) = challenged(&server, recorded_key());
    let request = String::from_utf8(request).unwrap();
    let is_proof = |line: &&str| line.starts_with(HEADER_PROOF);
    let proof = request.lines().find(is_proof).unwrap();
    let taken = state.take(&answer(&format!("{proof}\r\n")));
    assert_eq!(taken.unwrap_err(), ClientError::WrongProof);
}

#[test]
fn a_proof_counts_once_and_for_a_short_time() {
    let mut server = server();
    let (request, _) = challenged(&server, recorded_key());
    let late = NOW + CHALLENGE_AGE_MAX + Duration::from_millis(1);
    let expired = server.accept_at(&request, late).unwrap_err();
    assert_eq!(expired, Refusal::Challenge(ChallengeError::Expired));
    assert!(server.accept_at(&request, NOW + CHALLENGE_AGE_MAX).is_ok());
    let repeated = server.accept(&request).unwrap_err();
    assert_eq!(repeated, Refusal::Challenge(ChallengeError::Repeated));
    assert!(!repeated.is_wrong_key());
    server.secret = BootSecret::new([0xb1; 32]);
    let restarted = server.accept(&request).unwrap_err();
    assert_eq!(restarted, Refusal::Challenge(ChallengeError::Foreign));
}

#[test]
fn a_client_whose_challenge_does_not_count_comes_again() {
    let mut server = server();
    let (request, state) = challenged(&server, recorded_key());
    // The server was restarted between the two requests.
    server.secret = BootSecret::new([0xb1; 32]);
    let refusal = server.accept(&request).unwrap_err();
    let error = state
        .take(&response(&refusal.answer().unwrap()))
        .unwrap_err();
    assert!(error.retry_helps(), "{error}");
    for reason in [
        ChallengeError::Foreign,
        ChallengeError::Expired,
        ChallengeError::Repeated,
        ChallengeError::Full,
    ] {
        let answer = response(&Refusal::Challenge(reason).answer().unwrap());
        let (_, state) = challenged(&server, recorded_key());
        assert_eq!(state.take(&answer).unwrap_err(), ClientError::Status(503));
    }
}

#[test]
fn a_wrong_proof_does_not_use_the_challenge_up() {
    let mut server = server();
    let (wrong, _) = challenged(&server, TunnelKey::new(b"k3z".to_vec()));
    let (right, _) = challenged(&server, recorded_key());
    assert_eq!(server.accept(&wrong).unwrap_err(), Refusal::WrongProof);
    assert!(server.accept(&right).is_ok());
}

#[test]
fn a_v1_server_is_recognised_and_a_newer_one_named() {
    let take = |answer: &str| hello(recorded_key()).1.take(&response(answer.as_bytes()));
    let v1 = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 13\r\n\r\nUnauthorized\n";
    assert!(matches!(take(v1), Ok(Challenged::V1)));
    let v1 = "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\n";
    assert!(matches!(take(v1), Ok(Challenged::V1)));
    let newer = "HTTP/1.1 401 Unauthorized\r\nNodePass-Version: 2\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(take(newer).unwrap_err(), ClientError::Version);
    let empty = "HTTP/1.1 401 Unauthorized\r\nNodePass-Version: 1\r\n\r\n";
    assert_eq!(take(empty).unwrap_err(), ClientError::Challenge);
    let proxy = "HTTP/1.1 502 Bad Gateway\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(take(proxy).unwrap_err(), ClientError::Status(502));
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(take(ok).unwrap_err(), ClientError::Status(200));
}

#[test]
fn a_self_signed_server_must_name_its_certificate() {
    let mut server = server();
    let (request, state) = challenged(&server, recorded_key());
    let Some((Request::Proof(proof), _)) = decode_request(&request).unwrap() else {
        panic!("no proof");
    };
    let (secret, answered) = (&server.secret, &mut server.answered);
    let verified = proof.verify(&server.keys, secret, answered, NOW).unwrap();
    let accepted = verified.accept(SESSION, &OFFER, None);
    let taken = state.take(&response(&accepted.answer));
    assert_eq!(taken.unwrap_err(), ClientError::NoFingerprint);
}

#[test]
fn answers_are_read_within_bounds() {
    let answer = |size: usize| {
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").into_bytes();
        answer.resize(answer.len() + size, b'x');
        answer
    };
    let largest = answer(HANDSHAKE_BODY_SIZE_MAX);
    assert!(matches!(decode_response(&largest), Ok(Some((_, size))) if size == largest.len()));
    for end in [0, 9, largest.len() - 1] {
        assert_eq!(decode_response(&largest[..end]), Ok(None));
    }
    let larger = answer(HANDSHAKE_BODY_SIZE_MAX + 1);
    assert_eq!(decode_response(&larger), Err(ClientError::BodyTooLarge));
    for headers in ["", "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n"] {
        let head = format!("HTTP/1.1 200 OK\r\n{headers}\r\n");
        assert_eq!(decode_response(head.as_bytes()), Err(ClientError::NoLength));
    }
    let endless = [
        b"HTTP/1.1 200 OK\r\nA: ",
        &[b'a'; HANDSHAKE_HEAD_SIZE_MAX][..],
    ]
    .concat();
    assert_eq!(
        decode_response(&endless),
        Err(ClientError::Head(HeadError::TooLarge))
    );
}

/// What a whole handshake comes to, with one message changed on its way.
fn handshake_with(change: impl Fn(usize, Vec<u8>) -> Vec<u8>) -> Option<(NativeSession, Accepted)> {
    let mut server = server();
    let (request, state) = hello(recorded_key());
    let request = change(0, request);
    // A request that is still incomplete, or of another kind, gets no challenge.
    let Ok(Some((Request::Hello(decoded), _))) = decode_request(&request) else {
        return None;
    };
    let answer = change(1, decoded.challenge(&server.secret, NOW, [7; 8]));
    let (answer, _) = decode_response(&answer).ok()??;
    let Ok(Challenged::Native { request, next }) = state.take(&answer) else {
        return None;
    };
    let accepted = server.accept(&change(2, request)).ok()?;
    let answer = change(3, accepted.answer.clone());
    let (answer, _) = decode_response(&answer).ok()??;
    let verified = next.take(&answer).ok()?;
    assert_eq!(
        (verified.offer, verified.fingerprint),
        (OFFER, Some(fingerprint()))
    );
    Some((verified.session, accepted))
}

/// Returns the messages of a handshake that nobody changes.
fn messages() -> [Vec<u8>; 4] {
    let messages = std::cell::RefCell::new(Vec::new());
    let done = handshake_with(|_, message| {
        messages.borrow_mut().push(message.clone());
        message
    });
    assert!(done.is_some());
    messages.into_inner().try_into().unwrap()
}

/// Returns where in `message` the bytes are that the handshake means: everything but the host, the
/// headers for HTTP alone and the spelling of names.
fn meant(message: &[u8]) -> Vec<std::ops::Range<usize>> {
    let text = str::from_utf8(message).unwrap();
    let mut ranges = Vec::new();
    for name in [HEADER_VERSION, HEADER_NONCE, HEADER_CHALLENGE, HEADER_PROOF] {
        if let Some(start) = text.find(&format!("{name}: ")) {
            let end = start + text[start..].find("\r\n").unwrap();
            ranges.push(start + name.len() + 2..end);
        }
    }
    let body = text.find("\r\n\r\n").unwrap() + 4;
    ranges.push(body..text.len());
    ranges
}

#[test]
fn each_changed_byte_that_means_something_is_refused() {
    for (step, message) in messages().iter().enumerate() {
        for index in meant(message).into_iter().flatten() {
            for bit in 0..8 {
                let done = handshake_with(|at, mut message| {
                    if at == step {
                        message[index] ^= 1 << bit;
                    }
                    message
                });
                assert!(done.is_none(), "step {step}, byte {index}, bit {bit}");
            }
        }
    }
}

#[test]
fn no_changed_byte_makes_the_ends_differ() {
    for (step, message) in messages().iter().enumerate() {
        let text = str::from_utf8(message).unwrap();
        let replaces = text.find(HEADER_REPLACES).unwrap_or(message.len());
        for index in 0..message.len() {
            for bit in 0..8 {
                let done = handshake_with(|at, mut message| {
                    if at == step {
                        message[index] ^= 1 << bit;
                    }
                    message
                });
                if let Some((session, accepted)) = done {
                    assert_same_session(session, accepted.session);
                    // The one member that no proof covers.
                    let same = accepted.replaces == Some(OLD_SESSION);
                    assert!(same || index >= replaces, "step {step}, byte {index}");
                }
            }
        }
    }
}

#[test]
fn no_damaged_message_makes_the_ends_differ() {
    let random = std::cell::RefCell::new(Xorshift::new(8));
    for step in 0..4 {
        for _ in 0..2_000 {
            let done = handshake_with(|at, message| match at {
                at if at == step => random.borrow_mut().damage(&message),
                _ => message,
            });
            if let Some((session, accepted)) = done {
                assert_same_session(session, accepted.session);
            }
        }
    }
}

#[test]
fn every_piece_of_a_message_is_incomplete() {
    let messages = messages();
    for (step, message) in messages.iter().enumerate() {
        for end in 0..message.len() {
            if step % 2 == 0 {
                assert!(matches!(decode_request(&message[..end]), Ok(None)));
            } else {
                assert_eq!(decode_response(&message[..end]), Ok(None));
            }
        }
    }
}

#[test]
fn errors_say_what_to_do_and_show_no_key() {
    let refusals = [Refusal::WrongProof, Refusal::NativeOnly, Refusal::Version];
    for refusal in refusals {
        let text = refusal.to_string();
        assert!(!text.is_empty() && !text.contains("k3y"));
    }
    let (_, state) = challenged(&server(), recorded_key());
    assert!(!format!("{state:?}").contains("k3y"));
    assert!(ClientError::Status(503).retry_helps() && !ClientError::KeyRefused.retry_helps());
}
