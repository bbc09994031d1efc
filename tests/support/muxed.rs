//! A server with a played client whose pool connections are streams of one connection.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use super::ends::{End, KEY, QUICK};
use super::peer::{PlayedClient, Stream, key};
use super::visitors::{End as StreamEnd, dial, read_to_end};

/// A server with this pool type and the client that has joined it.
pub fn start_server(transport: u8, options: &str) -> (End, PlayedClient) {
    let options = format!("mode=1&type={transport}&tls=1&{options}");
    let server = End::server("127.0.0.1:0", "127.0.0.1:0", &options, QUICK);
    let client = PlayedClient::join(server.tunnel_address(), &key(KEY));
    server.wait_up(1);
    (server, client)
}

/// The pool connection of the next visitor, who has said a word.
#[track_caller]
pub fn take_visitor(server: &End, client: &mut PlayedClient) -> (TcpStream, Stream) {
    client.try_fill().unwrap();
    let mut visitor = dial(server.tcp_address());
    visitor.write_all(b"hello").unwrap();
    let (_, mut stream) = client.next_visitor();
    assert_eq!(stream.read_count(5), b"hello");
    (visitor, stream)
}

/// The next visitor is served.
#[track_caller]
pub fn check_visitor(server: &End, client: &mut PlayedClient) {
    let (visitor, mut stream) = take_visitor(server, client);
    stream.write_all(b"goodbye").unwrap();
    stream.finish().unwrap();
    assert_eq!(
        read_to_end(&visitor),
        (b"goodbye".to_vec(), StreamEnd::Finished)
    );
}

/// The end of either direction leaves the other one open.
#[track_caller]
pub fn check_half_close(server: &End, client: &mut PlayedClient) {
    let (mut visitor, mut stream) = take_visitor(server, client);
    stream.write_all(b"last words").unwrap();
    stream.finish().unwrap();
    assert_eq!(
        read_to_end(&visitor),
        (b"last words".to_vec(), StreamEnd::Finished)
    );
    visitor.write_all(b"answered all the same").unwrap();
    assert_eq!(stream.read_count(21), b"answered all the same");
    drop(visitor);
    assert_eq!(stream.read_until_end(), b"");

    let (visitor, mut stream) = take_visitor(server, client);
    visitor.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read_until_end(), b"");
    stream.write_all(b"answer").unwrap();
    stream.finish().unwrap();
    assert_eq!(
        read_to_end(&visitor),
        (b"answer".to_vec(), StreamEnd::Finished)
    );
}
