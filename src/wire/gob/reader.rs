//! The pieces that a stream is made of: integers, bytes, text, messages, and the fields of structs.

use super::definition::Field;
use super::error::{GobError, GobErrorReason};
use super::{BOOL, INT, TEXT, TypeId, UINT};

/// Least size of a key and its value (bytes).
pub(super) const MAP_ENTRY_SIZE_MIN: usize = 2;

/// Where one is in a struct: the index of the first field that has not been passed.
#[derive(Default)]
pub(super) struct Place(usize);

impl Place {
    /// Returns the index of the next field that is there; `None` at the end of the struct.
    pub(super) fn next_index(
        &mut self,
        reader: &mut Reader<'_>,
    ) -> Result<Option<usize>, GobError> {
        let error = reader.error(GobErrorReason::UnknownField);
        let step = usize::try_from(reader.take_uint()?).map_err(|_| error)?;
        if step == 0 {
            return Ok(None);
        }
        self.0 = self.0.checked_add(step).ok_or(error)?;
        Ok(Some(self.0 - 1))
    }

    /// Returns the next field that is there; `None` at the end of the struct.
    pub(super) fn next_field<'t, 'a>(
        &mut self,
        reader: &mut Reader<'_>,
        fields: &'t [Field<'a>],
    ) -> Result<Option<&'t Field<'a>>, GobError> {
        let error = reader.error(GobErrorReason::UnknownField);
        let index = self.next_index(reader)?;
        index
            .map(|index| fields.get(index).ok_or(error))
            .transpose()
    }
}

/// A place in the file, up to the end of a message. Each `take` moves on behind what it returns.
pub(super) struct Reader<'a> {
    /// The file from its start, so that places are those of the file.
    input: &'a [u8],
    pub(super) position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { input, position: 0 }
    }

    pub(super) fn left(&self) -> usize {
        self.input.len() - self.position
    }

    /// Returns the error that something is wrong with what comes next.
    pub(super) fn error(&self, reason: GobErrorReason) -> GobError {
        GobError {
            offset: self.position,
            reason,
        }
    }

    pub(super) fn field_error(&self, field: &'static str, expected: &'static str) -> GobError {
        self.error(GobErrorReason::FieldType { field, expected })
    }

    fn take(&mut self, size: usize) -> Result<&'a [u8], GobError> {
        let end = self.position.checked_add(size);
        let bytes = end.and_then(|end| self.input.get(self.position..end));
        let bytes = bytes.ok_or(self.error(GobErrorReason::Truncated))?;
        self.position += size;
        Ok(bytes)
    }

    /// Below 128 the byte itself; else how many bytes follow, negated, and the number, highest byte
    /// first.
    pub(super) fn take_uint(&mut self) -> Result<u64, GobError> {
        let error = self.error(GobErrorReason::Integer);
        let first = self.take(1)?[0];
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        let size = usize::from(first.wrapping_neg());
        if size > size_of::<u64>() {
            return Err(error);
        }
        let bytes = self.take(size)?;
        Ok(bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// The lowest bit says whether those above it are complemented.
    pub(super) fn take_int(&mut self) -> Result<i64, GobError> {
        let coded = self.take_uint()?;
        let number = (coded >> 1).cast_signed();
        Ok(if coded & 1 == 0 { number } else { !number })
    }

    /// Returns how many things follow, each of at least `size_min` bytes: no more than there can
    /// be.
    pub(super) fn take_count(&mut self, size_min: usize) -> Result<usize, GobError> {
        let error = self.error(GobErrorReason::Count);
        let count = usize::try_from(self.take_uint()?).map_err(|_| error)?;
        if count > self.left() / size_min {
            return Err(error);
        }
        Ok(count)
    }

    pub(super) fn take_bytes(&mut self) -> Result<&'a [u8], GobError> {
        let size = self.take_count(1)?;
        self.take(size)
    }

    pub(super) fn take_text(&mut self) -> Result<&'a str, GobError> {
        let error = self.error(GobErrorReason::Text);
        str::from_utf8(self.take_bytes()?).map_err(|_| error)
    }

    /// Returns a reader of the message that begins here.
    pub(super) fn take_message(&mut self) -> Result<Self, GobError> {
        let size = self.take_count(1)?;
        let position = self.position;
        self.position += size;
        Ok(Self {
            input: &self.input[..self.position],
            position,
        })
    }

    /// Checks that the message is at its end.
    pub(super) fn finish(&self) -> Result<(), GobError> {
        if self.left() > 0 {
            return Err(self.error(GobErrorReason::Excess));
        }
        Ok(())
    }

    pub(super) fn take_text_field(
        &mut self,
        name: &'static str,
        id: TypeId,
    ) -> Result<String, GobError> {
        if id != TEXT {
            return Err(self.field_error(name, "string"));
        }
        Ok(self.take_text()?.to_owned())
    }

    pub(super) fn take_flag_field(
        &mut self,
        name: &'static str,
        id: TypeId,
    ) -> Result<bool, GobError> {
        if id != BOOL {
            return Err(self.field_error(name, "bool"));
        }
        Ok(self.take_uint()? != 0)
    }

    /// Whether a counter is signed is nothing that matters: a version may have it either way.
    pub(super) fn take_number_field(
        &mut self,
        name: &'static str,
        id: TypeId,
    ) -> Result<u64, GobError> {
        match id {
            UINT => self.take_uint(),
            INT => Ok(u64::try_from(self.take_int()?).unwrap_or(0)),
            _ => Err(self.field_error(name, "int or uint")),
        }
    }
}
