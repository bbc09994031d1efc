//! What is wrong with a configuration, in words an operator can act on.
//!
//! Every error here is the operator's to mend: a retry without a change never helps. No error
//! holds a tunnel key, or any text of which a key could be a part.

use std::fmt;

use super::address::{Address, AddressError};
use crate::limits::URL_SIZE_MAX;

/// Why a URL or an environment variable cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The URL is longer than [`URL_SIZE_MAX`].
    UrlTooLong {
        /// Its length (bytes).
        size: usize,
    },
    /// The URL does not begin with a known core.
    Scheme {
        /// The core that was likely meant.
        nearest: Option<&'static str>,
    },
    /// The URL is malformed; nothing of it is shown, since it may be a key.
    Url(&'static str),
    /// The URL has more of something than is accepted.
    TooMany {
        /// What, in the plural.
        what: &'static str,
        /// How many are accepted.
        count_max: usize,
    },
    /// An address of the URL cannot be read or used.
    Address {
        /// Which one: tunnel, target or API.
        role: &'static str,
        /// The text of it, escaped and cut.
        text: String,
        /// What is wrong with it.
        reason: AddressError,
    },
    /// The path of a `master` URL is no prefix for an API.
    ApiPrefix {
        /// The path, escaped and cut.
        text: String,
    },
    /// The program would feed itself: it would dial the address it listens at.
    SelfFeeding {
        /// The tunnel address.
        tunnel: Address,
        /// The target that is the same.
        target: Address,
    },
    /// An option has a value that is not accepted.
    Option {
        /// Its name.
        option: &'static str,
        /// The value, escaped and cut.
        value: String,
        /// What is accepted.
        accepted: &'static str,
    },
    /// Options or addresses contradict each other.
    Conflict(String),
    /// An environment variable has a value that is not accepted.
    Variable {
        /// Its name, the older one where that was set.
        variable: &'static str,
        /// The value, escaped and cut.
        value: String,
        /// What is accepted.
        accepted: &'static str,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UrlTooLong { size } => {
                write!(
                    f,
                    "the URL has {size} bytes; at most {URL_SIZE_MAX} are accepted"
                )
            }
            Self::Scheme { nearest } => {
                f.write_str(
                    "the URL must begin with server://, client:// or master://, \
                     for example server://key@0.0.0.0:10101/127.0.0.1:8080",
                )?;
                nearest.map_or(Ok(()), |core| write!(f, "; did you mean {core}://?"))
            }
            Self::Url(reason) => f.write_str(reason),
            Self::TooMany { what, count_max } => {
                write!(
                    f,
                    "the URL has more than {count_max} {what}, which are not accepted"
                )
            }
            Self::Address { role, text, reason } => write!(f, "{role} address '{text}' {reason}"),
            Self::ApiPrefix { text } => write!(
                f,
                "API prefix '{text}' cannot be used; use letters, digits, '-', '.', '_', '~' \
                 between single slashes, for example /api"
            ),
            Self::SelfFeeding { tunnel, target } => write!(
                f,
                "tunnel address '{tunnel}' and target address '{target}' are the same, so the \
                 program would feed itself; change one of the ports"
            ),
            Self::Option {
                option,
                value,
                accepted,
            } => {
                write!(f, "option '{option}' has value '{value}'; use {accepted}")
            }
            Self::Conflict(reason) => f.write_str(reason),
            Self::Variable {
                variable,
                value,
                accepted,
            } => {
                write!(
                    f,
                    "environment variable {variable} has value '{value}'; use {accepted}"
                )
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// Something the operator should know although the program runs: a warning, logged once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The whole sentence, without a level.
    pub text: String,
}

impl Notice {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
