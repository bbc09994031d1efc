//! HPACK: header fields of HTTP/2, compressed by tables that both ends keep alike.
//!
//! Each direction of a connection has an [`Encoder`] at one end and a [`Decoder`] at the other; all
//! blocks of the direction have to pass through both, in order. The decoder trusts nothing:
//! numbers, lists and tables are bounded, and a small block that stands for a large list is not
//! unfolded. Whether names and values suit HTTP is for others to check.
//!
//! ```text
//!   block = table size update *, field *
//!   field = index | literal, added to the table | literal, not added | literal, never to be added
//! ```
//!
//! Source: RFC 7541.

mod huffman;
mod table;

#[cfg(test)]
mod tests;

use std::fmt;

use crate::limits::{HPACK_FIELDS_COUNT_MAX, HPACK_TABLE_SIZE_MAX};

use table::{Found, Table, field_size};

/// One field; both are byte strings, names are lower case in HTTP/2.
#[derive(Clone, PartialEq, Eq)]
pub struct Field {
    /// With a colon in front for pseudo fields.
    pub name: Vec<u8>,
    /// May be empty.
    pub value: Vec<u8>,
}

/// One field to send.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Outgoing<'a> {
    /// In lower case.
    pub name: &'a [u8],
    /// May be empty.
    pub value: &'a [u8],
    /// The value is a secret: no table on the way may keep it (RFC 7541 section 7.1.3), and it is
    /// not printed.
    pub is_sensitive: bool,
}

/// Why a block was not taken.
///
/// After [`TooLarge`](Self::TooLarge) the decoder goes on with the next block. After all others the
/// tables differ or may differ: the connection has to end (RFC 9113 section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HpackError {
    /// The block is well, but its list is larger than allowed.
    TooLarge,
    /// The block ends within a field.
    Truncated,
    /// A number has more octets than any that is needed.
    NumberTooLong,
    /// An index that neither table has; 0 is one.
    NoSuchIndex,
    /// A Huffman code that is padded wrongly or contains the end of the string.
    Huffman,
    /// The table is to be larger than allowed.
    TableTooLarge,
    /// The size of the table changes behind the first field of the block.
    LateTableSize,
}

/// Writes the blocks of one direction.
pub struct Encoder {
    table: Table,
    /// The smallest size since the last block, if it was changed since then. RFC 7541 section 4.2.
    unannounced_size_min: Option<usize>,
}

/// Reads the blocks of one direction.
pub struct Decoder {
    table: Table,
    /// What the encoder may choose at most (bytes).
    table_size_max: usize,
}

impl<'a> Outgoing<'a> {
    /// A field that tables may keep.
    pub const fn new(name: &'a [u8], value: &'a [u8]) -> Self {
        Self {
            name,
            value,
            is_sensitive: false,
        }
    }

    /// A field whose value is a secret.
    pub const fn sensitive(name: &'a [u8], value: &'a [u8]) -> Self {
        Self {
            name,
            value,
            is_sensitive: true,
        }
    }
}

impl Encoder {
    /// Makes an encoder for a connection on which nothing was sent.
    pub fn new() -> Self {
        Self {
            table: Table::new(HPACK_TABLE_SIZE_MAX),
            unannounced_size_min: None,
        }
    }

    /// Takes the peer's `SETTINGS_HEADER_TABLE_SIZE` (bytes), each time that it comes.
    ///
    /// The next block announces what changes by it. More than [`HPACK_TABLE_SIZE_MAX`] is not used.
    pub fn set_size_max(&mut self, size_max: usize) {
        let size_max = size_max.min(HPACK_TABLE_SIZE_MAX);
        if size_max != self.table.size_max() {
            let smallest = self.unannounced_size_min.unwrap_or(size_max);
            self.unannounced_size_min = Some(smallest.min(size_max));
            self.table.set_size_max(size_max);
        }
    }

    /// Appends the block of `fields` to `into`. The block has to be sent.
    pub fn encode(&mut self, fields: &[Outgoing<'_>], into: &mut Vec<u8>) {
        if let Some(smallest) = self.unannounced_size_min.take() {
            let size_max = self.table.size_max();
            if smallest < size_max {
                encode_number(TABLE_SIZE, smallest, into);
            }
            encode_number(TABLE_SIZE, size_max, into);
        }
        for field in fields {
            self.encode_field(field, into);
        }
    }

    fn encode_field(&mut self, field: &Outgoing<'_>, into: &mut Vec<u8>) {
        let &Outgoing { name, value, .. } = field;
        let name_index = match self.table.find(name, value) {
            // Even the index of a secret would tell that it is the same as before.
            Found::Field(index) if !field.is_sensitive => {
                encode_number(INDEXED, index, into);
                return;
            }
            Found::Field(index) | Found::Name(index) => index,
            Found::Nothing => 0,
        };
        // What does not fit would empty the table.
        let fits = field_size(name, value) <= self.table.size_max();
        let kind = match field.is_sensitive {
            true => LITERAL_NEVER_ADDED,
            false if fits => LITERAL_ADDED,
            false => LITERAL,
        };
        encode_number(kind, name_index, into);
        if name_index == 0 {
            encode_string(name, into);
        }
        encode_string(value, into);
        if kind == LITERAL_ADDED {
            self.table.insert(Field::new(name, value));
        }
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// Makes a decoder for a connection on which nothing was received. `table_size_max` is what the
    /// peer's encoder may use: the `SETTINGS_HEADER_TABLE_SIZE` that it knows (bytes).
    ///
    /// Until the peer has acknowledged another one, that is [`HPACK_TABLE_SIZE_MAX`].
    pub fn new(table_size_max: usize) -> Self {
        Self {
            table: Table::new(table_size_max.min(HPACK_TABLE_SIZE_MAX)),
            table_size_max,
        }
    }

    /// Returns the fields of `block`, which is complete.
    ///
    /// `list_size_max` bounds the sum over all fields of name, value and 32 (bytes, RFC 9113
    /// section 10.5.1); there are [`HPACK_FIELDS_COUNT_MAX`] at most. Memory is taken for what is
    /// within these bounds, for the table, and for one literal of at most 8/5 of the block.
    ///
    /// Errors: what [`HpackError`] lists. [`TooLarge`](HpackError::TooLarge) comes only for a block
    /// that was read to its end and is well otherwise.
    pub fn decode(&mut self, block: &[u8], list_size_max: usize) -> Result<Vec<Field>, HpackError> {
        let mut input = Input { rest: block };
        let mut list = List::Within {
            fields: Vec::new(),
            size_left: list_size_max,
        };
        let mut is_first = true;
        while let Some(&first) = input.rest.first() {
            if INDEXED.begins(first) {
                let index = input.number(INDEXED)?;
                let (name, value) = self.field_at(index)?;
                list.add(name, value);
            } else if LITERAL_ADDED.begins(first) {
                let field = self.literal(&mut input, LITERAL_ADDED)?;
                list.add(&field.name, &field.value);
                self.table.insert(field);
            } else if TABLE_SIZE.begins(first) {
                let size_max = input.number(TABLE_SIZE)?;
                self.resize(size_max, is_first)?;
                continue;
            } else {
                // A literal, or one that is never to be added: of interest to those who pass it on.
                let field = self.literal(&mut input, LITERAL)?;
                list.add(&field.name, &field.value);
            }
            is_first = false;
        }
        match list {
            List::Within { fields, .. } => Ok(fields),
            List::Over => Err(HpackError::TooLarge),
        }
    }

    fn literal(&self, input: &mut Input<'_>, kind: Kind) -> Result<Field, HpackError> {
        let name = match input.number(kind)? {
            0 => input.string()?,
            index => self.field_at(index)?.0.to_vec(),
        };
        let value = input.string()?;
        Ok(Field { name, value })
    }

    fn field_at(&self, index: usize) -> Result<(&[u8], &[u8]), HpackError> {
        self.table.field_at(index).ok_or(HpackError::NoSuchIndex)
    }

    fn resize(&mut self, size_max: usize, is_first: bool) -> Result<(), HpackError> {
        // RFC 7541 section 4.2: at the beginning of the first block after the change.
        if !is_first {
            return Err(HpackError::LateTableSize);
        }
        // RFC 7541 section 6.3: the new size must not exceed what the decoder's side has set.
        if size_max > self.table_size_max {
            return Err(HpackError::TableTooLarge);
        }
        self.table.set_size_max(size_max);
        Ok(())
    }
}

/// The list of a block while it is read.
enum List {
    Within {
        fields: Vec<Field>,
        size_left: usize,
    },
    /// Larger than allowed: nothing is kept any more.
    Over,
}

impl List {
    fn add(&mut self, name: &[u8], value: &[u8]) {
        let Self::Within { fields, size_left } = self else {
            return;
        };
        match size_left.checked_sub(field_size(name, value)) {
            Some(left) if fields.len() < HPACK_FIELDS_COUNT_MAX => {
                *size_left = left;
                fields.push(Field::new(name, value));
            }
            _ => *self = Self::Over,
        }
    }
}

/// What the leading bits of an octet say; a number begins in the bits behind them.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    pattern: u8,
    /// The bits of the number.
    mask: u8,
}

/// RFC 7541 section 6.1.
const INDEXED: Kind = Kind::new(0x80, 0x7f);
/// RFC 7541 section 6.2.1.
const LITERAL_ADDED: Kind = Kind::new(0x40, 0x3f);
/// RFC 7541 section 6.2.2.
const LITERAL: Kind = Kind::new(0x00, 0x0f);
/// RFC 7541 section 6.2.3.
const LITERAL_NEVER_ADDED: Kind = Kind::new(0x10, 0x0f);
/// RFC 7541 section 6.3.
const TABLE_SIZE: Kind = Kind::new(0x20, 0x1f);
/// RFC 7541 section 5.2.
const STRING: Kind = Kind::new(0x00, 0x7f);
const STRING_HUFFMAN: Kind = Kind::new(0x80, 0x7f);

impl Kind {
    const fn new(pattern: u8, mask: u8) -> Self {
        Self { pattern, mask }
    }

    fn begins(self, octet: u8) -> bool {
        octet & !self.mask == self.pattern
    }
}

/// Source: RFC 7541 section 5.1.
fn encode_number(kind: Kind, number: usize, into: &mut Vec<u8>) {
    let Some(mut rest) = number.checked_sub(kind.mask.into()) else {
        into.push(kind.pattern | number.to_le_bytes()[0]);
        return;
    };
    into.push(kind.pattern | kind.mask);
    while rest >= 0x80 {
        into.push(0x80 | rest.to_le_bytes()[0]);
        rest >>= 7;
    }
    into.push(rest.to_le_bytes()[0]);
}

fn encode_string(string: &[u8], into: &mut Vec<u8>) {
    let size = huffman::encoded_size(string);
    if size < string.len() {
        encode_number(STRING_HUFFMAN, size, into);
        huffman::encode(string, into);
    } else {
        encode_number(STRING, string.len(), into);
        into.extend_from_slice(string);
    }
}

/// What is left of a block.
struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn octet(&mut self) -> Result<u8, HpackError> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, size: usize) -> Result<&'a [u8], HpackError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(size)
            .ok_or(HpackError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Takes the number of which the next octet is the first, whatever its leading bits are.
    ///
    /// Source: RFC 7541 section 5.1.
    fn number(&mut self, kind: Kind) -> Result<usize, HpackError> {
        let first = self.octet()? & kind.mask;
        if first < kind.mask {
            return Ok(first.into());
        }
        let mut number = u32::from(first);
        // 28 bits are more than any table, list or string may have.
        for shift in [0, 7, 14, 21] {
            let octet = self.octet()?;
            number += u32::from(octet & 0x7f) << shift;
            if octet & 0x80 == 0 {
                return usize::try_from(number).map_err(|_| HpackError::NumberTooLong);
            }
        }
        Err(HpackError::NumberTooLong)
    }

    fn string(&mut self) -> Result<Vec<u8>, HpackError> {
        let &first = self.rest.first().ok_or(HpackError::Truncated)?;
        let size = self.number(STRING)?;
        let bytes = self.take(size)?;
        if STRING_HUFFMAN.begins(first) {
            huffman::decode(bytes)
        } else {
            Ok(bytes.to_vec())
        }
    }
}

impl Field {
    fn new(name: &[u8], value: &[u8]) -> Self {
        Self {
            name: name.to_vec(),
            value: value.to_vec(),
        }
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}",
            self.name.escape_ascii(),
            self.value.escape_ascii()
        )
    }
}

impl fmt::Debug for Outgoing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_sensitive {
            write!(f, "{}: ***", self.name.escape_ascii())
        } else {
            write!(
                f,
                "{}: {}",
                self.name.escape_ascii(),
                self.value.escape_ascii()
            )
        }
    }
}

impl fmt::Display for HpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "the list of header fields is too large",
            Self::Truncated => "a block of header fields ends within a field",
            Self::NumberTooLong => "a block of header fields has a number that is too long",
            Self::NoSuchIndex => "a block of header fields has an index that no table has",
            Self::Huffman => "a block of header fields has a damaged Huffman code",
            Self::TableTooLarge => "a block of header fields asks for too large a table",
            Self::LateTableSize => {
                "a block of header fields changes the size of the table behind a field"
            }
        })
    }
}

impl std::error::Error for HpackError {}
