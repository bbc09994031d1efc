//! What a stream says of its types.

use super::TypeId;
use super::error::{GobError, GobErrorReason};
use super::reader::{Place, Reader};
use crate::limits::GOB_FIELDS_COUNT_MAX;

/// A type that the stream defines.
pub(super) enum Type<'a> {
    /// A slice, or an array.
    List {
        element: TypeId,
    },
    Struct(Vec<Field<'a>>),
    Map {
        key: TypeId,
        element: TypeId,
    },
    /// One that writes itself: bytes to all others.
    Opaque,
}

pub(super) struct Field<'a> {
    pub(super) name: &'a str,
    pub(super) type_id: TypeId,
}

/// Reads what defines a type: a struct of which one field is there, which says the kind of type.
pub(super) fn decode_definition<'a>(reader: &mut Reader<'a>) -> Result<Type<'a>, GobError> {
    let error = reader.error(GobErrorReason::Definition);
    let mut place = Place::default();
    let kind = place.next_index(reader)?.ok_or(error)?;
    let definition = match kind {
        // Array, slice, struct, map; the last three write themselves, each in another way.
        0 | 1 => decode_list(reader)?,
        2 => decode_struct(reader)?,
        3 => decode_map(reader)?,
        4..=6 => {
            decode_integers(reader, 0)?;
            Type::Opaque
        }
        _ => return Err(error),
    };
    match place.next_index(reader)? {
        None => Ok(definition),
        Some(_) => Err(error),
    }
}

fn decode_list<'a>(reader: &mut Reader<'a>) -> Result<Type<'a>, GobError> {
    // An array says its length as well; it stands in front of the elements again.
    let [element, _length] = decode_integers(reader, 2)?;
    Ok(Type::List { element })
}

fn decode_map<'a>(reader: &mut Reader<'a>) -> Result<Type<'a>, GobError> {
    let [key, element] = decode_integers(reader, 2)?;
    Ok(Type::Map { key, element })
}

/// Reads a definition that, behind name and id of the type, has up to `count` integers.
fn decode_integers(reader: &mut Reader<'_>, count: usize) -> Result<[TypeId; 2], GobError> {
    let mut integers = [0; 2];
    let mut place = Place::default();
    loop {
        let error = reader.error(GobErrorReason::Definition);
        match place.next_index(reader)? {
            None => return Ok(integers),
            Some(0) => {
                decode_named(reader)?;
            }
            Some(index) => {
                let integer = integers[..count].get_mut(index - 1).ok_or(error)?;
                *integer = reader.take_int()?;
            }
        }
    }
}

fn decode_struct<'a>(reader: &mut Reader<'a>) -> Result<Type<'a>, GobError> {
    let mut fields = Vec::new();
    let mut place = Place::default();
    loop {
        let error = reader.error(GobErrorReason::Definition);
        match place.next_index(reader)? {
            None => return Ok(Type::Struct(fields)),
            Some(0) => {
                decode_named(reader)?;
            }
            Some(1) => {
                let count = reader.take_count(1)?;
                if count > GOB_FIELDS_COUNT_MAX {
                    return Err(reader.error(GobErrorReason::FieldsCount));
                }
                for _ in 0..count {
                    fields.push(decode_named(reader)?);
                }
            }
            Some(_) => return Err(error),
        }
    }
}

/// Reads a name with a type id: a field of a struct, or what a type says of itself.
fn decode_named<'a>(reader: &mut Reader<'a>) -> Result<Field<'a>, GobError> {
    let mut field = Field {
        name: "",
        type_id: 0,
    };
    let mut place = Place::default();
    loop {
        let error = reader.error(GobErrorReason::Definition);
        match place.next_index(reader)? {
            None => return Ok(field),
            Some(0) => field.name = reader.take_text()?,
            Some(1) => field.type_id = reader.take_int()?,
            Some(_) => return Err(error),
        }
    }
}
