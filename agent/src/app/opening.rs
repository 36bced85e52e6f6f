//! TUN, sockets and record: those of the process before this one where they fit, else new ones.
//!
//! What was opened for other settings (interface, port, offloads, number of engines) or for another identity does not
//! fit. It is closed, here and at the service manager, before a new one is opened: a name or port is free only then.

use std::{
    collections::BTreeSet,
    num::NonZeroU32,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use mesh_proto::{control::InstanceId, key::NodeKey};

use super::Memory;
use crate::{
    config::RunConfig,
    driver::Reading,
    io::{
        tun::{self, Device},
        udp::UdpSockets,
    },
    keep::{Asked, Companion, Inherited, Keeper, Record, RecordFile},
};

/// Names at the service manager: of the queues of the TUN and the sockets, with their number behind.
const TUN: &str = "mesh-tun-";
const UDP4: &str = "mesh-udp4-";
const UDP6: &str = "mesh-udp6-";
/// And of the record.
const RECORD: &str = "mesh-record";

/// How long a name or port may still be taken after its descriptors were closed: whoever was starting a process in that
/// moment has copies of them until the process has become another program.
const LINGERS: Duration = Duration::from_millis(500);
/// Between two attempts.
const POLL: Duration = Duration::from_millis(10);

/// What an agent runs on.
pub(super) struct Opened {
    pub(super) tun: Vec<Device>,
    pub(super) udp: Vec<UdpSockets>,
    pub(super) reading: Reading,
    pub(super) memory: Memory,
    /// With whom the process before this one had sessions.
    pub(super) companions: Vec<Companion>,
    pub(super) instance: InstanceId,
}

/// Takes over what fits, and opens the rest.
///
/// # Errors
/// When the system does not give what is missing; they say what to do.
pub(super) fn open(
    config: &RunConfig,
    node_key: NodeKey,
    keeper: &Keeper,
    mut inherited: Inherited,
) -> anyhow::Result<Opened> {
    let asked = Asked {
        interface: config.interface.clone(),
        listen_port: config.listen_port,
        shards: config.shards,
        offloads: config.offloads,
    };
    let mut stale: BTreeSet<String> = inherited.names().map(str::to_owned).collect();
    let former = inherited.take(RECORD).and_then(RecordFile::adopt);
    let former = former.filter(|(_, record)| record.node_key == node_key);
    let (tun, udp) = match &former {
        Some((_, record)) => adopt(&mut inherited, &asked, &record.asked),
        None => (None, None),
    };
    let fits = |name: &str| match name {
        RECORD => former.is_some(),
        name if name.starts_with(TUN) => tun.is_some(),
        name if name.starts_with(UDP4) || name.starts_with(UDP6) => udp.is_some(),
        _ => false,
    };
    stale.retain(|name| !fits(name));
    drop(inherited);
    if !stale.is_empty() {
        tracing::info!(count = stale.len(), "what was kept does not fit any more and is opened anew");
        keeper.forget(stale.iter().map(String::as_str));
        keeper.wait();
    }
    let patience = if stale.is_empty() { Duration::ZERO } else { LINGERS };
    let reading = if tun.is_some() || udp.is_some() { Reading::WithPeers } else { Reading::AtOnce };
    if tun.is_some() && udp.is_some() {
        tracing::info!("interface and sockets were kept: going on with them");
    }
    let udp = match udp {
        Some(udp) => udp,
        None => patiently(patience, || bind(&asked, keeper))?,
    };
    let tun = match tun {
        Some(tun) => tun,
        None => {
            let open = || tun::open_queues(&asked.interface, asked.offloads, asked.shards);
            let queues = patiently(patience, open)?;
            keep_each(keeper, &queues);
            queues
        }
    };
    let (file, companions, instance) = match former {
        Some((file, record)) => (Some(file), record.companions, record.instance),
        None => (new_record(keeper), Vec::new(), new_instance()?),
    };
    let record = Record { node_key, instance, asked, companions: companions.clone() };
    let mut memory = Memory::new(file, record);
    memory.write();
    Ok(Opened { tun, udp, reading, memory, companions, instance })
}

/// Has the queues of a TUN that was made again kept in place of the older ones.
pub(super) fn keep_tun(keeper: &Keeper, queues: &[Device], shards: NonZeroU32) {
    let names: Vec<String> = (0..shards.get()).map(|number| format!("{TUN}{number}")).collect();
    keeper.forget(names.iter().map(String::as_str));
    keep_each(keeper, queues);
}

/// Has the service manager close everything, and waits until it has.
pub(super) fn forget_all(keeper: &Keeper, shards: NonZeroU32) {
    let of_each = |number: u32| [TUN, UDP4, UDP6].map(|kind| format!("{kind}{number}"));
    let names: Vec<String> =
        (0..shards.get()).flat_map(of_each).chain(std::iter::once(RECORD.to_owned())).collect();
    keeper.forget(names.iter().map(String::as_str));
    keeper.wait();
}

/// Takes over what was asked for as it is now.
fn adopt(
    inherited: &mut Inherited,
    asked: &Asked,
    former: &Asked,
) -> (Option<Vec<Device>>, Option<Vec<UdpSockets>>) {
    let is_shared_alike = |asked: &Asked| (asked.shards, asked.offloads.steering);
    let tun_of = |asked: &Asked| (is_shared_alike(asked), asked.interface.clone(), asked.offloads.tun);
    let udp_of = |asked: &Asked| (is_shared_alike(asked), asked.listen_port);
    let tun = (tun_of(asked) == tun_of(former)).then(|| adopt_tun(inherited, asked)).flatten();
    let udp = (udp_of(asked) == udp_of(former)).then(|| adopt_udp(inherited, asked)).flatten();
    (tun, udp)
}

fn adopt_tun(inherited: &mut Inherited, asked: &Asked) -> Option<Vec<Device>> {
    let queues: Vec<_> =
        (0..asked.shards.get()).map_while(|number| inherited.take(&format!("{TUN}{number}"))).collect();
    // There are as many as engines, or one if the system has no more.
    let is_whole = queues.len() == 1 || queues.len() == asked.shards.get() as usize;
    is_whole.then(|| tun::adopt_queues(&asked.interface, queues)).flatten()
}

fn adopt_udp(inherited: &mut Inherited, asked: &Asked) -> Option<Vec<UdpSockets>> {
    let adopt = |number| {
        let (v4, v6) =
            (inherited.take(&format!("{UDP4}{number}")), inherited.take(&format!("{UDP6}{number}")));
        UdpSockets::adopt(v4, v6, asked.offloads).ok()
    };
    let group: Vec<UdpSockets> = (0..asked.shards.get()).map(adopt).collect::<Option<_>>()?;
    let port = group.first()?.port;
    let is_one_group = group.iter().all(|sockets| sockets.port == port);
    let is_right = asked.listen_port == 0 || asked.listen_port == port;
    (is_one_group && is_right).then_some(group)
}

fn bind(asked: &Asked, keeper: &Keeper) -> anyhow::Result<Vec<UdpSockets>> {
    let group = UdpSockets::bind_group(asked.listen_port, asked.offloads, asked.shards)?;
    for (number, sockets) in group.iter().enumerate() {
        for (socket, kind) in [(&sockets.v4, UDP4), (&sockets.v6, UDP6)] {
            if let Some(socket) = socket {
                keeper.keep(&format!("{kind}{number}"), socket);
            }
        }
    }
    Ok(group)
}

/// Tries again for so long.
fn patiently<T, E>(patience: Duration, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let until = Instant::now() + patience;
    loop {
        match attempt() {
            Err(_) if Instant::now() < until => thread::sleep(POLL),
            done => return done,
        }
    }
}

fn keep_each(keeper: &Keeper, queues: &[Device]) {
    for (number, queue) in queues.iter().enumerate() {
        keeper.keep(&format!("{TUN}{number}"), queue);
    }
}

fn new_instance() -> anyhow::Result<InstanceId> {
    let mut instance = [0; 16];
    getrandom::fill(&mut instance).context("the system has no random numbers")?;
    Ok(InstanceId(instance))
}

fn new_record(keeper: &Keeper) -> Option<RecordFile> {
    if !keeper.is_used() {
        return None;
    }
    match RecordFile::create() {
        Ok(file) => {
            keeper.keep(RECORD, &file);
            Some(file)
        }
        Err(error) => {
            tracing::warn!(%error, "the next process will not know what was kept");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_just_closed_is_waited_for() {
        let attempts = |patience| {
            let mut left = 3;
            patiently(patience, || {
                left -= 1;
                anyhow::ensure!(left == 0, "{left} are still there");
                Ok(())
            })
        };
        assert!(attempts(LINGERS).is_ok());
        assert_eq!(attempts(Duration::ZERO).unwrap_err().to_string(), "2 are still there");
    }
}
