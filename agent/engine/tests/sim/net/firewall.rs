//! A host's own stateful firewall: what was not asked for does not come in.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

/// How long a contact lets answers in (Linux's `nf_conntrack_udp_timeout_stream`).
const CONTACT_TIMEOUT: Duration = Duration::from_secs(120);

/// The contacts of each of a host's UDP ports.
#[derive(Debug, Default)]
pub(crate) struct Firewall {
    contacts: BTreeMap<(u16, SocketAddr), Duration>,
}

impl Firewall {
    /// Notes a datagram that the host sends.
    pub(crate) fn note_outbound(&mut self, port: u16, remote: SocketAddr, now: Duration) {
        self.contacts.insert((port, remote), now);
    }

    /// Decides whether a datagram may come in.
    pub(crate) fn admits(&mut self, port: u16, remote: SocketAddr, now: Duration) -> bool {
        match self.contacts.get_mut(&(port, remote)) {
            Some(last) if now.saturating_sub(*last) < CONTACT_TIMEOUT => {
                *last = now;
                true
            }
            Some(_) | None => false,
        }
    }
}
