//! JSON of the master: its state file, and the bodies of requests.

use nodepass::master::api::instances::{Object, Order, Patch};
use nodepass::master::instance::{Instance, Kind};
use nodepass::master::store::{decode, encode, to_keep};

use super::{take_byte, with_byte};

/// What is read can be kept and read again, and the key comes first; a body is read or not.
pub fn run(mut input: &[u8]) -> bool {
    match take_byte(&mut input) % 3 {
        0 => check_state(input),
        1 => serde_json::from_slice::<Object<Order>>(input).is_ok(),
        _ => serde_json::from_slice::<Object<Patch>>(input).is_ok(),
    }
}

fn check_state(input: &[u8]) -> bool {
    let Ok(records) = decode(input) else {
        return false;
    };
    let is_entry = records
        .iter()
        .map(|record| record.definition.is_key_entry());
    assert!(
        is_entry
            .enumerate()
            .all(|(index, is_entry)| is_entry == (index == 0))
    );
    let kept = to_keep(&records);
    let text = encode(&kept).expect("it can be written");
    let again = decode(&text).expect("it was read before");
    assert_eq!(to_keep(&again), kept);
    true
}

pub fn seeds() -> Vec<Vec<u8>> {
    let instance = |id: &str, kind, url: &str| Instance {
        id: id.to_owned(),
        kind,
        url: url.to_owned(),
        tcprx: u64::MAX,
        ..Instance::default()
    };
    let mut server = instance("0123abcd", Kind::Server, "server://k@:1/:2");
    server.meta.peer.sid = "\u{1f600}\n".to_owned();
    server.meta.tags.insert("a".to_owned(), "\"b\"".to_owned());
    let client = instance("1123abcd", Kind::Client, "client://:1/:2");
    let key = instance("********", Kind::KeyEntry, "0123456789abcdef");
    let state = encode(&[key, server, client]).expect("it can be written");
    vec![
        with_byte(0, &state),
        with_byte(
            1,
            br#"{"alias":"a\u0000","url":"client://:1/:2","more":[1,{"x":null}]}"#,
        ),
        with_byte(
            2,
            br#"{"action":"start","restart":true,"meta":{"peer":{"sid":null},"tags":null}}"#,
        ),
        with_byte(
            2,
            br#"{"alias":null,"meta":{"peer":{"type":"1"},"tags":{"a":"b","c":"d"}}}"#,
        ),
    ]
}
