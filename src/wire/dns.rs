//! Questions to and answers of a name server.
//!
//! Knows queries for the addresses of one name, and what an answer says about exactly that name.
//! Everything else in an answer is stepped over: other names, other types, the authority and the
//! additional section. Never trusts a length, a count or a pointer, and never returns an address
//! whose owner is not the asked name or the end of the asked name's chain of aliases.
//!
//! Source: RFC 1035 section 4 (messages), RFC 3596 (AAAA), RFC 6891 (EDNS0), RFC 2181 section 9
//! (truncation), RFC 6604 (response code of a chain of aliases).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::limits::{
    NAME_ADDRESSES_MAX, NAME_ALIASES_MAX, NAME_DATAGRAM_SIZE_MAX, NAME_LABEL_SIZE_MAX,
    NAME_POINTERS_MAX, NAME_SIZE_MAX,
};

/// Size of the header of a message (bytes). RFC 1035 section 4.1.1.
const HEADER_SIZE: usize = 12;

const FLAG_RESPONSE: u16 = 0x8000;
const MASK_OPCODE: u16 = 0x7800;
const FLAG_AUTHORITATIVE: u16 = 0x0400;
const FLAG_TRUNCATED: u16 = 0x0200;
const FLAG_RECURSION_DESIRED: u16 = 0x0100;
const FLAG_RECURSION_AVAILABLE: u16 = 0x0080;
const MASK_RCODE: u16 = 0x000f;

const RCODE_NO_ERROR: u8 = 0;
const RCODE_NAME_ERROR: u8 = 3;

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const CLASS_INTERNET: u16 = 1;

/// The two top bits of a length octet: both set is a pointer, one set is undefined.
const MASK_LABEL_KIND: u8 = 0xc0;

/// A domain name as it travels: labels with their length octets, root included, in lower case.
///
/// Two names are equal when they differ in the case of ASCII letters only. RFC 4343.
#[derive(Clone, PartialEq, Eq)]
pub struct DomainName(Vec<u8>);

/// Why a text is no domain name that could be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameSyntaxError {
    /// There is no label at all.
    Empty,
    /// Two dots touch, or a dot comes first.
    EmptyLabel,
    /// A label has more than [`NAME_LABEL_SIZE_MAX`] bytes.
    LabelTooLong,
    /// The whole name has more than [`NAME_SIZE_MAX`] bytes in its wire form.
    TooLong,
    /// A space, a control character or one beyond ASCII.
    Character(char),
}

/// The kind of address asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
}

/// What is asked: the addresses of one kind of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    /// The name whose addresses are wanted.
    pub name: &'a DomainName,
    /// The kind of address.
    pub record_type: RecordType,
}

/// Whether a query carries the EDNS0 record that allows answers of [`NAME_DATAGRAM_SIZE_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edns {
    /// With the record.
    Announce,
    /// A query as of 1987, for servers and paths that lose what they do not know.
    Omit,
}

/// Response code of a server that could or would not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rcode(pub u8);

/// What a message says about the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its addresses, in the order of the message: at least one, at most
    /// [`NAME_ADDRESSES_MAX`].
    Addresses(Vec<IpAddr>),
    /// There is no such name.
    NoSuchName,
    /// The name is there, but has no address of this kind.
    NoData,
    /// The answer did not fit: ask again over TCP. What did fit counts for nothing.
    Truncated,
    /// The server failed or refuses.
    Failure(Rcode),
    /// The server points elsewhere and does not ask there for us, so it says nothing of the name.
    Referral,
    /// Not an answer to this question, or damaged: to be ignored, the right one may follow.
    Unusable,
}

impl DomainName {
    /// Returns the name that `text` writes with dots; one dot at its end is fine.
    ///
    /// Errors: what [`NameSyntaxError`] lists; names beyond ASCII have to come in their `xn--`
    /// form.
    pub fn parse(text: &str) -> Result<Self, NameSyntaxError> {
        if let Some(odd) = text.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(NameSyntaxError::Character(odd));
        }
        let relative = text.strip_suffix('.').unwrap_or(text);
        if relative.is_empty() {
            return Err(NameSyntaxError::Empty);
        }
        let mut octets = Vec::with_capacity(relative.len() + 2);
        for label in relative.split('.') {
            if label.is_empty() {
                return Err(NameSyntaxError::EmptyLabel);
            }
            if label.len() > NAME_LABEL_SIZE_MAX {
                return Err(NameSyntaxError::LabelTooLong);
            }
            octets.push(u8::try_from(label.len()).map_err(|_| NameSyntaxError::LabelTooLong)?);
            octets.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        octets.push(0);
        if octets.len() > NAME_SIZE_MAX {
            return Err(NameSyntaxError::TooLong);
        }
        Ok(Self(octets))
    }

    /// Returns whether this is `localhost` or below it: the own host, whatever servers say.
    ///
    /// Source: RFC 6761 section 6.3.
    pub fn is_localhost(&self) -> bool {
        // No label holds a control character, so this length octet is one.
        self.0.ends_with(b"\x09localhost\0")
    }
}

impl RecordType {
    fn code(self) -> u16 {
        match self {
            Self::A => TYPE_A,
            Self::Aaaa => TYPE_AAAA,
        }
    }
}

/// Returns the query that asks `question` under `id`, for a server that asks on for us.
///
/// The same bytes serve UDP and, after their length in two bytes, TCP.
///
/// Source: RFC 1035 section 4.1, RFC 6891 section 6.1.2.
pub fn encode_query(question: Question<'_>, id: u16, edns: Edns) -> Vec<u8> {
    let additional_count: u16 = match edns {
        Edns::Announce => 1,
        Edns::Omit => 0,
    };
    let mut message = Vec::with_capacity(HEADER_SIZE + NAME_SIZE_MAX + 16);
    // One question, no answer, no authority.
    for field in [id, FLAG_RECURSION_DESIRED, 1, 0, 0, additional_count] {
        message.extend(field.to_be_bytes());
    }
    message.extend(&question.name.0);
    message.extend(question.record_type.code().to_be_bytes());
    message.extend(CLASS_INTERNET.to_be_bytes());
    if edns == Edns::Announce {
        // Owner is the root, the class field holds the payload size, the TTL field version 0
        // and no flags, and there are no options.
        message.push(0);
        message.extend(TYPE_OPT.to_be_bytes());
        message.extend(NAME_DATAGRAM_SIZE_MAX.to_be_bytes());
        message.extend([0; 6]);
    }
    message
}

/// Returns what `message` says about `question`, asked under `id`.
///
/// An answer that is not a response, carries another id or another question is
/// [`Answer::Unusable`], and so is one whose answer section does not add up.
pub fn decode_answer(message: &[u8], question: Question<'_>, id: u16) -> Answer {
    // `None` is where the message ends early, or a name in it is broken.
    decode_answer_checked(message, question, id).unwrap_or(Answer::Unusable)
}

fn decode_answer_checked(message: &[u8], question: Question<'_>, id: u16) -> Option<Answer> {
    let mut reader = Reader {
        message,
        position: 0,
    };
    let answer_id = reader.take_u16()?;
    let flags = reader.take_u16()?;
    let questions_count = reader.take_u16()?;
    let answers_count = reader.take_u16()?;
    reader.skip(4)?;
    // The opcode of a plain query is 0.
    if answer_id != id || flags & (FLAG_RESPONSE | MASK_OPCODE) != FLAG_RESPONSE {
        return None;
    }
    if questions_count != 1
        || reader.take_name()? != *question.name
        || reader.take_u16()? != question.record_type.code()
        || reader.take_u16()? != CLASS_INTERNET
    {
        return None;
    }
    // "It should ignore that response, and query again, using a mechanism, such as a TCP
    // connection, that will permit larger replies." RFC 2181 section 9
    if flags & FLAG_TRUNCATED != 0 {
        return Some(Answer::Truncated);
    }
    match u8::try_from(flags & MASK_RCODE).ok()? {
        RCODE_NO_ERROR => {}
        // Where there are aliases, this is about the name at their end: no address either way.
        RCODE_NAME_ERROR => return Some(Answer::NoSuchName),
        rcode => return Some(Answer::Failure(Rcode(rcode))),
    }
    let found = follow_aliases(&reader, answers_count, question)?;
    if !found.addresses.is_empty() {
        return Some(Answer::Addresses(found.addresses));
    }
    let from_anyone = flags & (FLAG_AUTHORITATIVE | FLAG_RECURSION_AVAILABLE) != 0;
    Some(if from_anyone || found.alias.is_some() {
        Answer::NoData
    } else {
        Answer::Referral
    })
}

/// What one name owns in an answer section.
struct Owned {
    addresses: Vec<IpAddr>,
    alias: Option<DomainName>,
}

/// Returns the addresses of the asked name or of the end of its chain of aliases, and the last
/// alias that led there; `None` if the section is broken or the chain longer than
/// [`NAME_ALIASES_MAX`].
///
/// Walks the section once for each name of the chain, so the records may come in any order and
/// nothing has to be stored. `section` stands at its first record.
fn follow_aliases(section: &Reader<'_>, count: u16, question: Question<'_>) -> Option<Owned> {
    let mut last_alias = None;
    for _ in 0..=NAME_ALIASES_MAX {
        let owner = last_alias.as_ref().unwrap_or(question.name);
        let owned = collect_owned(section.clone(), count, owner, question.record_type)?;
        if !owned.addresses.is_empty() || owned.alias.is_none() {
            return Some(Owned {
                addresses: owned.addresses,
                alias: last_alias,
            });
        }
        last_alias = owned.alias;
    }
    None
}

/// Returns what `owner` has in the section; `None` if any of its records is broken, whoever owns
/// it. Records of other names, types and classes are stepped over.
fn collect_owned(
    mut section: Reader<'_>,
    count: u16,
    owner: &DomainName,
    wanted: RecordType,
) -> Option<Owned> {
    let mut owned = Owned {
        addresses: Vec::new(),
        alias: None,
    };
    for _ in 0..count {
        let is_owner = section.take_name()? == *owner;
        let record_type = section.take_u16()?;
        let class = section.take_u16()?;
        let _time_to_live = section.skip(4)?;
        let data_size = usize::from(section.take_u16()?);
        let data_start = section.position;
        let data = section.skip(data_size)?;
        if !is_owner || class != CLASS_INTERNET {
            continue;
        }
        if record_type == wanted.code() {
            let address = decode_address(data, wanted)?;
            if owned.addresses.len() < NAME_ADDRESSES_MAX {
                owned.addresses.push(address);
            }
        } else if record_type == TYPE_CNAME {
            // The alias may point back into the message, so it is read from there.
            let mut reader = Reader {
                message: section.message,
                position: data_start,
            };
            let alias = reader.take_name()?;
            if reader.position != section.position {
                return None;
            }
            // A name has one alias; of several, the first counts.
            owned.alias.get_or_insert(alias);
        }
    }
    Some(owned)
}

fn decode_address(data: &[u8], record_type: RecordType) -> Option<IpAddr> {
    match record_type {
        RecordType::A => {
            let octets: [u8; 4] = data.try_into().ok()?;
            Some(IpAddr::V4(Ipv4Addr::from(octets)))
        }
        RecordType::Aaaa => {
            let octets: [u8; 16] = data.try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(octets)))
        }
    }
}

/// A place in a message. Each `take` moves on behind what it returns; `None` is the end of the
/// message, or a name that breaks the rules, and leaves the place undefined.
#[derive(Clone)]
struct Reader<'a> {
    message: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn skip(&mut self, size: usize) -> Option<&'a [u8]> {
        let end = self.position.checked_add(size)?;
        let bytes = self.message.get(self.position..end)?;
        self.position = end;
        Some(bytes)
    }

    fn take_u16(&mut self) -> Option<u16> {
        let bytes = self.skip(2)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    }

    /// Returns the name that starts here, its pointers resolved.
    ///
    /// Each pointer must lead to before the labels it ends, so the way only goes back and ends.
    ///
    /// Source: RFC 1035 section 4.1.4, "a prior occurance of the same name".
    fn take_name(&mut self) -> Option<DomainName> {
        let mut octets = Vec::new();
        let mut position = self.position;
        let mut labels_start = self.position;
        let mut pointers_count = 0;
        // Where the name ends here: behind the first pointer, if there is one.
        let mut end = None;
        loop {
            let length = *self.message.get(position)?;
            match length & MASK_LABEL_KIND {
                0 => {
                    let label_end = position + 1 + usize::from(length);
                    // The length octet stays as it is: it is smaller than any letter.
                    let label = self.message.get(position..label_end)?;
                    if octets.len() + label.len() > NAME_SIZE_MAX {
                        return None;
                    }
                    octets.extend(label.iter().map(u8::to_ascii_lowercase));
                    position = label_end;
                    if length == 0 {
                        break;
                    }
                }
                MASK_LABEL_KIND => {
                    let low = *self.message.get(position + 1)?;
                    let high = length & !MASK_LABEL_KIND;
                    let prior = usize::from(u16::from_be_bytes([high, low]));
                    pointers_count += 1;
                    // There are no names in the header.
                    if !(HEADER_SIZE..labels_start).contains(&prior)
                        || pointers_count > NAME_POINTERS_MAX
                    {
                        return None;
                    }
                    end.get_or_insert(position + 2);
                    position = prior;
                    labels_start = prior;
                }
                _ => return None,
            }
        }
        self.position = end.unwrap_or(position);
        Some(DomainName(octets))
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_slice();
        let mut separator = "";
        while let Some((&length, tail)) = rest.split_first()
            && let Some((label, next)) = tail.split_at_checked(usize::from(length))
            && length > 0
        {
            write!(f, "{separator}{}", label.escape_ascii())?;
            separator = ".";
            rest = next;
        }
        Ok(())
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DomainName({self})")
    }
}

impl fmt::Display for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("FORMERR"),
            2 => f.write_str("SERVFAIL"),
            4 => f.write_str("NOTIMP"),
            5 => f.write_str("REFUSED"),
            other => write!(f, "response code {other}"),
        }
    }
}

impl fmt::Display for NameSyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::EmptyLabel => f.write_str("it has a dot too many"),
            Self::LabelTooLong => {
                write!(
                    f,
                    "the part between two dots has at most {NAME_LABEL_SIZE_MAX} characters"
                )
            }
            Self::TooLong => write!(f, "it has more than {} characters", NAME_SIZE_MAX - 2),
            Self::Character(odd) if odd.is_ascii() => {
                write!(
                    f,
                    "the character '{}' has no place in it",
                    odd.escape_default()
                )
            }
            Self::Character(odd) => {
                write!(
                    f,
                    "'{}' is not ASCII; write it in its xn-- form",
                    odd.escape_default()
                )
            }
        }
    }
}

impl std::error::Error for NameSyntaxError {}

/// Answers made by hand, for the tests of this codec and of its client.
#[cfg(test)]
pub(crate) mod made {
    use super::*;

    pub(crate) const RESPONSE: u16 = FLAG_RESPONSE;
    pub(crate) const TRUNCATED: u16 = FLAG_TRUNCATED;
    pub(crate) const RECURSION: u16 = FLAG_RECURSION_AVAILABLE;
    pub(crate) const A: u16 = TYPE_A;
    pub(crate) const AAAA: u16 = TYPE_AAAA;
    /// What a resolver that is well answers with.
    pub(crate) const GOOD: u16 = RESPONSE | RECURSION | FLAG_RECURSION_DESIRED;

    pub(crate) fn name(text: &str) -> DomainName {
        DomainName::parse(text).expect("a valid name")
    }

    /// An answer under construction; each method writes one more record behind the others.
    #[derive(Clone)]
    pub(crate) struct MadeAnswer(pub(crate) Vec<u8>);

    impl MadeAnswer {
        pub(crate) fn new(id: u16, flags: u16, question: &str, record_type: u16) -> Self {
            let mut message = Vec::new();
            for field in [id, flags, 1, 0, 0, 0] {
                message.extend(field.to_be_bytes());
            }
            message.extend(name(question).0);
            message.extend(record_type.to_be_bytes());
            message.extend(CLASS_INTERNET.to_be_bytes());
            Self(message)
        }

        /// `owner` and `data` are in wire form, so they may hold pointers and mistakes.
        pub(crate) fn record(mut self, owner: &[u8], record_type: u16, data: &[u8]) -> Self {
            let count = u16::from_be_bytes([self.0[6], self.0[7]]) + 1;
            self.0[6..8].copy_from_slice(&count.to_be_bytes());
            self.0.extend(owner);
            self.0.extend(record_type.to_be_bytes());
            self.0.extend(CLASS_INTERNET.to_be_bytes());
            self.0.extend(300_u32.to_be_bytes());
            self.0
                .extend(u16::try_from(data.len()).expect("short data").to_be_bytes());
            self.0.extend(data);
            self
        }

        pub(crate) fn address(self, owner: &str, address: &str) -> Self {
            match address.parse().expect("an address") {
                IpAddr::V4(v4) => self.record(&name(owner).0, TYPE_A, &v4.octets()),
                IpAddr::V6(v6) => self.record(&name(owner).0, TYPE_AAAA, &v6.octets()),
            }
        }

        pub(crate) fn alias(self, owner: &str, target: &str) -> Self {
            self.record(&name(owner).0, TYPE_CNAME, &name(target).0)
        }
    }

    /// Returns id, name and type of a query.
    pub(crate) fn read_query(query: &[u8]) -> (u16, String, u16) {
        let mut reader = Reader {
            message: query,
            position: 0,
        };
        let id = reader.take_u16().expect("id");
        reader.skip(10).expect("header");
        let asked = reader.take_name().expect("name").to_string();
        (id, asked, reader.take_u16().expect("type"))
    }
}

#[cfg(test)]
mod tests {
    use super::made::{GOOD, MadeAnswer, name};
    use super::*;

    const ID: u16 = 0x4b1d;
    /// Where the name of the question starts.
    const ASKED: [u8; 2] = [0xc0, 12];

    fn decode_as(message: &[u8], asked: &str, record_type: RecordType) -> Answer {
        let asked = name(asked);
        decode_answer(
            message,
            Question {
                name: &asked,
                record_type,
            },
            ID,
        )
    }

    fn decode(answer: &MadeAnswer) -> Answer {
        decode_as(&answer.0, "x.test", RecordType::A)
    }

    fn good() -> MadeAnswer {
        MadeAnswer::new(ID, GOOD, "x.test", TYPE_A)
    }

    fn flagged(flags: u16) -> Answer {
        decode(&MadeAnswer::new(ID, flags, "x.test", TYPE_A))
    }

    fn addresses(texts: &[&str]) -> Answer {
        Answer::Addresses(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn a_query_is_written_byte_for_byte() {
        let asked = name("X.Test.");
        let question = Question {
            name: &asked,
            record_type: RecordType::Aaaa,
        };
        let plain = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01x\x04test\0\0\x1c\0\x01";
        assert_eq!(encode_query(question, 0x1234, Edns::Omit), plain);
        let with_edns = [
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x01x\x04test\0\0\x1c\0\x01".as_slice(),
            b"\0\0\x29\x04\xd0\0\0\0\0\0\0",
        ]
        .concat();
        assert_eq!(encode_query(question, 0x1234, Edns::Announce), with_edns);
    }

    #[test]
    fn names_are_checked_when_parsed() {
        assert_eq!(name("WWW.Example.").0, b"\x03www\x07example\0");
        assert_eq!(name("www.example").to_string(), "www.example");
        assert_eq!(name("_tcp.a-b.test").to_string(), "_tcp.a-b.test");
        for (text, error) in [
            ("", NameSyntaxError::Empty),
            (".", NameSyntaxError::Empty),
            ("..", NameSyntaxError::EmptyLabel),
            (".test", NameSyntaxError::EmptyLabel),
            ("x..test", NameSyntaxError::EmptyLabel),
            ("x.test..", NameSyntaxError::EmptyLabel),
            ("x test", NameSyntaxError::Character(' ')),
            ("x\0test", NameSyntaxError::Character('\0')),
            ("bücher.test", NameSyntaxError::Character('ü')),
        ] {
            assert_eq!(DomainName::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn localhost_is_known_by_its_last_label() {
        for (text, expected) in [
            ("localhost", true),
            ("LocalHost.", true),
            ("a.localhost", true),
            ("alocalhost", false),
            ("localhost.test", false),
        ] {
            assert_eq!(name(text).is_localhost(), expected, "{text}");
        }
    }

    #[test]
    fn labels_and_names_have_their_largest_size() {
        let longest_label = "a".repeat(NAME_LABEL_SIZE_MAX);
        assert!(DomainName::parse(&longest_label).is_ok());
        let error = DomainName::parse(&format!("{longest_label}a"));
        assert_eq!(error, Err(NameSyntaxError::LabelTooLong));

        // Three full labels take 192 bytes, the root one more.
        let three = [longest_label.as_str(); 3].join(".");
        let longest_name = format!("{three}.{}", "b".repeat(NAME_SIZE_MAX - 192 - 2));
        assert_eq!(name(&longest_name).0.len(), NAME_SIZE_MAX);
        assert!(DomainName::parse(&format!("{longest_name}.")).is_ok());
        let error = DomainName::parse(&format!("{longest_name}b"));
        assert_eq!(error, Err(NameSyntaxError::TooLong));
    }

    #[test]
    fn addresses_of_the_name_are_returned_in_their_order() {
        let answer = good()
            .address("x.test", "192.0.2.2")
            .address("X.TEST", "192.0.2.1");
        assert_eq!(decode(&answer), addresses(&["192.0.2.2", "192.0.2.1"]));
        let answer =
            MadeAnswer::new(ID, GOOD, "x.test", TYPE_AAAA).address("x.test", "2001:db8::1");
        assert_eq!(
            decode_as(&answer.0, "x.test.", RecordType::Aaaa),
            addresses(&["2001:db8::1"])
        );
    }

    #[test]
    fn the_case_of_the_echoed_question_does_not_matter() {
        let mut answer = good().address("x.test", "192.0.2.1");
        answer.0[13] = b'X';
        assert_eq!(decode(&answer), addresses(&["192.0.2.1"]));
    }

    #[test]
    fn answers_to_something_else_are_unusable() {
        let right = good().address("x.test", "192.0.2.1");
        assert_eq!(decode(&right), addresses(&["192.0.2.1"]));
        let other_id = MadeAnswer::new(ID + 1, GOOD, "x.test", TYPE_A);
        let other_name = MadeAnswer::new(ID, GOOD, "y.test", TYPE_A);
        let longer_name = MadeAnswer::new(ID, GOOD, "x.test.test", TYPE_A);
        let other_type = MadeAnswer::new(ID, GOOD, "x.test", TYPE_AAAA);
        let mut other_class = right.clone();
        other_class.0[23] = 3;
        let query = MadeAnswer::new(ID, 0x0100, "x.test", TYPE_A);
        let other_opcode = MadeAnswer::new(ID, GOOD | 0x2000, "x.test", TYPE_A);
        let mut no_question = right.clone();
        no_question.0[5] = 0;
        let mut two_questions = right.clone();
        two_questions.0[5] = 2;
        for wrong in [
            other_id,
            other_name,
            longer_name,
            other_type,
            other_class,
            query,
            other_opcode,
            no_question,
            two_questions,
        ] {
            assert_eq!(decode(&wrong), Answer::Unusable);
        }
    }

    #[test]
    fn response_codes_and_flags_are_told_apart() {
        assert_eq!(flagged(GOOD), Answer::NoData);
        assert_eq!(flagged(GOOD | 1), Answer::Failure(Rcode(1)));
        assert_eq!(flagged(GOOD | 2), Answer::Failure(Rcode(2)));
        assert_eq!(flagged(GOOD | 3), Answer::NoSuchName);
        assert_eq!(flagged(GOOD | 5), Answer::Failure(Rcode(5)));
        assert_eq!(flagged(GOOD | FLAG_TRUNCATED), Answer::Truncated);
        assert_eq!(flagged(GOOD | FLAG_TRUNCATED | 3), Answer::Truncated);
        assert_eq!(flagged(FLAG_RESPONSE), Answer::Referral);
        assert_eq!(flagged(FLAG_RESPONSE | FLAG_AUTHORITATIVE), Answer::NoData);
    }

    #[test]
    fn addresses_cut_by_truncation_count_for_nothing() {
        let cut = MadeAnswer::new(ID, GOOD | FLAG_TRUNCATED, "x.test", TYPE_A)
            .address("x.test", "192.0.2.1");
        assert_eq!(decode(&cut), Answer::Truncated);
    }

    #[test]
    fn records_of_other_names_types_and_classes_are_left_alone() {
        let strangers = good()
            .address("y.test", "192.0.2.66")
            .address("x.test", "2001:db8::66")
            .address("test", "192.0.2.66")
            .address("a.x.test", "192.0.2.66")
            .alias("y.test", "x.test")
            .record(&name("x.test").0, 16, b"\x04text");
        assert_eq!(decode(&strangers), Answer::NoData);
        assert_eq!(
            decode(&strangers.clone().address("x.test", "192.0.2.1")),
            addresses(&["192.0.2.1"])
        );
        let mut chaos = good().address("x.test", "192.0.2.66");
        let class = chaos.0.len() - 11;
        chaos.0[class] = 3;
        assert_eq!(decode(&chaos), Answer::NoData);
    }

    #[test]
    fn aliases_are_followed_in_any_order() {
        let forward = good()
            .alias("x.test", "one.test")
            .alias("one.test", "two.example")
            .address("two.example", "192.0.2.1");
        assert_eq!(decode(&forward), addresses(&["192.0.2.1"]));
        let backward = good()
            .address("two.example", "192.0.2.1")
            .address("three.example", "192.0.2.66")
            .alias("one.test", "TWO.example")
            .alias("x.test", "one.test");
        assert_eq!(decode(&backward), addresses(&["192.0.2.1"]));
    }

    #[test]
    fn an_alias_without_address_is_no_data() {
        assert_eq!(decode(&good().alias("x.test", "one.test")), Answer::NoData);
        let denied = MadeAnswer::new(ID, GOOD | 3, "x.test", TYPE_A).alias("x.test", "one.test");
        assert_eq!(decode(&denied), Answer::NoSuchName);
        let unresolved = MadeAnswer::new(ID, FLAG_RESPONSE, "x.test", TYPE_A);
        assert_eq!(
            decode(&unresolved.alias("x.test", "one.test")),
            Answer::NoData
        );
    }

    #[test]
    fn chains_of_aliases_end() {
        let chain = |aliases_count: usize| {
            let mut answer = good().alias("x.test", "n1");
            for index in 1..aliases_count {
                answer = answer.alias(&format!("n{index}"), &format!("n{}", index + 1));
            }
            decode(&answer.address(&format!("n{aliases_count}"), "192.0.2.1"))
        };
        assert_eq!(chain(NAME_ALIASES_MAX), addresses(&["192.0.2.1"]));
        assert_eq!(chain(NAME_ALIASES_MAX + 1), Answer::Unusable);
        let circle = good().alias("x.test", "y.test").alias("y.test", "x.test");
        assert_eq!(decode(&circle), Answer::Unusable);
        assert_eq!(decode(&good().alias("x.test", "x.test")), Answer::Unusable);
    }

    #[test]
    fn addresses_beyond_the_limit_are_dropped() {
        let full = (0..NAME_ADDRESSES_MAX + 1).fold(good(), |made, last| {
            made.address("x.test", &format!("192.0.2.{last}"))
        });
        let Answer::Addresses(kept) = decode(&full) else {
            panic!("no addresses")
        };
        assert_eq!(kept.len(), NAME_ADDRESSES_MAX);
        assert_eq!(kept.last(), Some(&"192.0.2.15".parse().unwrap()));
    }

    /// The example of RFC 1035 section 4.1.4: `F.ISI.ARPA`, `FOO.F.ISI.ARPA`, `ARPA` and the
    /// root, at their places in the message.
    #[test]
    fn the_compression_example_of_rfc_1035_is_read() {
        let mut message = vec![0; 93];
        message[20..32].copy_from_slice(b"\x01F\x03ISI\x04ARPA\0");
        message[40..46].copy_from_slice(b"\x03FOO\xc0\x14");
        message[64..66].copy_from_slice(b"\xc0\x1a");
        for (start, text, end) in [
            (20, "f.isi.arpa", 32),
            (40, "foo.f.isi.arpa", 46),
            (64, "arpa", 66),
            (92, "", 93),
        ] {
            let mut reader = Reader {
                message: &message,
                position: start,
            };
            assert_eq!(reader.take_name().unwrap().to_string(), text);
            assert_eq!(reader.position, end);
        }
    }

    #[test]
    fn compressed_answers_are_read() {
        // The target of the alias is "www" before the "test" of the question.
        let answer = good().record(&ASKED, TYPE_CNAME, b"\x03www\xc0\x0e");
        let target = u8::try_from(answer.0.len() - 6).unwrap();
        let answer = answer.record(&[0xc0, target], TYPE_A, &[192, 0, 2, 1]);
        assert_eq!(decode(&answer), addresses(&["192.0.2.1"]));
    }

    #[test]
    fn pointers_only_lead_back_and_end() {
        // The first record starts at 24: to itself, forward, into the header, beyond the end,
        // and to labels that run into the pointer again.
        for owner in [
            b"\xc0\x18".as_slice(),
            b"\xc0\x1a",
            b"\xc0\x00",
            b"\xc0\x0b",
            b"\xff\xff",
            b"\x01a\xc0\x18",
            b"\x01a\xc0\x1a",
        ] {
            let answer = good().record(owner, TYPE_A, &[192, 0, 2, 66]);
            assert_eq!(decode(&answer), Answer::Unusable, "{owner:?}");
        }
        // Two that point at each other: the second leads back, the first does not.
        let pair = good().record(b"\xc0\x28", TYPE_A, &[192, 0, 2, 66]);
        let pair = pair.record(b"\xc0\x18", TYPE_A, &[192, 0, 2, 66]);
        assert_eq!(decode(&pair), Answer::Unusable);
    }

    #[test]
    fn undefined_label_kinds_are_refused() {
        for kind in [0x40, 0x80] {
            let owner = [&[kind][..], &[b'a'; 64], &[0]].concat();
            let answer = good().record(&owner, TYPE_A, &[192, 0, 2, 66]);
            assert_eq!(decode(&answer), Answer::Unusable);
        }
    }

    #[test]
    fn pointers_and_sizes_of_a_name_have_their_limits() {
        // A chain of pointers behind the root label at 12, each to the one before.
        let chain = |pointers_count: usize| {
            let mut message = vec![0; 13];
            let mut last = 12;
            for _ in 0..pointers_count {
                let place = message.len();
                message.extend((0xc000 | u16::try_from(last).unwrap()).to_be_bytes());
                last = place;
            }
            Reader {
                message: &message,
                position: last,
            }
            .take_name()
        };
        assert!(chain(NAME_POINTERS_MAX).is_some());
        assert!(chain(NAME_POINTERS_MAX + 1).is_none());

        // Labels of two bytes, then the root: 255 is odd, so the largest size is reached.
        let labels = |size: usize| {
            let mut message = b"\x01a".repeat((size - 1) / 2);
            if size.is_multiple_of(2) {
                message.splice(0..2, *b"\x02aa");
            }
            message.push(0);
            assert_eq!(message.len(), size);
            Reader {
                message: &message,
                position: 0,
            }
            .take_name()
        };
        assert!(labels(NAME_SIZE_MAX).is_some());
        assert!(labels(NAME_SIZE_MAX + 1).is_none());
    }

    #[test]
    fn damaged_records_make_the_answer_unusable() {
        let short = good().record(&ASKED, TYPE_A, &[192, 0, 2]);
        let long = good().record(&ASKED, TYPE_A, &[192, 0, 2, 1, 0]);
        let alias_runs_out = good().record(&ASKED, TYPE_CNAME, b"\x01y\x04test\0\0");
        let alias_cut = good().record(&ASKED, TYPE_CNAME, b"\x01y\x04te");
        for damaged in [short, long, alias_runs_out, alias_cut] {
            assert_eq!(decode(&damaged), Answer::Unusable);
        }
        let whole = good()
            .address("x.test", "192.0.2.1")
            .address("y.test", "192.0.2.66")
            .0;
        for size in 0..whole.len() {
            let cut = decode_as(&whole[..size], "x.test", RecordType::A);
            assert_eq!(cut, Answer::Unusable, "first {size} bytes");
        }
        // What follows the answer section is nobody's business.
        let followed = [whole, vec![0xff; 40]].concat();
        assert_eq!(
            decode_as(&followed, "x.test", RecordType::A),
            addresses(&["192.0.2.1"])
        );
    }

    #[test]
    fn the_largest_message_is_read_in_time() {
        // 16 aliases behind thousands of strangers: every pass walks the whole section.
        let mut answer = good();
        while answer.0.len() < 65_000 {
            answer = answer.record(&ASKED, 16, b"");
        }
        for index in 0..NAME_ALIASES_MAX {
            let owner = if index == 0 {
                "x.test".into()
            } else {
                format!("n{index}")
            };
            answer = answer.alias(&owner, &format!("n{}", index + 1));
        }
        assert_eq!(decode(&answer), Answer::NoData);
    }
}
