//! Lines of the control channel.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nodepass::limits::CONTROL_LINE_SIZE_MAX;
use nodepass::wire::key::TunnelKey;
use nodepass::wire::signal::{
    ControlError, LineError, PoolId, Received, Signal, SignalReader, SignalWriter,
};

use super::{handshake_answer, recordings, take_byte, with_byte};

/// However a stream is cut, its lines mean the same; a signal is read as it was written; nobody
/// without the key of a native session has a line of his taken.
pub fn run(mut input: &[u8]) -> bool {
    let how = take_byte(&mut input);
    // A key without a byte hides nothing, so that all of the input counts.
    let key = || {
        TunnelKey::new(if how & 1 == 0 {
            Vec::new()
        } else {
            recordings::KEY.to_vec()
        })
    };
    let whole = read_all(SignalReader::v1(key()), input, input.len().max(1));
    let piece_size = 1 + usize::from(how / 2);
    assert_eq!(read_all(SignalReader::v1(key()), input, piece_size), whole);
    let (received, end) = whole;
    assert_eq!(end, None);

    // What stands below the base64.
    let line = [STANDARD.encode(input), "\n".to_owned()].concat();
    let reader = SignalReader::v1(TunnelKey::new(Vec::new()));
    let (below, _) = read_all(reader, line.as_bytes(), line.len());
    assert_eq!(below.len(), 1);
    let signals = received.iter().chain(&below);
    signals.clone().for_each(check_received);

    let (client, server) = handshake_answer::native_session();
    let ours = client
        .into_client()
        .0
        .encode(&Signal::Ping)
        .expect("both dialects have it");
    let (_, reader, _) = server.into_server();
    let (received, end) = read_all(reader, &[&ours, input].concat(), piece_size);
    assert_eq!(received, [Received::Signal(Signal::Ping)]);
    assert_eq!(
        end.is_some(),
        input.contains(&b'\n') || input.len() >= CONTROL_LINE_SIZE_MAX
    );
    signals
        .into_iter()
        .any(|received| matches!(received, Received::Signal(_)))
}

fn read_all(
    mut reader: SignalReader,
    stream: &[u8],
    piece_size: usize,
) -> (Vec<Received>, Option<ControlError>) {
    let mut received = Vec::new();
    for mut piece in stream.chunks(piece_size) {
        loop {
            match reader.read(&mut piece) {
                Ok(Some(one)) => received.push(one),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(reader.read(&mut &b"\n"[..]), Err(error));
                    return (received, Some(error));
                }
            }
        }
        assert!(piece.is_empty());
    }
    (received, None)
}

fn check_received(received: &Received) {
    let signal = match received {
        Received::Signal(signal) => signal,
        Received::UnknownAction { action } => return assert!(action.len() < 1024),
        Received::Unreadable(LineError::Id { id }) => return assert!(id.len() < 1024),
        Received::Unreadable(_) => return,
    };
    if let Signal::Verify { fp, .. } = signal {
        assert!(fp.to_string().len() < 1024);
        // Only what a peer has made can be too long to be written.
        return;
    }
    let key = || TunnelKey::new(recordings::KEY.to_vec());
    let line = SignalWriter::v1(key())
        .encode(signal)
        .expect("it came in this dialect");
    let again = read_all(SignalReader::v1(key()), &line, line.len());
    assert_eq!(again, (vec![received.clone()], None));
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for recording in &recordings::CONNECTIONS[..3] {
        let server = &recordings::said(recording, "server")[1];
        let lines = server.strip_prefix(&[0; 4]).expect("the id comes first");
        seeds.push(with_byte(1, lines));
        seeds.push(with_byte(21, &recordings::said(recording, "client")[1]));
    }
    let id = PoolId([1, 2, 3, 4]);
    for remote in [None, Some("[2001:db8::1]:443".parse().expect("an address"))] {
        for signal in [
            Signal::Tcp { remote, id },
            Signal::Udp { remote, id },
            Signal::Flush,
        ] {
            let mut writer = SignalWriter::v1(TunnelKey::new(Vec::new()));
            let line = writer.encode(&signal).expect("both dialects have it");
            seeds.push(with_byte(8, &line));
            let json = STANDARD.decode(line.trim_ascii_end()).expect("base64");
            seeds.push(with_byte(9, &json));
        }
    }
    seeds.push(with_byte(
        0,
        br#"{"action":"tcp","remote":"[fe80::1%eth0]:80","id":"00ff00ff"}"#,
    ));
    seeds.push(with_byte(
        0,
        br#"{"action":"verify","id":"00ff00ff","fp":"sha256:\u00e9AB"}"#,
    ));
    seeds
}
