//! Why a session is over.

use std::fmt;

use crate::tunnel::control::ControlEnd;
use crate::wire::fingerprint::{Fingerprint, FingerprintClaim};

/// Why a session is over.
#[derive(Debug)]
pub enum SessionEnd {
    /// The control channel ended.
    Control(ControlEnd),
    /// The peer said that it stops.
    PeerStops,
    /// The same client has come back.
    Replaced,
    /// The two ends do not see the same certificate.
    Certificate {
        /// What this end knows.
        known: Option<Fingerprint>,
        /// What the peer says.
        claimed: FingerprintClaim,
    },
    /// The peer never sent its certificate check.
    Unchecked,
    /// No thread, or no place in the list of sessions.
    NoRoom(String),
    /// The thread of the control channel ended by a panic.
    Panic,
}

impl SessionEnd {
    /// Returns whether visitors may still be sent what is on its way.
    pub(super) fn is_gentle(&self) -> bool {
        matches!(self, Self::PeerStops | Self::Control(ControlEnd::Closed))
    }

    /// Returns whether it is nothing that an operator should look at.
    pub(super) fn is_ordinary(&self) -> bool {
        matches!(
            self,
            Self::PeerStops | Self::Replaced | Self::Control(ControlEnd::Stopped)
        )
    }
}

impl fmt::Display for SessionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control(end) => write!(f, "{end}"),
            Self::PeerStops => f.write_str("the other side stops"),
            Self::Replaced => f.write_str("the same client has come back"),
            Self::Certificate { known, claimed } => {
                f.write_str("the two sides do not see the same certificate: here it is ")?;
                match known {
                    Some(known) => write!(f, "{known}")?,
                    None => f.write_str("none")?,
                }
                write!(f, ", there '{claimed}'; someone may be in between")
            }
            Self::Unchecked => f.write_str("the other side did not check the certificate in time"),
            Self::NoRoom(reason) => write!(f, "no thread for it: {reason}"),
            Self::Panic => f.write_str("a thread ended by a panic; please report what it said"),
        }
    }
}
