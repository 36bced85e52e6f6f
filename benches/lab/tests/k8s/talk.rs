//! Pods that talk to each other, by each address that they have.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesh_lab::kubernetes::pods::POD_PORT;
use mesh_lab::kubernetes::{Cluster, RunningPod, Stream};
use mesh_lab::mesh::wait_until;

use crate::rig::{PATIENCE, Rig};

/// Streams between two pods, one of each family that both have.
pub(crate) struct Talk(Vec<Stream>);

impl Rig {
    /// Lets a pod ask another one.
    pub(crate) fn asks(&self, from: &RunningPod, to: &RunningPod) -> anyhow::Result<()> {
        asks(&self.cluster, from, to)
    }

    /// Lets a pod ask one pod on every worker.
    pub(crate) fn sees_others(&self, from: &RunningPod) -> anyhow::Result<()> {
        for to in self.cluster.pods("web")?.values() {
            wait_until(PATIENCE, "a pod is reached", || self.asks(from, to).map(|()| true))?;
        }
        Ok(())
    }
}

impl Talk {
    /// The longest time in which one of them was silent, since this was asked last.
    pub(crate) fn take_longest(&self) -> Duration {
        self.0.iter().map(Stream::take_longest).max().unwrap_or_default()
    }

    /// Ends all of them: none may have broken.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        self.0.into_iter().try_for_each(Stream::finish)
    }
}

/// Lets a pod ask another one, by each family that both have.
pub(crate) fn asks(cluster: &Cluster, from: &RunningPod, to: &RunningPod) -> anyhow::Result<()> {
    let pairs: Vec<_> =
        to.addresses.iter().filter_map(|to| Some((from.address_like(*to).ok()?, *to))).collect();
    ensure!(!pairs.is_empty(), "{from:?} and {to:?} have no family in common");
    let servers: Vec<_> = pairs.iter().map(|(_, to)| SocketAddr::new(*to, POD_PORT).to_string()).collect();
    for ((own, address), answer) in pairs.iter().zip(cluster.kubectl()?.ask(&from.name, &servers, 1)?) {
        let answer =
            answer.with_context(|| format!("{} gets nothing from {} at {address}", from.name, to.name))?;
        ensure!(answer.source == *own && answer.server == to.name, "{from:?} asks {to:?}: {answer:?}");
    }
    Ok(())
}

/// Two pods that have begun to talk.
pub(crate) fn stream(cluster: &Cluster, from: &RunningPod, to: &RunningPod) -> anyhow::Result<Talk> {
    let netns = cluster.netns(from)?;
    let common = to.addresses.iter().filter(|to| from.address_like(**to).is_ok());
    let talk = Talk(common.map(|to| Stream::start(&netns, *to)).collect::<anyhow::Result<_>>()?);
    ensure!(!talk.0.is_empty(), "{from:?} and {to:?} have no family in common");
    goes_on(&talk)?;
    talk.take_longest();
    Ok(talk)
}

/// Waits until each stream has got some answers.
pub(crate) fn goes_on(talk: &Talk) -> anyhow::Result<()> {
    for stream in &talk.0 {
        let before = stream.count();
        wait_until(PATIENCE, "the stream goes on", || Ok(stream.count() > before + 5))?;
    }
    Ok(())
}
