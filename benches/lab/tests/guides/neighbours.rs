//! Programs that rule over a machine's networks beside ours, in a cluster that runs: firewalld, NetworkManager and
//! systemd-networkd come, are reloaded and restarted, and nothing is lost for it.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use mesh_lab::mesh::wait_until;

use crate::checks::{self, PATIENCE};
use crate::rig::{MACHINES, Rig, guide};
use crate::unit;

/// Where the coordinator is, and firewalld.
const FIRST: &str = MACHINES[0];
/// With firewalld and NetworkManager.
const DESKTOP: &str = MACHINES[1];
/// With systemd-networkd.
const SERVER: &str = MACHINES[2];
/// How packages that are at hand are installed.
const INSTALL: &str = "DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends";
/// What the agent says where firewalld has not been told.
const SAID: &str = "firewall-cmd --permanent --zone=trusted --add-interface=mesh0 --add-interface=cni-mesh0";
/// Somebody's own settings, which must not undo ours.
const OWN_SETTINGS: &str = "[keyfile]\nunmanaged-devices=interface-name:docker0\n";
/// A network of systemd-networkd for the interface with the machine's own address, and one for all others.
const NETWORKS: &str = r#"
set -eu
address=$(ip -o -4 address show dev eth0 | awk '{print $4; exit}')
gateway=$(ip route show default | awk '{print $3; exit}')
printf '[Match]\nName=eth0\n[Network]\nAddress=%s\nGateway=%s\n' "$address" "$gateway" >/etc/systemd/network/20-eth0.network
printf '[Match]\nName=*\n[Network]\nDHCP=ipv4\n' >/etc/systemd/network/90-rest.network
systemctl enable --now systemd-networkd
"#;

/// Has them come, in the order in which each is seen alone; the cluster is as before after each.
pub(crate) fn come_and_stay(rig: &mut Rig) -> anyhow::Result<()> {
    firewalld(rig)?;
    network_manager(rig)?;
    networkd(rig)
}

fn firewalld(rig: &mut Rig) -> anyhow::Result<()> {
    for name in [FIRST, DESKTOP] {
        rig.machine(name).shell(&format!("{INSTALL} netbase firewalld"))?;
        wait_until(PATIENCE, "the agent says that firewalld is in the way", || {
            let status = rig.machine(name).shell("meshctl status")?;
            ensure!(status.contains(SAID), "{name}: {status}");
            Ok(true)
        })?;
    }
    let guide = guide()?;
    for step in guide.section("Beside firewalld, NetworkManager and systemd-networkd")? {
        rig.follow_on(step, &[FIRST, DESKTOP], None)?;
    }
    wait_until(PATIENCE, "the agents see that it has been told", || {
        for name in [FIRST, DESKTOP] {
            let status = rig.machine(name).shell("meshctl status")?;
            ensure!(!status.contains(SAID), "{name}: {status}");
        }
        Ok(true)
    })?;
    as_before(rig, "firewalld runs")?;
    let commands = ["firewall-cmd --reload", "firewall-cmd --complete-reload", "systemctl restart firewalld"];
    goes_on(rig, DESKTOP, &commands)
}

fn network_manager(rig: &mut Rig) -> anyhow::Result<()> {
    let machine = rig.machine(DESKTOP);
    machine.shell("mkdir -p /etc/NetworkManager/conf.d")?;
    machine.shell(&format!("printf '{OWN_SETTINGS}' >/etc/NetworkManager/conf.d/own.conf"))?;
    machine.shell(&format!("{INSTALL} network-manager"))?;
    let unmanaged = || -> anyhow::Result<()> {
        let devices = rig.machine(DESKTOP).shell("nmcli -t -f DEVICE,STATE device")?;
        println!("NetworkManager sees {}", devices.replace('\n', ", "));
        for device in ["mesh0:unmanaged", "cni-mesh0:unmanaged"] {
            ensure!(devices.lines().any(|line| line == device), "{device} is not among {devices}");
        }
        Ok(())
    };
    unmanaged()?;
    as_before(rig, "NetworkManager runs")?;
    goes_on(rig, DESKTOP, &["systemctl reload NetworkManager", "systemctl restart NetworkManager"])?;
    unmanaged()
}

fn networkd(rig: &mut Rig) -> anyhow::Result<()> {
    rig.machine(SERVER).shell(NETWORKS)?;
    as_before(rig, "systemd-networkd runs")?;
    let links = rig.machine(SERVER).shell("networkctl --no-legend --no-pager")?;
    println!("systemd-networkd sees\n{links}");
    for device in ["mesh0", "cni-mesh0"] {
        let state = links.lines().find(|line| line.split_whitespace().nth(1) == Some(device));
        let state = state.with_context(|| format!("{device} is not among {links}"))?;
        ensure!(state.ends_with("unmanaged"), "{state}");
    }
    goes_on(rig, SERVER, &["networkctl reload", "systemctl restart systemd-networkd"])
}

/// A stream from this machine's pod to another's goes on while these are run, and everything is as it was.
fn goes_on(rig: &Rig, name: &str, commands: &[&str]) -> anyhow::Result<()> {
    let other = if name == DESKTOP { SERVER } else { DESKTOP };
    let stream = unit::stream(rig, [name, other])?;
    for command in commands {
        stream.take_longest();
        rig.machine(name).shell(command)?;
        let before = stream.count();
        wait_until(PATIENCE, "the stream goes on", || Ok(stream.count() > before + 10))
            .with_context(|| (*command).to_owned())?;
        println!("{name}: {command}: nothing for {} ms", stream.take_longest().as_millis());
    }
    stream.finish()?;
    as_before(rig, &format!("{name} has been through {}", commands.join(", ")))
}

/// Everybody reaches everybody, and nobody's agent has put anything right or complains.
fn as_before(rig: &Rig, what: &str) -> anyhow::Result<()> {
    checks::all_nodes_are_ready(rig, &MACHINES)?;
    checks::pods_reach_pods(rig, &MACHINES)?;
    // firewalld empties the chains of iptables as it starts and is reloaded; kube-proxy sees it, and fills its own again.
    let asked = Instant::now();
    wait_until(PATIENCE, "kube-proxy's rules are there", || {
        checks::pods_reach_pods_and_services(rig, &MACHINES).map(|()| true)
    })?;
    println!("Services are reached after {:.0?}", asked.elapsed());
    checks::kubelets_are_reached(rig, &MACHINES)?;
    for name in MACHINES {
        let log = rig
            .machine(name)
            .shell("journalctl -u mesh-agent --no-pager -o cat | grep -E 'put back' || true")?;
        ensure!(log.is_empty(), "{name}: {log}");
    }
    rig.said(&format!("{what}: pods reach pods and Services, and the API server kubelets"));
    Ok(())
}
