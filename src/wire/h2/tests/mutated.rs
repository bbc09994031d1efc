//! Valid exchanges with damage: no panic, no endless loop, nothing that grows without bound.

use super::*;
use crate::wire::h2::ErrorCode;

/// Returns what each end says in an exchange with everything in it.
fn exchange() -> [Vec<u8>; 2] {
    let mut client = Connection::new(Role::Client, Settings::default());
    let mut server = Connection::new(Role::Server, Settings::default());
    let now = Instant::now();
    let mut said = [Vec::new(), Vec::new()];
    let pass = |client: &mut Connection, server: &mut Connection, said: &mut [Vec<u8>; 2]| {
        while client.output().len() + server.output().len() > 0 {
            said[0].extend_from_slice(client.output());
            server.receive(client.output(), now).unwrap();
            client.sent(client.output().len());
            said[1].extend_from_slice(server.output());
            client.receive(server.output(), now).unwrap();
            server.sent(server.output().len());
        }
    };
    for index in 0..4 {
        let id = client.request(&REQUEST, false).unwrap();
        client.write(id, &pattern(700)).unwrap();
        pass(&mut client, &mut server, &mut said);
        server.respond(id, &RESPONSE, false);
        server.write(id, &pattern(900)).unwrap();
        client.ping([index; 8]);
        pass(&mut client, &mut server, &mut said);
        if index % 2 == 0 {
            client.finish(id).unwrap();
            server.finish(id).unwrap();
        } else {
            client.reset(id, ErrorCode::CANCEL);
        }
        pass(&mut client, &mut server, &mut said);
    }
    server.go_away(ErrorCode::NO_ERROR);
    pass(&mut client, &mut server, &mut said);
    said
}

/// Does what an owner does with every event, in some way.
fn serve(end: &mut Connection, now: Instant, steps: &mut Xorshift) {
    let mut events = 0;
    while let Some(event) = end.next_event() {
        events += 1;
        assert!(events < 10_000);
        match event {
            Event::Request { stream, .. } => end.respond(stream, &RESPONSE, steps.below(8) == 0),
            Event::Readable(id) => {
                let mut buffer = [0; 333];
                while steps.below(6) > 0 && matches!(end.read(id, &mut buffer, now), Ok(1..)) {}
            }
            Event::Writable(id) => drop(end.write(id, &[1; 100])),
            Event::Reset(id, _) if steps.below(2) == 0 => end.reset(id, ErrorCode::CANCEL),
            _ => {}
        }
    }
    let id = 2 * u32::from(steps.byte() % 5) + 1;
    match steps.below(6) {
        0 => drop(end.finish(id)),
        1 => drop(end.write(id, &[7; 40_000])),
        2 => end.reset(id, ErrorCode::CANCEL),
        _ => {}
    }
}

#[test]
fn damaged_exchanges_do_no_harm() {
    let said = exchange();
    let mut steps = Xorshift::new(0x6832);
    for round in 0..6000 {
        let (role, bytes) = match round % 2 {
            0 => (Role::Server, &said[0]),
            _ => (Role::Client, &said[1]),
        };
        let bytes = steps.damage(bytes);
        let mut end = Connection::new(role, Settings::default());
        let mut now = Instant::now();
        if role == Role::Client {
            for _ in 0..4 {
                end.request(&REQUEST, false).unwrap();
            }
        }
        let part_size = [7, 100, 10_000][steps.below(3)];
        for part in bytes.chunks(part_size) {
            now += Duration::from_millis(1);
            let outcome = end.receive(part, now);
            serve(&mut end, now, &mut steps);
            assert!(end.output().len() < 1_000_000);
            let size = steps.below(end.output().len() + 1);
            end.sent(size);
            if outcome.is_err() {
                break;
            }
        }
        let open = end
            .streams
            .values()
            .filter(|stream| stream.is_counted)
            .count();
        assert_eq!(usize::try_from(end.open_count()).unwrap(), open);
        assert!(end.streams.len() <= 16);
    }
}

#[test]
fn noise_behind_a_valid_start_does_no_harm() {
    let mut steps = Xorshift::new(0x7f);
    for _ in 0..3000 {
        let mut lone = Lone::server();
        lone.open(1);
        for _ in 0..20 {
            let payload: [u8; 24] = steps.bytes();
            let kind = FrameHeader::decode(&[0, 0, 0, steps.byte() % 11, 0, 0, 0, 0, 0]).kind;
            let size = [0, 4, 5, 6, 8, 24][steps.below(6)];
            let id = u32::from(steps.byte() % 6);
            let bytes = frame(kind, steps.byte(), id, &payload[..size]);
            let outcome = lone.connection.receive(&bytes, lone.now);
            serve(&mut lone.connection, lone.now, &mut steps);
            if outcome.is_err() {
                break;
            }
        }
    }
}
