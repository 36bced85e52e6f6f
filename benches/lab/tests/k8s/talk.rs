//! Pods that talk to each other.

use anyhow::{Context as _, ensure};
use mesh_lab::kubernetes::pods::POD_PORT;
use mesh_lab::kubernetes::{Cluster, RunningPod, Stream};
use mesh_lab::mesh::wait_until;

use crate::rig::{PATIENCE, Rig};

impl Rig {
    /// Lets a pod ask another one.
    pub(crate) fn asks(&self, from: &RunningPod, to: &RunningPod) -> anyhow::Result<()> {
        let server = format!("{}:{POD_PORT}", to.address);
        let answer = self.cluster.kubectl()?.ask(&from.name, &[server], 1)?.remove(0);
        let answer = answer.with_context(|| format!("{} gets nothing from {}", from.name, to.name))?;
        ensure!(
            answer.source == from.address && answer.server == to.name,
            "{from:?} asks {to:?}: {answer:?}"
        );
        Ok(())
    }

    /// Lets a pod ask one pod on every worker.
    pub(crate) fn sees_others(&self, from: &RunningPod) -> anyhow::Result<()> {
        for to in self.cluster.pods("web")?.values() {
            wait_until(PATIENCE, "a pod is reached", || self.asks(from, to).map(|()| true))?;
        }
        Ok(())
    }
}

/// A stream between two pods that has begun.
pub(crate) fn stream(cluster: &Cluster, from: &RunningPod, to: &RunningPod) -> anyhow::Result<Stream> {
    let stream = Stream::start(&cluster.netns(from)?, to.address)?;
    goes_on(&stream)?;
    stream.take_longest();
    Ok(stream)
}

/// Waits until a stream has got some answers.
pub(crate) fn goes_on(stream: &Stream) -> anyhow::Result<()> {
    let before = stream.count();
    wait_until(PATIENCE, "the stream goes on", || Ok(stream.count() > before + 5))
}
