//! What an operator does with pods, through the API server and kubelets.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

use anyhow::{Context as _, ensure};
use mesh_lab::kubernetes::pods::POD_PORT;
use mesh_lab::mesh::wait_until;

use crate::rig::{PATIENCE, Rig};

/// The first port of the control plane's host that leads to a pod.
const FORWARDED: u16 = 20000;

/// `logs`, `exec` and `port-forward`, on every worker.
pub(crate) fn an_operator_reaches_every_pod(rig: &Rig) -> anyhow::Result<()> {
    let kubectl = rig.cluster.kubectl()?;
    for (pod, port) in rig.cluster.pods("web")?.values().zip(FORWARDED..) {
        let logs = kubectl.run(["logs", &pod.name])?;
        ensure!(logs == "started\n", "{} logs {logs:?}", pod.name);
        let name = kubectl.run(["exec", &pod.name, "--", "hostname"])?;
        ensure!(name.trim() == pod.name, "{} is called {name:?}", pod.name);
        let ports = format!("{port}:{POD_PORT}");
        let _forward = kubectl.command().args(["port-forward", &pod.name, &ports]).spawn("port-forward")?;
        let mut answer = String::new();
        wait_until(PATIENCE, "the port leads to the pod", || {
            let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, port));
            let mut stream = kubectl.host().netns().enter(connect)??;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET /cgi-bin/who HTTP/1.0\r\n\r\n")?;
            answer.clear();
            stream.read_to_string(&mut answer)?;
            Ok(true)
        })?;
        let body = answer.trim().lines().last().with_context(|| format!("{} says nothing", pod.name))?;
        let (_, server) = body.split_once(' ').with_context(|| format!("not an answer: {answer:?}"))?;
        ensure!(server == pod.name, "{} says {answer:?}", pod.name);
    }
    Ok(())
}
