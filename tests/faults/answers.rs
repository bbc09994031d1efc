//! Servers, or what pretends to be one, that answer our client wrong.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nodepass::wire::handshake::server::Refusal;
use nodepass::wire::offer::{Flow, Offer, TlsMode, Transport};
use nodepass::wire::signal::Signal;

use crate::support::ends::{End, KEY};
use crate::support::peer::{Identity, PlayedServer, key, random, read_head};
use crate::support::servers::TcpServer;

const OFFER: Offer = Offer {
    flow: Flow::Reverse,
    pool_max: 16,
    tls: TlsMode::Plain,
    transport: Transport::Tcp,
};

/// Attempts follow each other quickly, and each is over soon.
const IMPATIENT: &[(&str, &str)] = &[
    ("NP_REPORT_INTERVAL", "300ms"),
    ("NP_SERVICE_COOLDOWN", "50ms"),
    ("NP_HANDSHAKE_TIMEOUT", "500ms"),
];

fn start_client(server: &PlayedServer, options: &str) -> (End, TcpServer) {
    let target = TcpServer::echo();
    let options = format!("min=2&{options}");
    let address = target.address().to_string();
    (
        End::client(server.address(), &address, &options, IMPATIENT),
        target,
    )
}

/// The session after all that went wrong: a visitor is served.
fn check_session(server: &PlayedServer, client: &End) {
    server.close_pool();
    let control = server.accept_native(&key(KEY), &OFFER, None);
    client.wait_up(1);
    let mut stream = server.send_visitor(&control, |id| Signal::Tcp { remote: None, id });
    stream.write_all(b"served").unwrap();
    assert_eq!(stream.read_count(6), b"served");
}

/// The pauses that the client has announced, in milliseconds.
fn pauses(client: &End) -> Vec<f64> {
    let lines = client.lines();
    let texts = lines
        .iter()
        .filter_map(|line| line.split_once("Trying again in "));
    texts
        .map(|(_, rest)| {
            let (number, unit) = rest.trim().split_once(' ').unwrap();
            let number: f64 = number.parse().unwrap();
            match unit {
                "s" => number * 1000.0,
                "ms" => number,
                other => panic!("a unit of time {other:?}"),
            }
        })
        .collect()
}

#[test]
fn server_with_another_key_is_told_of_and_tried_ever_more_slowly() {
    const COOLDOWN: f64 = 50.0;
    const ATTEMPTS: i32 = 5;
    let server = PlayedServer::start();
    let (mut client, _target) = start_client(&server, "");
    for _ in 0..ATTEMPTS {
        // Each handshake gets as far as the proof, which is of another key.
        let refused = server.shake_hands(&key("another"), &OFFER, None, None);
        assert_eq!(refused.err(), Some(Refusal::WrongProof));
    }
    let attempts = usize::try_from(ATTEMPTS).unwrap();
    client.wait_for_count("Trying again in ", attempts);
    assert!(client.is_running());
    let line = client.wait_complaint(&["Client error: ", "refuses our key"]);
    assert!(line.contains(" ERROR "), "{line}");
    for (step, pause) in (0..).zip(pauses(&client)) {
        let least = COOLDOWN * f64::from(1 << step.min(3));
        // Up to ten times, and a quarter of jitter; the log rounds.
        let most = (COOLDOWN * f64::from(1 << step.min(4))).min(COOLDOWN * 10.0) * 1.25;
        let allowed = least - 50.0..=most + 50.0;
        assert!(allowed.contains(&pause), "pause {step} of {pause} ms");
    }
    check_session(&server, &client);
}

#[test]
fn server_with_another_key_never_sees_a_token() {
    let server = PlayedServer::start();
    let (client, _target) = start_client(&server, "");
    let refused = server.shake_hands(&key("another"), &OFFER, None, None);
    assert!(refused.is_err());
    client.wait_for("Trying again in ");
    // What comes next is a native hello again, not the token of v1.
    let (head, _) = server.next_request();
    let head = String::from_utf8(head).unwrap();
    assert!(head.contains("NodePass-Nonce: "), "{head}");
    assert!(!head.contains("Authorization"), "{head}");
}

#[test]
fn server_that_cannot_prove_the_key_is_refused() {
    let server = PlayedServer::start();
    let (client, _target) = start_client(&server, "");
    // The challenge needs no key; then it says yes, with any proof at all.
    let (_, mut socket) = server.next_request();
    let nonce = nodepass::wire::proof::encode_hex(&random::<32>());
    let challenge = format!(
        "HTTP/1.1 401 Unauthorized\r\nNodePass-Version: 1\r\nNodePass-Nonce: {nonce}\r\n\
         Content-Length: 0\r\n\r\n"
    );
    socket.write_all(challenge.as_bytes()).unwrap();
    let mut head = read_head(&socket).unwrap();
    if head.is_empty() {
        (head, socket) = server.next_request();
    }
    assert!(
        String::from_utf8(head)
            .unwrap()
            .contains("NodePass-Proof: ")
    );
    let session = nodepass::wire::proof::encode_hex(&random::<16>());
    let body = format!(r#"{{"flow":"-","max":8,"tls":"0","type":"0","session":"{session}"}}"#);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nNodePass-Proof: {nonce}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(answer.as_bytes()).unwrap();
    client.wait_complaint(&["Client error: ", "has not proven that it knows our key"]);
    check_session(&server, &client);
}

#[test]
fn v1_server_is_refused_where_only_native_ones_are_wanted() {
    let server = PlayedServer::start();
    let (client, _target) = start_client(&server, "auth=1");
    let (_, mut socket) = server.next_request();
    let answer = b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    socket.write_all(answer).unwrap();
    client.wait_complaint(&["Client error: "]);
    let (head, _) = server.next_request();
    assert!(!String::from_utf8(head).unwrap().contains("Authorization"));
    check_session(&server, &client);
}

/// What a server may say instead of an answer, and whether it then ends the connection.
fn wrong_answers() -> Vec<(&'static str, Vec<u8>, After)> {
    let challenge = "HTTP/1.1 401 Unauthorized\r\nNodePass-Version: 1\r\n";
    let text = |head: &str| head.as_bytes().to_vec();
    vec![
        ("nothing", Vec::new(), After::Close),
        ("silence", Vec::new(), After::Wait),
        ("garbage", vec![0xa5; 4096], After::Close),
        (
            "another protocol",
            text("SSH-2.0-OpenSSH_9.2\r\n"),
            After::Wait,
        ),
        ("half a head", text("HTTP/1.1 401 Unauth"), After::Wait),
        (
            "half a head that ends",
            text("HTTP/1.1 401 Unauth"),
            After::Close,
        ),
        (
            "a head without end",
            [text("HTTP/1.1 401 No\r\nX: "), vec![b'x'; 64 * 1024]].concat(),
            After::Wait,
        ),
        (
            "a huge body",
            text("HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n{\"flow\":"),
            After::Wait,
        ),
        (
            "a body in chunks",
            text("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
            After::Close,
        ),
        (
            "a body without a length",
            text("HTTP/1.1 200 OK\r\n\r\n{\"flow\":\"-\"}"),
            After::Close,
        ),
        (
            "an error of its own",
            text("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"),
            After::Close,
        ),
        (
            "another place",
            text("HTTP/1.1 301 Moved Permanently\r\nLocation: http://127.0.0.1:1/\r\n\r\n"),
            After::Close,
        ),
        (
            "an offer nobody asked for",
            text(
                "HTTP/1.1 200 OK\r\nContent-Length: 42\r\n\r\n\
                 {\"flow\":\"-\",\"max\":8,\"tls\":\"0\",\"type\":\"0\"}\n",
            ),
            After::Close,
        ),
        (
            "a challenge that is none",
            text(&format!(
                "{challenge}NodePass-Nonce: 00\r\nContent-Length: 0\r\n\r\n"
            )),
            After::Close,
        ),
        (
            "a challenge of another version",
            text("HTTP/1.1 401 No\r\nNodePass-Version: 2\r\nContent-Length: 0\r\n\r\n"),
            After::Close,
        ),
    ]
}

/// What becomes of the connection after a wrong answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// It is closed.
    Close,
    /// It stays open: the client is the one who has enough of it.
    Wait,
}

#[test]
fn wrong_answers_of_any_kind_are_told_of_and_survived() {
    let server = PlayedServer::start();
    let (mut client, _target) = start_client(&server, "");
    let mut open: Vec<TcpStream> = Vec::new();
    for (count, (name, answer, after)) in (1..).zip(wrong_answers()) {
        let (_, mut socket) = server.next_request();
        let answered_at = Instant::now();
        // The client need not read all of it.
        let _ = socket.write_all(&answer);
        if after == After::Wait {
            open.push(socket);
        } else {
            drop(socket);
        }
        client.wait_for_count("Client error: ", count);
        let elapsed = answered_at.elapsed();
        assert!(
            elapsed < Duration::from_secs(5),
            "{name}: given up after {elapsed:?}"
        );
        assert!(client.is_running(), "{name}");
    }
    check_session(&server, &client);
}

#[test]
fn head_that_never_ends_is_not_read_for_long() {
    let server = PlayedServer::start();
    let (client, _target) = start_client(&server, "");
    let (_, mut socket) = server.next_request();
    socket
        .write_all(b"HTTP/1.1 401 Unauthorized\r\nX-Long: ")
        .unwrap();
    let memory = client.memory_size();
    // Until the client closes; a gigabyte would take it too long, and too much memory.
    let chunk = vec![b'x'; 64 * 1024];
    let sent = (0..16 * 1024).take_while(|_| socket.write_all(&chunk).is_ok());
    assert!(sent.count() < 1024, "the client reads and reads");
    client.wait_for("Client error: ");
    let grown = client.memory_size().saturating_sub(memory);
    assert!(grown < 16 << 20, "memory has grown by {grown} bytes");
    check_session(&server, &client);
}

#[test]
fn server_that_gives_no_ids_is_left_and_tried_again() {
    let server = PlayedServer::start();
    let (client, _target) = start_client(&server, "");
    // A proven server, but its tunnel port speaks TLS where it said that it does not.
    let identity = Identity::make();
    server
        .shake_hands(&key(KEY), &OFFER, Some(&identity), None)
        .unwrap();
    client.wait_for("Client error: ");
    assert_eq!(client.up_count(), 0);
    check_session(&server, &client);
}
