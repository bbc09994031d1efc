//! Answers of name servers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nodepass::limits::{NAME_ADDRESSES_MAX, NAME_SIZE_MAX};
use nodepass::wire::dns::{
    Answer, DomainName, Edns, Question, RecordType, decode_answer, encode_query,
};

use super::{take_byte, with_byte};

const ID: u16 = 0x4b1d;
const ASKED: &str = "x.test";
const TYPE_CNAME: u16 = 5;

/// An address is one that the message has for the asked name or for an alias of it; there are no
/// more than may be.
pub fn run(mut input: &[u8]) -> bool {
    let record_type = match take_byte(&mut input) % 2 {
        0 => RecordType::A,
        _ => RecordType::Aaaa,
    };
    check_name(input);
    let asked = DomainName::parse(ASKED).expect("a name");
    let question = Question {
        name: &asked,
        record_type,
    };
    match decode_answer(input, question, ID) {
        Answer::Addresses(found) => {
            assert!((1..=NAME_ADDRESSES_MAX).contains(&found.len()));
            let allowed = allowed_addresses(input, record_type);
            assert!(found.iter().all(|address| allowed.contains(address)));
            true
        }
        answer => answer != Answer::Unusable,
    }
}

/// A name that is taken fits a message, and the answer that only repeats the question is one.
fn check_name(input: &[u8]) {
    let Some(name) = str::from_utf8(input)
        .ok()
        .and_then(|text| DomainName::parse(text).ok())
    else {
        return;
    };
    let question = Question {
        name: &name,
        record_type: RecordType::A,
    };
    let mut message = encode_query(question, ID, Edns::Announce);
    assert!(message.len() <= 12 + NAME_SIZE_MAX + 4 + 11);
    assert_eq!(decode_answer(&message, question, ID), Answer::Unusable);
    // The bits of a response and of recursion.
    message[2] |= 0x80;
    message[3] |= 0x80;
    assert_eq!(decode_answer(&message, question, ID), Answer::NoData);
}

/// Returns every address of a name that any alias reaches from the asked one, without regard to
/// limits: what a right decoder may at most return.
fn allowed_addresses(message: &[u8], record_type: RecordType) -> Vec<IpAddr> {
    let mut place = read_slowly(message, 12, 300).map_or(message.len(), |(_, end)| end + 4);
    let mut records = Vec::new();
    while let Some((owner, fixed)) = read_slowly(message, place, 300)
        && let Some(&[t, u, _, _, _, _, _, _, high, low]) = message.get(fixed..fixed + 10)
    {
        let data = fixed + 10;
        records.push((owner, u16::from_be_bytes([t, u]), data));
        place = data + usize::from(u16::from_be_bytes([high, low]));
    }
    let mut reached = vec![wire_form(ASKED)];
    let mut index = 0;
    while index < reached.len() {
        for (owner, record_type, data) in &records {
            if *owner == reached[index]
                && *record_type == TYPE_CNAME
                && let Some((target, _)) = read_slowly(message, *data, 300)
                && !reached.contains(&target)
            {
                reached.push(target);
            }
        }
        index += 1;
    }
    let of_reached = records.iter().filter(|record| reached.contains(&record.0));
    of_reached
        .filter_map(|(_, of_record, data)| {
            let octets = message.get(*data..)?;
            Some(match record_type {
                RecordType::A if *of_record == 1 => {
                    Ipv4Addr::from(*octets.first_chunk::<4>()?).into()
                }
                RecordType::Aaaa if *of_record == 28 => {
                    Ipv6Addr::from(*octets.first_chunk::<16>()?).into()
                }
                _ => return None,
            })
        })
        .collect()
}

/// Reads a name the slow way: from a given place, label by label, with `depth` jumps left.
fn read_slowly(message: &[u8], place: usize, depth: usize) -> Option<(Vec<u8>, usize)> {
    let length = *message.get(place)?;
    if length == 0 {
        return Some((vec![0], place + 1));
    }
    if length >= 0xc0 {
        let low = *message.get(place + 1)?;
        let prior = usize::from(u16::from_be_bytes([length & 0x3f, low]));
        let (name, _) = read_slowly(message, prior, depth.checked_sub(1)?)?;
        return Some((name, place + 2));
    }
    let end = place + 1 + usize::from(length);
    let mut name = message.get(place..end)?.to_ascii_lowercase();
    let (rest, after) = read_slowly(message, end, depth.checked_sub(1)?)?;
    name.extend(rest);
    Some((name, after))
}

fn wire_form(name: &str) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| {
        let length = u8::try_from(label.len()).expect("a short label");
        with_byte(length, label.as_bytes())
    });
    labels.chain([0]).collect()
}

pub fn seeds() -> Vec<Vec<u8>> {
    /// Where the name of the question stands.
    const POINTER: &[u8] = b"\xc0\x0c";
    let www = [b"\x03www", POINTER].concat();
    let evil = [b"\x04evil", POINTER].concat();
    let (x, test) = (wire_form(ASKED), wire_form("test"));
    let (v4, v6) = ([192, 0, 2, 1], [0x20; 16]);
    let compressed = |record_type: u16, address: &[u8]| {
        answer(
            record_type,
            &[
                (POINTER, TYPE_CNAME, &www),
                (&www, record_type, address),
                (&evil, record_type, address),
                (POINTER, 16, b"\x04text"),
            ],
        )
    };
    let plain = answer(1, &[(&test, 1, &v4), (&x, 1, &v4), (&test, TYPE_CNAME, &x)]);
    let mut seeds = vec![
        with_byte(0, &compressed(1, &v4)),
        with_byte(1, &compressed(28, &v6)),
        with_byte(0, &plain),
        with_byte(1, &answer(28, &[(&x, TYPE_CNAME, &test)])),
    ];
    // Truncated, no such name, a failure.
    for (byte, bits) in [(2, 0x02), (3, 0x03), (3, 0x02)] {
        let mut other = with_byte(0, &plain);
        other[1 + byte] |= bits;
        seeds.push(other);
    }
    seeds
}

/// Returns an answer of a server that asks on for us, with these records: owner, type and data.
fn answer(record_type: u16, records: &[(&[u8], u16, &[u8])]) -> Vec<u8> {
    let count = u16::try_from(records.len()).expect("few records");
    let mut message = Vec::new();
    for field in [ID, 0x8180, 1, count, 0, 0] {
        message.extend(field.to_be_bytes());
    }
    message.extend(wire_form(ASKED));
    message.extend([record_type.to_be_bytes(), [0, 1]].concat());
    for (owner, record_type, data) in records {
        let size = u16::try_from(data.len()).expect("short data");
        message.extend_from_slice(owner);
        message.extend(
            [
                record_type.to_be_bytes(),
                [0, 1],
                [0, 0],
                [1, 44],
                size.to_be_bytes(),
            ]
            .concat(),
        );
        message.extend_from_slice(data);
    }
    message
}
