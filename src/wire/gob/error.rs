//! What is wrong with a state file.

use std::fmt;

use crate::limits::{
    GOB_DEPTH_MAX, GOB_FIELDS_COUNT_MAX, GOB_INSTANCES_COUNT_MAX, GOB_SIZE_MAX, GOB_TAGS_COUNT_MAX,
    GOB_TYPES_COUNT_MAX,
};

/// Why a file cannot be read, and where. Nothing of what the file says is part of it, and reading
/// it again never helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GobError {
    /// Bytes of the file in front of what cannot be read.
    pub offset: usize,
    /// What is wrong there.
    pub reason: GobErrorReason,
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GobErrorReason {
    /// It is longer than [`GOB_SIZE_MAX`].
    TooLarge,
    /// It ends before the value.
    NoValue,
    /// It, or a message in it, ends within something.
    Truncated,
    /// There is more of something than there are bytes for it.
    Count,
    /// The size of an integer is none.
    Integer,
    /// Text is not UTF-8.
    Text,
    /// A type is defined that has been defined, or may not be.
    Redefinition,
    /// A definition of a type is not one.
    Definition,
    /// There are more types than [`GOB_TYPES_COUNT_MAX`].
    TypesCount,
    /// A struct has more fields than [`GOB_FIELDS_COUNT_MAX`].
    FieldsCount,
    /// A value has a type that is not defined.
    UnknownType,
    /// A value has a field that its struct does not have.
    UnknownField,
    /// A value of any type, which has to be known to both ends.
    Interface,
    /// Values stand in one another more than [`GOB_DEPTH_MAX`] deep.
    Depth,
    /// The value is no map from text to structs.
    NoInstances,
    /// A field that is known has another type than this.
    FieldType {
        /// Its name.
        field: &'static str,
        /// The type that it should have.
        expected: &'static str,
    },
    /// There are more instances than [`GOB_INSTANCES_COUNT_MAX`].
    InstancesCount,
    /// There are more tags than [`GOB_TAGS_COUNT_MAX`].
    TagsCount,
    /// An instance or a tag is there twice.
    Duplicate,
    /// An instance stands under the id of another one.
    Id,
    /// A message is longer than what it says.
    Excess,
}

impl fmt::Display for GobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            GobErrorReason::TooLarge => write!(f, "longer than {GOB_SIZE_MAX} bytes"),
            GobErrorReason::NoValue => f.write_str("the file ends before the instances"),
            GobErrorReason::Truncated => f.write_str("a value is cut off"),
            GobErrorReason::Count => f.write_str("a size or a count is beyond what follows"),
            GobErrorReason::Integer => f.write_str("an integer of more than 8 bytes"),
            GobErrorReason::Text => f.write_str("text that is not UTF-8"),
            GobErrorReason::Redefinition => f.write_str("a type is defined again"),
            GobErrorReason::Definition => f.write_str("the definition of a type makes no sense"),
            GobErrorReason::TypesCount => write!(f, "more than {GOB_TYPES_COUNT_MAX} types"),
            GobErrorReason::FieldsCount => {
                write!(f, "a struct of more than {GOB_FIELDS_COUNT_MAX} fields")
            }
            GobErrorReason::UnknownType => f.write_str("a value of a type that is not defined"),
            GobErrorReason::UnknownField => f.write_str("a field that its struct does not have"),
            GobErrorReason::Interface => f.write_str("a value whose type is left open"),
            GobErrorReason::Depth => {
                write!(
                    f,
                    "values stand more than {GOB_DEPTH_MAX} deep in one another"
                )
            }
            GobErrorReason::NoInstances => f.write_str("this is no map of instances"),
            GobErrorReason::FieldType { field, expected } => {
                write!(f, "the field {field} is not of type {expected}")
            }
            GobErrorReason::InstancesCount => {
                write!(f, "more than {GOB_INSTANCES_COUNT_MAX} instances")
            }
            GobErrorReason::TagsCount => write!(f, "more than {GOB_TAGS_COUNT_MAX} tags"),
            GobErrorReason::Duplicate => f.write_str("an instance or a tag is there twice"),
            GobErrorReason::Id => f.write_str("an instance has the id of another one"),
            GobErrorReason::Excess => f.write_str("a message is longer than what it says"),
        }?;
        write!(f, ", at byte {}", self.offset)
    }
}

impl std::error::Error for GobError {}
