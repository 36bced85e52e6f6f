//! What paths carry: the neighbours' LAN, the relay, and a file.

use mesh_proto::status::PathKind;

use super::stage::{Stage, millis};
use crate::traffic::transfer;
use crate::village::Village;

/// The size of the file, in bytes.
const FILE: u64 = 50_000_000;

/// `home-a` and `home-b` talk over their LAN, and nothing of it leaves their home.
pub(super) fn show_neighbours(stage: &mut Stage, village: &Village) -> anyhow::Result<()> {
    for (from, to) in [("home-a", "home-b"), ("home-b", "home-a")] {
        let peer = village.node(from)?.peer(to)?;
        let lan = village.network().host(to)?.address();
        let used = peer.path.address.map(|address| address.to_string()).unwrap_or_default();
        stage.promise(
            peer.path.address.is_some_and(|address| address.ip() == lan),
            &format!("{from} reaches {to} on their LAN, by {used}"),
        );
    }
    Ok(())
}

/// `office`, whose NAT takes another port for each destination, gets through to those whose NATs filter by port.
pub(super) fn show_punched(stage: &mut Stage, village: &Village) -> anyhow::Result<()> {
    let (node, to) = (village.node("office")?, "country");
    let peer = node.peer(to)?;
    let used = peer.path.address.map(|address| address.to_string()).unwrap_or_default();
    stage.promise(
        peer.path.kind == PathKind::Direct,
        &format!("office reaches {to} straight through two NATs that filter by port, by {used}"),
    );
    let why = node.meshctl(["why", to])?.success()?;
    stage.say(&format!("office $ meshctl why {to}"));
    stage.show(&why.stdout);
    stage.promise(!peer.path.reason.is_empty(), &format!("it says why: {}", peer.path.reason));
    Ok(())
}

/// A file goes over TCP through the mesh, from one NAT to another.
pub(super) fn send_file(stage: &mut Stage, village: &Village) -> anyhow::Result<()> {
    let (from, to) = (village.node("macbook")?, village.node("country")?);
    let path = from.peer("country")?.path;
    let underlay = village.network().round_trip("macbook", "country", None)?;
    let sent = transfer(from.host(), (to.host(), to.address()?), FILE)?;
    stage.say(&format!(
        "{} MB of TCP over the {} path, {} away, in {:.1} s: {:.0} Mbit/s",
        sent.bytes / 1_000_000,
        if path.kind == PathKind::Direct { "direct" } else { "relayed" },
        millis(underlay),
        sent.duration.as_secs_f64(),
        sent.mbit_per_second()
    ));
    stage.promise(
        sent.bytes == FILE && sent.sent == sent.received,
        &format!("it arrived whole: SHA-256 {}…", &sent.received.chars().take(16).collect::<String>()),
    );
    Ok(())
}
