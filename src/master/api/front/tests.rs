//! The front before a server that gives fixed answers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tiny_http::{Header, Request, Response};

use super::*;
use crate::limits::{API_BODY_SIZE_MAX, STACK_SIZE};

const DEADLINE: Duration = Duration::from_secs(20);

/// A front, and the server behind it.
struct House {
    front: Option<Front>,
    backend: Backend,
    /// What became of streams of events.
    ended: Receiver<io::Error>,
    /// Tells of each request for `/slow` that has come through.
    slow: Receiver<()>,
}

impl House {
    fn open(cover: ServerCover) -> Self {
        let backend = Backend::start(vec![std::env::temp_dir()]).unwrap();
        let (sender, ended) = channel();
        let (slow_sender, slow) = channel();
        std::thread::spawn({
            let backend = backend.clone();
            move || {
                while let Some(received) = backend.receive() {
                    let senders = (sender.clone(), slow_sender.clone());
                    std::thread::spawn(move || answer(received.request, &senders.0, &senders.1));
                }
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let front = Front::start(listener, Arc::new(cover), backend.clone(), STACK_SIZE).unwrap();
        Self {
            front: Some(front),
            backend,
            ended,
            slow,
        }
    }

    fn front(&self) -> &Front {
        self.front.as_ref().unwrap()
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.front().address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Client(BufReader::new(stream))
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.backend.close();
        if let Some(front) = self.front.take() {
            front.stop(Instant::now() + DEADLINE);
        }
    }
}

/// Answers with what has come, in a way that the path tells.
fn answer(mut request: Request, ended: &Sender<io::Error>, slow: &Sender<()>) {
    let mut body = String::new();
    request.as_reader().read_to_string(&mut body).unwrap();
    let text = format!("{} {} {body}", request.method(), request.url());
    match request.url() {
        "/events" => {
            let mut writer = request.into_writer();
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                        Transfer-Encoding: chunked\r\n\r\n";
            let mut sent = writer.write_all(head.as_bytes());
            while sent.is_ok() {
                std::thread::sleep(Duration::from_millis(5));
                sent = writer
                    .write_all(b"3\r\n:\n\n\r\n")
                    .and_then(|()| writer.flush());
            }
            let _ = ended.send(sent.unwrap_err());
        }
        "/chunked" => {
            let response = Response::from_string(text).with_chunked_threshold(0);
            request.respond(response).unwrap();
        }
        "/slow" => {
            // Whoever does not wait for it has no use for it.
            let _ = slow.send(());
            std::thread::sleep(Duration::from_millis(200));
            request.respond(Response::from_string(text)).unwrap();
        }
        "/nothing" => drop(request.into_writer()),
        "/empty" => request.respond(Response::empty(204)).unwrap(),
        _ => {
            let field = Header::from_bytes("Content-Type", "application/json").unwrap();
            let response = Response::from_string(text).with_header(field);
            request.respond(response).unwrap();
        }
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    /// Reads a head up to its empty line.
    fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let line = self.line();
            assert!(!line.is_empty(), "the head ends early: {head}");
            head += &line;
        }
        head
    }

    /// Reads an answer whose length is told.
    fn answer(&mut self) -> (String, String) {
        let head = self.head();
        let length = head.split("Content-Length: ").nth(1);
        let length = length.and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        self.0.read_exact(&mut body).unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    /// Reads up to the end of the stream.
    fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).unwrap();
        rest
    }

    fn get(&mut self, path: &str) -> (String, String) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        self.answer()
    }
}

#[test]
fn one_connection_carries_many_requests() {
    let house = House::open(ServerCover::Nothing);
    let mut client = house.connect();
    for round in 0..50 {
        let (head, body) = client.get(&format!("/{round}"));
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("\r\nConnection: keep-alive\r\n"), "{head}");
        assert!(
            head.contains("\r\nContent-Type: application/json\r\n"),
            "{head}"
        );
        assert!(!head.contains("tiny"), "{head}");
        assert_eq!(body, format!("GET /{round} "));
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let house = House::open(ServerCover::Nothing);
    let mut client = house.connect();
    let mut requests = String::new();
    for round in 0..50 {
        requests += &format!("POST /{round} HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab");
        let chunked = "Transfer-Encoding: chunked\r\n\r\n1\r\nc\r\n1;x\r\nd\r\n0\r\n\r\n";
        requests += &format!("PUT /{round} HTTP/1.1\r\nHost: h\r\n{chunked}");
    }
    client.send(requests);
    for round in 0..50 {
        assert_eq!(client.answer().1, format!("POST /{round} ab"));
        assert_eq!(client.answer().1, format!("PUT /{round} cd"));
    }
}

#[test]
fn answers_have_the_form_that_the_client_knows() {
    let house = House::open(ServerCover::Nothing);
    let mut client = house.connect();
    client.send("GET /chunked HTTP/1.1\r\nHost: h\r\n\r\n");
    let head = client.head();
    assert!(
        head.contains("\r\nTransfer-Encoding: chunked\r\n"),
        "{head}"
    );
    for line in ["d\r\n", "GET /chunked \r\n", "0\r\n", "\r\n"] {
        assert_eq!(client.line(), line);
    }
    client.send("HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(client.head().contains("\r\nContent-Length: 8\r\n"));
    client.send("GET /empty HTTP/1.1\r\nHost: h\r\n\r\n");
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
    assert!(!head.contains("Content-Length"), "{head}");
    client.send("GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(client.answer().1, "GET /x ");
    client.send("GET /chunked HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let head = client.head();
    assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
    assert_eq!(client.rest(), "GET /chunked ");
}

#[test]
fn what_is_wrong_with_a_request_is_told() {
    let house = House::open(ServerCover::Nothing);
    let long = "x".repeat(20_000);
    let body = "x".repeat(API_BODY_SIZE_MAX + 1);
    let body_size = body.len();
    for (request, status) in [
        ("\x16\x03\x01\x02\x00\x01\x00\x01\x03".to_owned(), 400),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nA : b\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/3.0\r\n\r\n".to_owned(), 505),
        (format!("GET /{long} HTTP/1.1\r\nHost: h\r\n\r\n"), 431),
        (format!("GET /{long}"), 431),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000000000000\r\n\r\n".to_owned(),
            413,
        ),
        (
            format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {body_size}\r\n\r\n{body}"),
            413,
        ),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                 1\r\nx\r\n{:x}\r\n",
                API_BODY_SIZE_MAX
            ),
            413,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx".to_owned(),
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n".to_owned(),
            501,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nExpect: more\r\n\r\n".to_owned(),
            417,
        ),
    ] {
        let mut client = house.connect();
        client.send(&request);
        let (head, body) = client.answer();
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:.60}: {head}"
        );
        for field in [
            "Access-Control-Allow-Origin: *",
            "Content-Type: application/json",
            "Connection: close",
        ] {
            assert!(head.contains(&format!("\r\n{field}\r\n")), "{head}");
        }
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert!(body["error"].is_string());
        assert_eq!(client.rest(), "");
    }
}

#[test]
fn a_request_cut_short_is_refused() {
    let house = House::open(ServerCover::Nothing);
    for request in [
        "GET / HT",
        "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nx",
    ] {
        let mut client = house.connect();
        client.send(request);
        client.0.get_ref().shutdown(Shutdown::Write).unwrap();
        assert!(client.answer().0.starts_with("HTTP/1.1 400 "));
    }
    let mut silent = house.connect();
    silent.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(silent.rest(), "");
}

#[test]
fn a_client_who_asks_may_send_his_body() {
    let house = House::open(ServerCover::Nothing);
    let mut client = house.connect();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("body");
    assert_eq!(client.answer().1, "POST / body");
}

#[test]
fn half_close_keeps_the_answer() {
    let house = House::open(ServerCover::Nothing);
    let mut client = house.connect();
    client.send("GET /slow HTTP/1.1\r\nHost: h\r\n\r\n");
    client.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.answer().1, "GET /slow ");
    assert_eq!(client.rest(), "");
}

#[test]
fn events_come_one_by_one_and_end_with_the_client() {
    let house = House::open(ServerCover::Nothing);
    for half in [false, true] {
        let mut client = house.connect();
        client.send("GET /events HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(client.head().contains("\r\nTransfer-Encoding: chunked\r\n"));
        for line in ["3\r\n", ":\n", "\n", "\r\n", "3\r\n"] {
            assert_eq!(client.line(), line);
        }
        if half {
            client.0.get_ref().shutdown(Shutdown::Write).unwrap();
        } else {
            drop(client);
        }
        let error = house.ended.recv_timeout(DEADLINE).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}

#[test]
fn a_server_that_gives_no_answer_is_an_error() {
    let house = House::open(ServerCover::Nothing);
    let mut client = house.connect();
    let (head, _) = client.get("/nothing");
    assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
}

#[test]
fn at_the_end_answers_are_finished() {
    let mut house = House::open(ServerCover::Nothing);
    let mut idle = house.connect();
    idle.get("/");
    let mut half_way = house.connect();
    half_way.send("GET / HT");
    let mut events = house.connect();
    events.send("GET /events HTTP/1.1\r\nHost: h\r\n\r\n");
    events.head();
    let mut slow = house.connect();
    slow.send("GET /slow HTTP/1.1\r\nHost: h\r\n\r\n");
    house.slow.recv_timeout(DEADLINE).unwrap();
    house.front().drain();
    assert_eq!(idle.rest(), "");
    assert_eq!(half_way.rest(), "");
    let (head, body) = slow.answer();
    assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
    assert_eq!(body, "GET /slow ");
    assert_eq!(events.line(), "3\r\n");
    house.front.take().unwrap().stop(Instant::now() + DEADLINE);
    let mut rest = String::new();
    while events.0.read_line(&mut rest).is_ok_and(|size| size > 0) {}
    assert!(house.ended.recv_timeout(DEADLINE).is_ok());
}

#[cfg(feature = "tls")]
mod covered {
    use super::*;
    use crate::net::cover::ClientCover;
    use crate::net::patient::Patience;
    use crate::net::stream::PlainStream;
    use crate::wire::offer::TlsMode;

    #[test]
    fn requests_come_by_tls_as_well() {
        let cover = ServerCover::new(TlsMode::SelfSigned, None, None, &[]).unwrap();
        let house = House::open(cover);
        let mut plain = house.connect();
        plain.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        let (head, body) = plain.answer();
        assert!(
            head.starts_with("HTTP/1.1 400 ") && body.contains("https"),
            "{head}"
        );
        let stop = Event::new().unwrap();
        let patience = Patience::new(DEADLINE, &stop);
        let socket = TcpStream::connect(house.front().address()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let cover = ClientCover::new(TlsMode::SelfSigned, "localhost".to_owned(), &[]).unwrap();
        let (mut stream, _) = cover
            .put_on(PlainStream::new(socket.into()), patience)
            .unwrap();
        for round in 0..3 {
            let request = format!("GET /{round} HTTP/1.1\r\nHost: h\r\n\r\n");
            patience
                .write_all(&mut *stream, request.as_bytes())
                .unwrap();
            let expected = format!("GET /{round} ");
            let mut answer = String::new();
            while !answer.ends_with(&expected) {
                let mut buffer = [0; 1000];
                let size = patience.read(&mut *stream, &mut buffer).unwrap();
                assert_ne!(size, 0, "{answer}");
                answer += str::from_utf8(&buffer[..size]).unwrap();
            }
        }
    }
}
