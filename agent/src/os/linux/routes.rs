//! Routes into the own interface.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType},
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{super::Change, system_error};

/// The number that marks routes as this agent's (`proto 109` in `ip route`). Not in iproute2's rt_protos, and not used
/// by the routing daemons that write to it.
pub const ROUTE_PROTOCOL: u8 = 109;

/// The metric of those routes. Larger than what connected networks (0, 256) and DHCP clients (100 to 1024) use, so
/// that a network which the host is connected to always wins against the same prefix in the mesh.
pub const ROUTE_METRIC: u32 = 5_190;

/// Leads exactly these prefixes into an interface; routes of others stay as they are.
pub(super) async fn set(handle: &Handle, index: u32, wanted: &BTreeSet<IpNet>) -> anyhow::Result<Change> {
    let mut change = Change::default();
    let present = own_routes(handle, index).await?;
    for (prefix, message) in &present {
        if wanted.contains(prefix) {
            continue;
        }
        match handle.route().del(message.clone()).execute().await.map_err(system_error) {
            Ok(()) => change.removed += 1,
            // Gone by itself, as routes go with their address or link.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for prefix in wanted.iter().filter(|prefix| !present.contains_key(prefix)) {
        let message = RouteMessageBuilder::<std::net::IpAddr>::new()
            .destination_prefix(prefix.network(), prefix.prefix_len())?
            .output_interface(index)
            .priority(ROUTE_METRIC)
            .protocol(RouteProtocol::from(ROUTE_PROTOCOL))
            .build();
        match handle.route().add(message).execute().await.map_err(system_error) {
            Ok(()) => change.added += 1,
            Err(error) => change.refused.push((*prefix, error.to_string())),
        }
    }
    Ok(change)
}

async fn own_routes(handle: &Handle, index: u32) -> anyhow::Result<BTreeMap<IpNet, RouteMessage>> {
    let mut routes = BTreeMap::new();
    for message in dump(handle).await? {
        let own = message.header.protocol == RouteProtocol::from(ROUTE_PROTOCOL);
        if own && output_interface(&message) == Some(index) {
            routes.extend(destination(&message).map(|prefix| (prefix, message)));
        }
    }
    Ok(routes)
}

/// Lists the unicast routes of the main table, of both families.
pub(super) async fn dump(handle: &Handle) -> anyhow::Result<Vec<RouteMessage>> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let mut routes = handle.route().get(question).execute();
        while let Some(message) = routes.try_next().await? {
            let header = &message.header;
            if header.table == RouteHeader::RT_TABLE_MAIN && header.kind == RouteType::Unicast {
                all.push(message);
            }
        }
    }
    Ok(all)
}

/// Returns the index of the interface that a route leads to.
pub(super) fn output_interface(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// Returns the prefix that a route is for; a default route has none.
fn destination(message: &RouteMessage) -> Option<IpNet> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some((*v4).into()),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    })?;
    IpNet::new(address, message.header.destination_prefix_length).ok()
}
