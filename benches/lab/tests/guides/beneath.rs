//! Flannel over the mesh: its own manifest, with the change that the guide makes to it.
//!
//! The guide fetches the manifest; here it lies where that would have put it. Of flannel's CNI plugin see
//! [`mesh_lab::kubernetes::flannel`].

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_lab::Netns;
use mesh_lab::kubernetes::{Binaries, flannel};

use crate::checks::{self, PATIENCE};
use crate::daemon_set::all_is_well;
use crate::kubeadm::{LAST_STEP, import, spare_the_table, start};
use crate::rig::{MACHINES, Rig, guide};
use crate::unit;

/// The guide's step that fetches the manifest.
const FETCHES: &str = "curl ";
/// The package `kubernetes-cni`, on which that of kubelet depends: here the plugins are Debian's.
const KUBERNETES_CNI: &str = "mkdir -p /opt/cni/bin && cp /usr/lib/cni/* /opt/cni/bin/";
/// What a VXLAN takes of each packet.
const OVERHEAD: usize = 50;
/// The headers of IPv4 and of an echo request.
const ECHO_HEADERS: usize = 28;
/// A pod's, as its own network tells it.
const MTU: &str = "ip -o link show eth0 | sed 's/.* mtu \\([0-9]*\\).*/\\1/'";
const PORT: u16 = 5301;
/// Ten megabytes.
const FILE: usize = 10 << 20;

#[test]
fn flannel_over_the_mesh() {
    let binaries = Binaries::find().unwrap();
    let guide = guide().unwrap();
    let mut rig = start("flannel", &binaries);
    let images = flannel::images(&rig.lab.directory().join("flannel"), &binaries).unwrap();
    import(&rig, &images);
    for step in guide.section("kubeadm, on the hosts").unwrap() {
        if step.before.contains(LAST_STEP) {
            break;
        }
        rig.follow(step, None).unwrap();
        if step.text.contains("kubeadm init") {
            spare_the_table(&rig);
        }
    }
    rig.each(|name| rig.machine(name).shell(KUBERNETES_CNI)).unwrap();
    for step in guide.section("Flannel").unwrap() {
        if step.text.starts_with(FETCHES) {
            rig.put_home(&binaries.path(flannel::MANIFEST), flannel::MANIFEST).unwrap();
        } else {
            rig.follow(step, None).unwrap();
        }
    }
    all_is_well(&rig);
    for name in MACHINES {
        let own = checks::mesh_address(&rig, name).unwrap();
        let known = checks::annotation(&rig, name, "flannel.alpha.coreos.com/public-ip").unwrap();
        assert_eq!(known, own, "where flannel looks for {name}");
    }
    large_packets_pass(&rig, [MACHINES[1], MACHINES[2]]).unwrap();
    rig.said("large packets pass, and those that are too large are refused where they are sent");
    unit::streams_survive_a_restart(&rig, MACHINES[1], MACHINES[2]).unwrap();
    rig.said("a stream between pods has survived restarts of the agent beneath");
}

/// Between pods of two nodes the MTU is what the VXLAN leaves of the mesh's, and all of it passes, both ways.
fn large_packets_pass(rig: &Rig, names: [&str; 2]) -> anyhow::Result<()> {
    let pods = checks::pods(rig)?;
    let end = |name: &str| -> anyhow::Result<(Netns, IpAddr)> {
        Ok((unit::netns(rig, name)?, pods[name].address()?))
    };
    let ends = [end(names[0])?, end(names[1])?];
    for (from, to) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
        let inner: usize = inside(&from.0, MTU)?.trim().parse()?;
        let outer: usize = rig.machine(names[0]).shell("cat /sys/class/net/mesh0/mtu")?.parse()?;
        ensure!(inner + OVERHEAD == outer, "the MTU is {inner}, over a mesh with {outer}");
        let echo = |length: usize| {
            let size = length - ECHO_HEADERS;
            inside(&from.0, &format!("ping -n -M do -c 3 -i 0.2 -W 3 -s {size} {} 2>&1", to.1))
        };
        echo(inner).with_context(|| format!("echoes of {inner} bytes"))?;
        ensure!(echo(inner + 1).is_err(), "an echo of {} bytes is not refused", inner + 1);
        let took = download(from, to).context("10 MB")?;
        println!("10 MB between pods through flannel over the mesh: {took:.1?}");
    }
    Ok(())
}

/// Ten megabytes over TCP; returns how long they took.
fn download(from: &(Netns, IpAddr), to: &(Netns, IpAddr)) -> anyhow::Result<Duration> {
    let server = to.0.enter(|| TcpListener::bind((to.1, PORT)))??;
    let sent = std::thread::spawn(move || {
        server.accept().and_then(|(mut stream, _)| stream.write_all(&vec![0x5a; FILE]))
    });
    let started = Instant::now();
    let mut stream = from.0.enter(|| TcpStream::connect_timeout(&(to.1, PORT).into(), PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = Vec::with_capacity(FILE);
    stream.read_to_end(&mut answer)?;
    sent.join().expect("a server's thread does not panic")?;
    ensure!(answer.len() == FILE, "{} bytes of {FILE}", answer.len());
    Ok(started.elapsed())
}

/// Runs a line of shell with a pod's network, and returns what it prints.
fn inside(netns: &Netns, line: &str) -> anyhow::Result<String> {
    let output = netns.enter(|| Command::new("sh").args(["-ec", line]).output())??;
    let said = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{line}: {said}");
    Ok(said)
}
