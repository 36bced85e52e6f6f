//! Addresses of the own interface.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::Handle;

use super::{super::Change, system_error};

/// Gives an interface exactly these addresses in these ranges. Beyond them they are somebody else's and stay.
pub(super) async fn set(
    handle: &Handle,
    index: u32,
    wanted: &BTreeSet<IpNet>,
    ranges: &[IpNet],
) -> anyhow::Result<Change> {
    let mut change = Change::default();
    let mut present = BTreeSet::new();
    let mut messages = handle.address().get().set_link_index_filter(index).execute();
    while let Some(message) = messages.try_next().await? {
        let Some(address) = address_of(&message) else { continue };
        if wanted.contains(&address) {
            present.insert(address);
        } else if ranges.iter().any(|range| range.contains(&address.addr())) {
            match handle.address().del(message).execute().await.map_err(system_error) {
                Ok(()) => change.removed += 1,
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    for address in wanted.difference(&present) {
        let mut request = handle.address().add(index, address.addr(), address.prefix_len()).replace();
        // A mesh address is this node's alone: nobody to ask for duplicates, and usable at once.
        if address.addr().is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        match request.execute().await.map_err(system_error) {
            Ok(()) => change.added += 1,
            Err(error) => change.refused.push((*address, error.to_string())),
        }
    }
    Ok(change)
}

/// Returns the address that a message is about, with its prefix.
pub(super) fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => found = Some(*address),
            // On a point-to-point link this is the other side's, and Local the own one.
            AddressAttribute::Address(address) => found = found.or(Some(*address)),
            _ => {}
        }
    }
    IpNet::new(found?, message.header.prefix_len).ok()
}
