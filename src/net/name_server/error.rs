//! What can go wrong with a lookup, in words for the operator.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::wire::dns::{NameSyntaxError, Rcode};

/// Why a name has no addresses for us.
#[derive(Debug)]
pub enum NameError {
    /// The text is no name.
    Syntax {
        /// The text.
        name: String,
        /// What is wrong with it.
        error: NameSyntaxError,
    },
    /// A name server says that there is no such name.
    NotFound {
        /// The name asked for.
        name: String,
        /// Who says so.
        server: SocketAddr,
    },
    /// A name server says that the name has neither IPv4 nor IPv6 addresses.
    NoAddress {
        /// The name asked for.
        name: String,
        /// Who says so.
        server: SocketAddr,
    },
    /// No name server gave an answer.
    Unanswered {
        /// The name asked for.
        name: String,
        /// The servers, and what became of the last attempt with each.
        servers: Vec<(SocketAddr, ServerFault)>,
        /// The time there was.
        within: Duration,
    },
}

/// What became of an attempt with one server.
#[derive(Debug)]
pub enum ServerFault {
    /// It did not answer in time, or there was no time to ask it.
    Silent,
    /// It answered with this code.
    Refused(Rcode),
    /// It answered that others should be asked.
    Referral,
    /// What it sent could not be read, or answered something else.
    Unusable,
    /// The system refused a socket or the way to it, or its host refused the question.
    Unreachable(io::Error),
}

impl NameError {
    /// Returns whether the same question may be answered at another time.
    pub fn retry_helps(&self) -> bool {
        matches!(self, Self::Unanswered { .. })
    }
}

impl From<io::Error> for ServerFault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Silent,
            _ => Self::Unreachable(error),
        }
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { name, error } => {
                // It may hold anything, line ends too.
                write!(f, "'{}' is not a name: {error}", name.escape_debug())
            }
            Self::NotFound { name, server } => {
                write!(f, "name '{name}' not found (asked {server})")
            }
            Self::NoAddress { name, server } => {
                write!(f, "name '{name}' has no address (asked {server})")
            }
            Self::Unanswered { name, servers, .. } if servers.is_empty() => {
                write!(f, "no answer for '{name}': there is no name server to ask")
            }
            Self::Unanswered {
                name,
                servers,
                within,
            } => {
                write!(f, "no answer for '{name}' from ")?;
                let mut separator = "";
                for (server, fault) in servers {
                    write!(f, "{separator}{server}")?;
                    if !matches!(fault, ServerFault::Silent) {
                        write!(f, " ({fault})")?;
                    }
                    separator = ", ";
                }
                // In whole milliseconds: the microseconds since the caller chose it mean nothing.
                let rounded = u64::try_from((within.as_micros() + 500) / 1000).unwrap_or(u64::MAX);
                write!(f, " within {:?}", Duration::from_millis(rounded))
            }
        }
    }
}

impl fmt::Display for ServerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("silent"),
            Self::Refused(rcode) => write!(f, "answers {rcode}"),
            Self::Referral => f.write_str("does not resolve names for us"),
            Self::Unusable => f.write_str("its answer is unusable"),
            Self::Unreachable(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for NameError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Syntax { error, .. } => Some(error),
            Self::NotFound { .. } | Self::NoAddress { .. } | Self::Unanswered { .. } => None,
        }
    }
}
