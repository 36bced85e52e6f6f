//! The ledger of inner packets: what was sent, and what came out where.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// The longest time that a packet may take: 5 s in a queue, and the rest on the way.
const MAX_AGE: Duration = Duration::from_secs(6);

/// A packet that was given to an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) from: usize,
    pub(crate) to: Receiver,
    pub(crate) at: Duration,
    pub(crate) role: Role,
}

/// Who may get a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receiver {
    /// This node.
    Node(usize),
    /// Whichever node owns its destination when it arrives.
    Owner,
    /// None.
    Nobody,
}

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The receiver answers it.
    Ping,
    /// The receiver answers nothing.
    OneWay,
    /// Answers the ping of this number.
    Answer(u64),
}

/// Every packet by its number.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    outstanding: BTreeMap<u64, Sent>,
    answered: BTreeSet<u64>,
    /// Packets that were refused for their size, with the MTU that was told.
    refused: BTreeMap<u64, u16>,
    next: u64,
    delivered: u64,
}

impl Ledger {
    /// Enters a packet and returns its number.
    pub(crate) fn enter(&mut self, sent: Sent) -> u64 {
        self.next += 1;
        self.outstanding.insert(self.next, sent);
        self.next
    }

    /// Notes that a packet came out at a node.
    ///
    /// # Errors
    /// When it should not have: a wrong node, for the second time, or too late.
    pub(crate) fn deliver(&mut self, number: u64, at: usize, now: Duration) -> Result<Sent, String> {
        let Some(sent) = self.outstanding.remove(&number) else {
            let what = if (1..=self.next).contains(&number) { "a second time" } else { "but was never sent" };
            return Err(format!("packet {number} came out at node {at} {what}"));
        };
        let may_get_it = match sent.to {
            Receiver::Node(to) => to == at,
            Receiver::Owner => sent.from != at,
            Receiver::Nobody => false,
        };
        if !may_get_it {
            return Err(format!("packet {number}, {sent:?}, came out at node {at}"));
        }
        if now - sent.at > MAX_AGE {
            return Err(format!("packet {number}, {sent:?}, came out at {now:?} only"));
        }
        if let Role::Answer(ping) = sent.role {
            self.answered.insert(ping);
        }
        self.delivered += 1;
        Ok(sent)
    }

    /// A node slept: what it was given before is as old as it was then.
    pub(crate) fn sleep(&mut self, node: usize, now: Duration) {
        self.outstanding.values_mut().filter(|sent| sent.from == node).for_each(|sent| sent.at = now);
    }

    /// Notes that a packet was refused for its size.
    pub(crate) fn refuse(&mut self, number: u64, mtu: u16) {
        self.refused.insert(number, mtu);
    }

    /// Returns the MTU that a packet was refused with.
    pub(crate) fn refused(&self, number: u64) -> Option<u16> {
        self.refused.get(&number).copied()
    }

    /// Whether a packet has not come out (yet).
    pub(crate) fn is_outstanding(&self, number: u64) -> bool {
        self.outstanding.contains_key(&number)
    }

    /// Whether the answer to a ping has come back.
    pub(crate) fn is_answered(&self, ping: u64) -> bool {
        self.answered.contains(&ping)
    }

    /// Returns how many packets were sent and how many came out.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.next, self.delivered)
    }
}

#[test]
fn a_packet_comes_out_once_in_time_and_at_its_receiver() {
    let mut ledger = Ledger::default();
    let sent = |to| Sent { from: 0, to, at: Duration::from_secs(1), role: Role::OneWay };
    let now = Duration::from_secs(2);
    let [right, wrong, late] = [0; 3].map(|_| ledger.enter(sent(Receiver::Node(1))));
    assert!(ledger.is_outstanding(right));
    assert_eq!(ledger.deliver(right, 1, now), Ok(sent(Receiver::Node(1))));
    assert!(!ledger.is_outstanding(right));
    assert!(ledger.deliver(right, 1, now).is_err());
    assert!(ledger.deliver(wrong, 2, now).is_err());
    assert!(ledger.deliver(late, 1, now + MAX_AGE).is_err());
    assert!(ledger.deliver(99, 1, now).is_err());
    let [nobody, owner, own] =
        [Receiver::Nobody, Receiver::Owner, Receiver::Owner].map(|to| ledger.enter(sent(to)));
    assert!(ledger.deliver(nobody, 1, now).is_err());
    assert!(ledger.deliver(owner, 5, now).is_ok());
    assert!(ledger.deliver(own, 0, now).is_err());
    assert_eq!(ledger.totals(), (6, 2));
}
