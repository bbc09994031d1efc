use super::super::fingerprint::Fingerprint;
use super::super::mutation::Xorshift;
use super::super::proof::authenticate;
use super::super::recorded::{recorded_key, recordings};
use super::*;

const ID: PoolId = PoolId([0x9f, 0x3a, 0x11, 0xc0]);

fn key() -> SessionKey {
    SessionKey::for_test(7)
}

fn native_pair(side: Side) -> (SignalWriter, SignalReader) {
    (
        SignalWriter::native(key(), side),
        SignalReader::native(key(), side),
    )
}

fn signals() -> Vec<Signal> {
    let remotes = ["203.0.113.9:51234", "[2001:db8::1]:1", "[fe80::1%3]:65535"];
    let mut signals: Vec<_> = remotes
        .into_iter()
        .map(|remote| Signal::Tcp {
            remote: Some(remote.parse().unwrap()),
            id: ID,
        })
        .collect();
    let fp = Fingerprint::of_certificate(b"certificate").into();
    signals.extend([
        Signal::Udp {
            remote: None,
            id: PoolId::CONTROL,
        },
        Signal::Verify { id: ID, fp },
        Signal::Verify {
            id: ID,
            fp: FingerprintClaim::default(),
        },
        Signal::Flush,
        Signal::Ping,
        Signal::Pong,
        Signal::Bye,
    ]);
    signals
}

fn read_all(reader: &mut SignalReader, mut input: &[u8]) -> Result<Vec<Received>, ControlError> {
    let mut received = Vec::new();
    while let Some(next) = reader.read(&mut input)? {
        received.push(next);
    }
    assert!(input.is_empty());
    Ok(received)
}

fn v1_line(json: &str) -> Vec<u8> {
    let mut bytes = json.as_bytes().to_vec();
    apply_key(&mut bytes, &recorded_key());
    format!("{}\n", STANDARD.encode(bytes)).into_bytes()
}

fn read_v1(line: &[u8]) -> Received {
    let received = read_all(&mut SignalReader::v1(recorded_key()), line).unwrap();
    assert_eq!(received.len(), 1);
    received[0].clone()
}

#[test]
fn every_recorded_line_is_read_and_written_byte_for_byte() {
    let mut kinds = std::collections::BTreeSet::new();
    for recording in recordings() {
        for lines in [recording.client_lines, recording.server_lines] {
            let mut reader = SignalReader::v1(recorded_key());
            let mut writer = SignalWriter::v1(recorded_key());
            let mut written = Vec::new();
            for received in read_all(&mut reader, &lines).unwrap() {
                let Received::Signal(signal) = received else {
                    panic!("{received:?}");
                };
                if let Signal::Tcp { remote, .. } | Signal::Udp { remote, .. } = &signal {
                    assert!(remote.is_some());
                }
                written.extend(writer.encode(&signal).unwrap());
                kinds.insert(format!("{signal:?}").split(' ').next().unwrap().to_owned());
            }
            assert_eq!(written, lines);
        }
    }
    assert!(kinds.iter().eq(["Ping", "Pong", "Tcp", "Udp", "Verify"]));
}

#[test]
fn signals_come_back_as_they_were_sent() {
    let mut v1_writer = SignalWriter::v1(recorded_key());
    let mut v1_reader = SignalReader::v1(recorded_key());
    let (mut native_writer, mut native_reader) = native_pair(Side::Client);
    for signal in signals() {
        for (writer, reader) in [
            (&mut v1_writer, &mut v1_reader),
            (&mut native_writer, &mut native_reader),
        ] {
            if let Some(line) = writer.encode(&signal) {
                assert_eq!(
                    read_all(reader, &line),
                    Ok(vec![Received::Signal(signal.clone())])
                );
            }
        }
    }
}

#[test]
fn each_dialect_has_its_own_signals() {
    let fp = FingerprintClaim::default();
    let verify = Signal::Verify { id: ID, fp };
    let (mut writer, mut reader) = native_pair(Side::Server);
    assert_eq!(writer.encode(&verify), None);
    assert_eq!(SignalWriter::v1(recorded_key()).encode(&Signal::Bye), None);
    let bye = Received::UnknownAction {
        action: "bye".to_owned(),
    };
    assert_eq!(read_v1(&v1_line(r#"{"action":"bye"}"#)), bye);
    // What was left out counts for nothing in the sequence.
    let line = writer.encode(&Signal::Ping).unwrap();
    assert!(read_all(&mut reader, &line).is_ok());
}

#[test]
fn an_empty_key_leaves_the_json_as_it_is() {
    let empty = TunnelKey::new(Vec::new());
    let line = SignalWriter::v1(empty.clone())
        .encode(&Signal::Ping)
        .unwrap();
    assert_eq!(
        STANDARD.decode(line.trim_ascii()).unwrap(),
        br#"{"action":"ping"}"#
    );
    let read = read_all(&mut SignalReader::v1(empty), &line);
    assert_eq!(read, Ok(vec![Received::Signal(Signal::Ping)]));
}

#[test]
fn v1_lines_that_cannot_be_read_are_skipped() {
    let other_key = SignalWriter::v1(TunnelKey::new(b"other".to_vec()))
        .encode(&Signal::Ping)
        .unwrap();
    let no_signal = Received::Unreadable(LineError::NoSignal);
    assert_eq!(read_v1(&other_key), no_signal);
    for line in [
        &b"EBEYCEcQBF1bUREJAl0eSU4\n"[..],
        b"?\n",
        b"EBEYCEcQBF1bUREJAl0eSU4=\r\n",
    ] {
        assert_eq!(read_v1(line), Received::Unreadable(LineError::Base64));
    }
    for json in ["", "{}", "[]", r#"{"action":1}"#, r#"{"action":"ping"} x"#] {
        assert_eq!(read_v1(&v1_line(json)), no_signal, "{json}");
    }
    for id in ["", "9f3a11c", "9F3A11C0", "9f3a11c00", "\u{1b}"] {
        let json = format!(r#"{{"action":"tcp","id":"{}"}}"#, id.escape_default());
        let Received::Unreadable(error) = read_v1(&v1_line(&json.replace("\\u{1b}", "\\u001b")))
        else {
            panic!("{id}");
        };
        assert_eq!(error, LineError::Id { id: shown(id) });
    }
    let line = [&b"?\n"[..], &v1_line(r#"{"action":"pong"}"#)].concat();
    let read = read_all(&mut SignalReader::v1(recorded_key()), &line).unwrap();
    assert_eq!(read[1], Received::Signal(Signal::Pong));
}

#[test]
fn a_line_that_decodes_to_the_key_does_not_show_it() {
    for key in ["918273", "\"918273\""] {
        let mut reader = SignalReader::v1(TunnelKey::new(key.as_bytes().to_vec()));
        let line = format!("{}\n", STANDARD.encode(vec![0; key.len()]));
        let read = read_all(&mut reader, line.as_bytes()).unwrap();
        let [Received::Unreadable(error)] = &read[..] else {
            panic!("{read:?}");
        };
        assert!(!format!("{error} {error:?}").contains("918273"));
    }
}

#[test]
fn unknown_actions_and_members_are_ignored() {
    let unknown = Received::UnknownAction {
        action: "dance".to_owned(),
    };
    assert_eq!(read_v1(&v1_line(r#"{"action":"dance","id":"?"}"#)), unknown);
    let line = v1_line(r#"{"more":[{}],"action":"flush","id":""}"#);
    assert_eq!(read_v1(&line), Received::Signal(Signal::Flush));
}

#[test]
fn a_visitor_whose_address_is_odd_is_served_all_the_same() {
    let read_remote = |remote: &str| {
        let json = format!(r#"{{"action":"udp","remote":"{remote}","id":"9f3a11c0"}}"#);
        match read_v1(&v1_line(&json)) {
            Received::Signal(Signal::Udp { remote, id: ID }) => remote,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        read_remote("[fe80::1%eth0]:5"),
        Some("[fe80::1]:5".parse().unwrap())
    );
    for odd in ["", "somewhere", "host:1", "[fe80::1%eth0]", "%]"] {
        assert_eq!(read_remote(odd), None);
    }
}

#[test]
fn v1_lines_that_are_too_long_are_skipped() {
    let mut stream = vec![b'A'; CONTROL_LINE_SIZE_MAX];
    stream.extend(b"AAAA\n");
    stream.extend(v1_line(r#"{"action":"ping"}"#));
    assert_eq!(
        read_all(&mut SignalReader::v1(recorded_key()), &stream).unwrap(),
        [
            Received::Unreadable(LineError::TooLong),
            Received::Signal(Signal::Ping)
        ]
    );
}

#[test]
fn v1_line_of_the_largest_size_is_read() {
    // 3069 bytes of JSON are 4092 of base64, three short of the most; base64 comes in fours.
    let size = (CONTROL_LINE_SIZE_MAX - 1) / 4 * 3;
    let padding = "x".repeat(size - r#"{"action":"ping","more":""}"#.len());
    let json = format!(r#"{{"action":"ping","more":"{padding}"}}"#);
    assert_eq!(read_v1(&v1_line(&json)), Received::Signal(Signal::Ping));
    let longer = v1_line(&format!("{json} "));
    assert_eq!(longer.len(), CONTROL_LINE_SIZE_MAX + 1);
    assert_eq!(read_v1(&longer), Received::Unreadable(LineError::TooLong));
}

#[test]
fn native_line_is_the_specified_one() {
    let mut writer = SignalWriter::native(key(), Side::Server);
    for sequence in [0_u8, 1] {
        let json = br#"{"action":"pong"}"#;
        let number = [0, 0, 0, 0, 0, 0, 0, sequence];
        let mac = authenticate(&[7; 32], "nodepass signal", &[b"s", &number, json]);
        let expected = format!("{}.{}\n", STANDARD.encode(json), encode_hex(&mac[..16]));
        assert_eq!(writer.encode(&Signal::Pong), Some(expected.into_bytes()));
    }
}

#[test]
fn each_changed_byte_of_a_native_line_is_tampering() {
    for signal in signals() {
        let (mut writer, _) = native_pair(Side::Client);
        let Some(line) = writer.encode(&signal) else {
            continue;
        };
        for index in 0..line.len() {
            for bit in 0..8 {
                let mut changed = line.clone();
                changed[index] ^= 1 << bit;
                let (_, mut reader) = native_pair(Side::Client);
                let read = read_all(&mut reader, &changed);
                if index == line.len() - 1 {
                    // Without its newline the line goes on, and the next one cannot be right.
                    assert_eq!(read, Ok(vec![]));
                    let next = writer.encode(&Signal::Ping).unwrap();
                    let read = read_all(&mut reader, &next);
                    assert_eq!(read, Err(ControlError::Tampered { sequence: 0 }));
                } else {
                    assert_eq!(read, Err(ControlError::Tampered { sequence: 0 }));
                }
            }
        }
    }
}

#[test]
fn repeated_missing_swapped_and_reflected_lines_are_tampering() {
    let (mut writer, _) = native_pair(Side::Client);
    let lines: Vec<_> = (0..3)
        .map(|_| writer.encode(&Signal::Ping).unwrap())
        .collect();
    for (order, fails_at) in [
        (&[0, 1, 2][..], None),
        (&[0, 0], Some(1)),
        (&[1], Some(0)),
        (&[0, 2], Some(1)),
        (&[0, 1, 0], Some(2)),
    ] {
        let (_, mut reader) = native_pair(Side::Client);
        let stream: Vec<u8> = order
            .iter()
            .flat_map(|index| lines[*index].clone())
            .collect();
        let error = read_all(&mut reader, &stream).err();
        let expected = fails_at.map(|sequence| ControlError::Tampered { sequence });
        assert_eq!(error, expected, "{order:?}");
    }
    let mut own = SignalReader::native(key(), Side::Server);
    assert!(read_all(&mut own, &lines[0]).is_err());
    let mut other = SignalReader::native(SessionKey::for_test(8), Side::Client);
    assert!(read_all(&mut other, &lines[0]).is_err());
}

#[test]
fn a_native_reader_that_failed_stays_failed() {
    let (mut writer, mut reader) = native_pair(Side::Client);
    let tampered = Err(ControlError::Tampered { sequence: 0 });
    assert_eq!(read_all(&mut reader, b"?\n"), tampered);
    let line = writer.encode(&Signal::Ping).unwrap();
    assert_eq!(read_all(&mut reader, &line), tampered);
}

#[test]
fn native_lines_that_are_too_long_end_the_session() {
    let (_, mut reader) = native_pair(Side::Client);
    assert_eq!(
        read_all(&mut reader, &[b'A'; CONTROL_LINE_SIZE_MAX - 1]),
        Ok(vec![])
    );
    assert_eq!(read_all(&mut reader, b"A"), Err(ControlError::LineTooLong));
}

#[test]
fn a_genuine_native_line_that_says_something_new_is_skipped() {
    let mut authenticator = Authenticator::new(key(), Side::Client);
    let (_, mut reader) = native_pair(Side::Client);
    for json in [
        r#"{"action":"dance"}"#,
        r#"{"action":"tcp","id":"?"}"#,
        r#"{"action":"ping"}"#,
    ] {
        let mac = encode_hex(&authenticator.expected(json.as_bytes()));
        authenticator.advance();
        let line = format!("{}.{mac}\n", STANDARD.encode(json));
        let read = read_all(&mut reader, line.as_bytes()).unwrap();
        assert_eq!(read.len(), 1);
        let is_signal = matches!(read[0], Received::Signal(_));
        assert_eq!(is_signal, json.contains("ping"));
    }
}

#[test]
fn no_damaged_line_passes_for_native() {
    let mut random = Xorshift::new(6);
    for signal in signals() {
        let Some(line) = SignalWriter::native(key(), Side::Client).encode(&signal) else {
            continue;
        };
        for _ in 0..500 {
            let mut damaged = random.damage(&line);
            if damaged.starts_with(&line) {
                continue;
            }
            damaged.push(b'\n');
            let mut reader = SignalReader::native(key(), Side::Client);
            let read = read_all(&mut reader, &damaged);
            assert!(damaged.trim_ascii_end() == line.trim_ascii_end() || read.is_err());
        }
    }
}
