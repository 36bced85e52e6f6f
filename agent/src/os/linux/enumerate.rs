//! The host's interfaces, addresses and default routes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{LinkAttribute, LinkFlags},
    route::{RouteAddress, RouteAttribute},
};
use rtnetlink::Handle;

use super::{
    super::{DefaultRoute, HostInterface, HostNetworks},
    addresses, routes,
};

/// An address of the internet that is no host's neighbour: one of the root name servers' (a.root-servers.net).
const SOMEWHERE_V4: Ipv4Addr = Ipv4Addr::new(198, 41, 0, 4);
/// The same over IPv6.
const SOMEWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 0x2, 0x30);
/// Any but 0.
const ANY_PORT: u16 = 53;

/// Lists everything but the interface named `own`.
pub(super) async fn networks(handle: &Handle, own: &str) -> anyhow::Result<HostNetworks> {
    let mut interfaces = BTreeMap::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        let Some(name) = name.filter(|name| name != own) else { continue };
        let index = link.header.index;
        let up = link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
        interfaces.insert(index, HostInterface { index, name, up, addresses: [].into() });
    }
    let mut messages = handle.address().get().execute();
    while let Some(message) = messages.try_next().await? {
        let Some(interface) = interfaces.get_mut(&message.header.index) else { continue };
        if is_usable(&message) {
            interface.addresses.extend(addresses::address_of(&message));
        }
    }
    let default_routes = routes::dump(handle)
        .await?
        .iter()
        .filter(|message| message.header.destination_prefix_length == 0)
        .filter_map(|message| {
            let interface = routes::output_interface(message)?;
            let gateway = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some((*v4).into()),
                RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some((*v6).into()),
                _ => None,
            });
            interfaces.contains_key(&interface).then_some(DefaultRoute { interface, gateway })
        })
        .collect();
    Ok(HostNetworks { interfaces: interfaces.into_values().collect(), default_routes, sources: sources() })
}

/// Asks the system which addresses it sends from to the internet. No packet leaves: connecting a socket of UDP only asks
/// the routing table.
fn sources() -> BTreeSet<IpAddr> {
    let source = |any: IpAddr, to: IpAddr| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((to, ANY_PORT)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let v4 = source(Ipv4Addr::UNSPECIFIED.into(), SOMEWHERE_V4.into());
    let v6 = source(Ipv6Addr::UNSPECIFIED.into(), SOMEWHERE_V6.into());
    v4.into_iter().chain(v6).collect()
}

/// Whether an address may be used: its duplicate detection is done, and it has not been superseded.
fn is_usable(message: &AddressMessage) -> bool {
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    !message.attributes.iter().any(|attribute| match attribute {
        AddressAttribute::Flags(flags) => flags.intersects(unusable),
        _ => false,
    })
}
