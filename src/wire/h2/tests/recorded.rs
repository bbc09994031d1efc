//! The recorded exchanges of pool type 3.

use std::collections::BTreeMap;

use super::*;
use crate::wire::h2::ErrorCode;
use crate::wire::h2::hpack::Field;
use crate::wire::recorded::recorded_http2;

/// What one end makes of what the other one said: heads, data and resets by stream.
#[derive(Debug, Default)]
struct Heard {
    heads: BTreeMap<StreamId, Vec<Field>>,
    data: BTreeMap<StreamId, Vec<u8>>,
    resets: BTreeMap<StreamId, ErrorCode>,
}

fn hear(end: &mut Connection, bytes: &[u8], part_size: usize) -> Heard {
    let mut heard = Heard::default();
    let now = Instant::now();
    let mut buffer = [0; 100];
    for part in bytes.chunks(part_size) {
        end.receive(part, now).unwrap();
        while let Some(event) = end.next_event() {
            match event {
                Event::Request {
                    stream,
                    fields,
                    is_end,
                } => {
                    assert!(!is_end);
                    end.respond(stream, &RESPONSE, false);
                    heard.heads.insert(stream, fields);
                }
                Event::Response {
                    stream,
                    fields,
                    is_end,
                } => {
                    assert!(!is_end);
                    heard.heads.insert(stream, fields);
                }
                Event::Readable(id) => {
                    while let Ok(size @ 1..) = end.read(id, &mut buffer, now) {
                        heard
                            .data
                            .entry(id)
                            .or_default()
                            .extend_from_slice(&buffer[..size]);
                    }
                }
                Event::Reset(id, code) => drop(heard.resets.insert(id, code)),
                other => panic!("{other:?}"),
            }
        }
        end.sent(end.output().len());
    }
    heard
}

fn value<'a>(fields: &'a [Field], name: &str) -> &'a str {
    let field = fields.iter().find(|field| field.name == name.as_bytes());
    str::from_utf8(&field.expect("the field is there").value).unwrap()
}

#[test]
fn recorded_clients_are_understood() {
    for (index, [client, _]) in recorded_http2().iter().enumerate() {
        // Not all at once: a stream that is reset at once is not told of.
        for part_size in [1, 10, 20] {
            let mut server = Connection::new(Role::Server, Settings::default());
            let heard = hear(&mut server, client, part_size);
            let last = [15, 17][index];
            let ids: Vec<StreamId> = (1..=last).step_by(2).collect();
            assert_eq!(heard.heads.keys().copied().collect::<Vec<_>>(), ids);
            for fields in heard.heads.values() {
                assert_eq!(value(fields, ":method"), "POST");
                assert_eq!(value(fields, ":scheme"), "https");
                assert_eq!(value(fields, ":path"), "/stream");
                assert_eq!(value(fields, ":authority"), "none");
            }
            assert!(heard.data.values().all(|data| data[0] == 0));
            let lines = &heard.data[&1][1..];
            assert!(lines.starts_with(b"EBEYCEcQBF1bUREJAl0eSU4=\n"));
            assert_eq!(lines.last(), Some(&b'\n'));
            let said: [&[u8]; 2] = [b"HTTP/1.0 200 OK\r\n", b"GET /rec.py HTTP/1.1\r\n"];
            assert!(heard.data[&[7, 9][index]][1..].starts_with(said[index]));
            if index == 1 {
                assert_eq!(heard.data[&11][1..], *b"ping-datagram");
            }
            assert!(heard.resets.len() >= 6);
            assert!(heard.resets.values().all(|code| *code == ErrorCode::CANCEL));
        }
    }
}

#[test]
fn recorded_servers_are_understood() {
    for (index, [_, server]) in recorded_http2().iter().enumerate() {
        for part_size in [1, 10, 100_000] {
            let mut client = Connection::new(Role::Client, Settings::default());
            for _ in 0..9 {
                client.request(&REQUEST, false).unwrap();
            }
            let heard = hear(&mut client, server, part_size);
            let last = 15;
            let ids: Vec<StreamId> = (1..=last).step_by(2).collect();
            assert_eq!(heard.heads.keys().copied().collect::<Vec<_>>(), ids);
            assert!(
                heard
                    .heads
                    .values()
                    .all(|fields| value(fields, ":status") == "200")
            );
            // The first id of a session is the control channel's.
            assert!(heard.data[&1].starts_with(b"\0\0\0\0EBEYCEcQBF1bUREJAl0eSU4=\n"));
            let ids: [[u8; 4]; 2] = [[0x78, 0x02, 0x74, 0xeb], [0xab, 0xc5, 0x9b, 0x26]];
            assert!(heard.data[&5].starts_with(&ids[index]));
            let said: [&[u8]; 2] = [b"GET /rec.py HTTP/1.1\r\n", b"HTTP/1.0 200 OK\r\n"];
            assert!(heard.data[&[7, 9][index]][4..].starts_with(said[index]));
            if index == 0 {
                assert_eq!(heard.data[&9][4..], *b"ping-datagram");
            }
            assert!(heard.resets.is_empty());
            // Eight at a time is what it allows.
            assert_eq!(
                client.request(&REQUEST, false),
                Err(crate::wire::h2::NotOpened::PeerLimit)
            );
        }
    }
}
