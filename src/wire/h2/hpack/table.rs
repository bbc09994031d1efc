//! The table of fields: the static ones that everybody knows, then those seen last.
//!
//! Source: RFC 7541 sections 2.3 (indices) and 4 (size and eviction), appendix A (static table).

use std::collections::VecDeque;

use super::Field;

/// What a field counts for besides its bytes. RFC 7541 section 4.1.
const FIELD_OVERHEAD: usize = 32;

/// Static fields, the first at index 1.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// The table of one end for one direction.
///
/// Invariants: `size` is the sum over `dynamic` and at most `size_max`.
pub(super) struct Table {
    /// The newest first.
    dynamic: VecDeque<Field>,
    /// Bytes, with [`FIELD_OVERHEAD`] for each field.
    size: usize,
    size_max: usize,
}

/// Where the table has a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Name and value at this index.
    Field(usize),
    /// The name alone, with another value.
    Name(usize),
    /// Not even the name.
    Nothing,
}

/// Returns what a field counts for in a table or a list (bytes).
pub(super) fn field_size(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + FIELD_OVERHEAD
}

impl Table {
    pub(super) fn new(size_max: usize) -> Self {
        Self {
            dynamic: VecDeque::new(),
            size: 0,
            size_max,
        }
    }

    pub(super) fn size_max(&self) -> usize {
        self.size_max
    }

    /// Returns name and value at `index`; `None` where nothing is.
    pub(super) fn field_at(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let place = index.checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(place) {
            return Some((name.as_bytes(), value.as_bytes()));
        }
        let field = self.dynamic.get(place - STATIC.len())?;
        Some((&field.name, &field.value))
    }

    /// Returns the lowest index that says the most of a field.
    pub(super) fn find(&self, name: &[u8], value: &[u8]) -> Found {
        let mut found = Found::Nothing;
        for (index, entry) in (1..).zip(self.fields()) {
            if entry == (name, value) {
                return Found::Field(index);
            }
            if entry.0 == name && found == Found::Nothing {
                found = Found::Name(index);
            }
        }
        found
    }

    /// Adds a field as the newest; the oldest leave until it fits. One that is larger than the
    /// whole table empties it and is not kept.
    pub(super) fn insert(&mut self, field: Field) {
        let size = field_size(&field.name, &field.value);
        self.evict(self.size_max.saturating_sub(size));
        if size <= self.size_max {
            self.size += size;
            self.dynamic.push_front(field);
        }
    }

    /// Changes the size; the oldest fields leave until the rest fits.
    pub(super) fn set_size_max(&mut self, size_max: usize) {
        self.size_max = size_max;
        self.evict(size_max);
    }

    /// Lets the oldest go until at most `size_left` is taken.
    fn evict(&mut self, size_left: usize) {
        while self.size > size_left
            && let Some(oldest) = self.dynamic.pop_back()
        {
            self.size -= field_size(&oldest.name, &oldest.value);
        }
    }

    fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let fixed = STATIC
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let seen = self
            .dynamic
            .iter()
            .map(|field| (&field.name[..], &field.value[..]));
        fixed.chain(seen)
    }

    /// Returns the size and the fields that are not static, the newest first.
    #[cfg(test)]
    pub(super) fn seen(&self) -> (usize, Vec<Field>) {
        (self.size, self.dynamic.iter().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a field that counts for `size`.
    fn field_of_size(mark: u8, size: usize) -> Field {
        Field {
            name: vec![mark],
            value: vec![b'v'; size - FIELD_OVERHEAD - 1],
        }
    }

    fn marks(table: &Table) -> (usize, Vec<u8>) {
        let (size, fields) = table.seen();
        (size, fields.iter().map(|field| field.name[0]).collect())
    }

    #[test]
    fn static_fields_have_the_indices_of_the_standard() {
        let table = Table::new(0);
        let listed: [(usize, &[u8], &[u8]); 6] = [
            (1, b":authority", b""),
            (3, b":method", b"POST"),
            (14, b":status", b"500"),
            (16, b"accept-encoding", b"gzip, deflate"),
            (40, b"if-modified-since", b""),
            (61, b"www-authenticate", b""),
        ];
        for (index, name, value) in listed {
            assert_eq!(table.field_at(index), Some((name, value)));
            assert_eq!(table.find(name, value), Found::Field(index));
        }
        for index in [0, 62, usize::MAX] {
            assert_eq!(table.field_at(index), None);
        }
    }

    #[test]
    fn the_lowest_index_that_says_the_most_is_found() {
        let mut table = Table::new(200);
        assert_eq!(table.find(b":path", b"/stream"), Found::Name(4));
        assert_eq!(table.find(b"a", b"b"), Found::Nothing);
        for value in [b"1", b"2"] {
            table.insert(Field {
                name: b"a".to_vec(),
                value: value.to_vec(),
            });
        }
        assert_eq!(table.find(b"a", b"1"), Found::Field(63));
        assert_eq!(table.find(b"a", b"3"), Found::Name(62));
    }

    #[test]
    fn the_oldest_fields_leave_until_the_new_one_fits() {
        let mut table = Table::new(120);
        for mark in *b"abc" {
            table.insert(field_of_size(mark, 40));
        }
        assert_eq!(marks(&table), (120, b"cba".to_vec()));
        table.insert(field_of_size(b'd', 41));
        assert_eq!(marks(&table), (81, b"dc".to_vec()));
        table.insert(field_of_size(b'e', 120));
        assert_eq!(marks(&table), (120, b"e".to_vec()));
        table.insert(field_of_size(b'f', 121));
        assert_eq!(marks(&table), (0, Vec::new()));
    }

    #[test]
    fn a_smaller_table_keeps_the_newest_fields() {
        let mut table = Table::new(120);
        for mark in *b"abc" {
            table.insert(field_of_size(mark, 40));
        }
        table.set_size_max(119);
        assert_eq!(marks(&table), (80, b"cb".to_vec()));
        table.set_size_max(40);
        assert_eq!(marks(&table), (40, b"c".to_vec()));
        table.set_size_max(0);
        table.set_size_max(120);
        assert_eq!(marks(&table), (0, Vec::new()));
    }
}
