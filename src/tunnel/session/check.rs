//! The certificate check of v1: each end tells the other one what it takes for the fingerprint of the
//! server's certificate, and compares.
//!
//! Source: wire protocol, section 6.

use std::sync::Arc;

use super::{Dialect, Order, Session, SessionEnd};
use crate::pool::PoolConnection;
use crate::runtime::threads::lock;
use crate::wire::fingerprint::{Fingerprint, FingerprintClaim};
use crate::wire::offer::TlsMode;
use crate::wire::signal::{PoolId, Side, Signal};

/// The pool connection that this end has taken for its own certificate check.
#[derive(Default)]
pub(super) struct OwnCheck {
    pub(super) taken: Option<(PoolId, PoolConnection)>,
    is_sent: bool,
}

impl Session {
    /// Returns whether this session waits for the peer's certificate check.
    pub(super) fn awaits_check(&self) -> bool {
        self.terms.dialect == Dialect::V1 && self.terms.offer.tls == TlsMode::SelfSigned
    }

    /// Sends this end's certificate check, once, as soon as there is a connection for it.
    pub(super) fn send_check(self: &Arc<Self>) {
        if !self.awaits_check() {
            return;
        }
        let mut check = lock(&self.check);
        if check.is_sent {
            return;
        }
        let Some((id, connection)) = self.pool.take_next() else {
            return;
        };
        check.is_sent = true;
        let known = self.known_fingerprint(connection.fingerprint);
        check.taken = Some((id, connection));
        drop(check);
        let fp = known.map(FingerprintClaim::from).unwrap_or_default();
        // A channel that cannot be told ends the session anyway.
        let _ = self.send(&Signal::Verify { id, fp });
    }

    /// Returns the fingerprint that this end knows: its own, or the one that it was `shown`.
    fn known_fingerprint(&self, shown: Option<Fingerprint>) -> Option<Fingerprint> {
        match self.terms.side {
            Side::Server => self.terms.fingerprint,
            Side::Client => shown,
        }
    }

    /// Answers the peer's certificate check.
    pub(super) fn verify(self: &Arc<Self>, id: PoolId, claim: FingerprintClaim) {
        let of_own_check = match &lock(&self.check).taken {
            Some((own_id, connection)) if *own_id == id => Some(connection.fingerprint),
            _ => None,
        };
        match of_own_check {
            Some(shown) => self.compare(shown, claim),
            None => self.take_order(id, Order::Verify(claim)),
        }
    }

    pub(super) fn compare(&self, shown: Option<Fingerprint>, claimed: FingerprintClaim) {
        let known = self.known_fingerprint(shown);
        // With certificate files the chain has been verified, and there v1 programs claim nothing.
        let may_be_empty = self.terms.offer.tls != TlsMode::SelfSigned;
        let is_same = match known {
            _ if claimed.is_empty() => may_be_empty,
            Some(known) => claimed.is(&known),
            None => false,
        };
        if is_same {
            self.open();
        } else {
            self.end(SessionEnd::Certificate { known, claimed });
        }
    }
}
