//! The life of a package: installed, used, upgraded, removed, purged.

use mesh_lab::machine::Disk;
use mesh_lab::mesh::wait_until;
use mesh_lab::{Lab, Site, Topology};

use crate::{INSTALL, PATIENCE, package, packages, property, start_coordinator, wait_ready};

/// The exposure that `systemd-analyze security` may find, in tenths.
const EXPOSURE: [(&str, u32); 3] = [("mesh-agent", 15), ("mesh-coordinator", 15), ("mesh-relay", 15)];

#[test]
fn a_package_from_its_installation_to_its_purge() {
    let lab = Lab::new("packages").unwrap();
    let network = lab.build(Topology::new().site(Site::public("server"))).unwrap();
    let host = network.host("server").unwrap();
    let disk = Disk::new(&lab, "server", &packages()).unwrap();
    let machine = disk.boot(host).unwrap();
    let before = machine
        .shell("find / -xdev -path /proc -prune -o -path /run -prune -o -print | grep -i mesh || true")
        .unwrap();

    machine.shell(&format!("{INSTALL} {} {}", package("mesh-agent"), package("mesh-coordinator"))).unwrap();
    for (unit, allowed) in EXPOSURE {
        let said = machine.shell(&format!("systemd-analyze verify {unit}.service 2>&1")).unwrap();
        assert_eq!(said, "", "what systemd says to {unit}");
        machine
            .shell(&format!("systemd-analyze security --offline=yes --threshold={allowed} {unit}.service"))
            .unwrap_or_else(|error| panic!("{unit} is too open: {error:#}"));
    }
    // Without an identity there is nothing to run, and that is no failure.
    assert_eq!(property(&machine, "mesh-agent", "ActiveState"), "inactive");

    let join = start_coordinator(&machine, &host.address().to_string());
    machine.shell(&format!("{join} --name server")).unwrap();
    machine.shell("systemctl start mesh-agent").unwrap();
    wait_ready(&machine);
    assert_eq!(property(&machine, "mesh-agent", "User"), "mesh-agent");

    println!("a second join, by root, leaves files that the service can read");
    machine.shell("systemctl stop mesh-agent && rm /var/lib/mesh-agent/*").unwrap();
    machine.shell(&format!("{join} --name server-again")).unwrap();
    let foreign = machine.shell("find /var/lib/mesh-agent ! -user mesh-agent").unwrap();
    assert_eq!(foreign, "", "files of somebody else");
    machine.shell("systemctl start mesh-agent").unwrap();
    wait_ready(&machine);

    let said = machine.shell("mesh-agent join nobody.example --unless-joined").unwrap();
    assert_eq!(said, "joined already as server-again");

    println!("a restart, a crash and an upgrade keep the interface");
    let interface = machine.shell("cat /sys/class/net/mesh0/ifindex").unwrap();
    machine.shell("echo '#mine' >>/etc/mesh/agent.toml").unwrap();
    for change in [
        "systemctl restart mesh-agent".to_owned(),
        "systemctl kill --signal=KILL mesh-agent".to_owned(),
        format!("{INSTALL} {}", package("mesh-agent")),
    ] {
        let process = property(&machine, "mesh-agent", "MainPID");
        machine.shell(&change).unwrap();
        wait_until(PATIENCE, "another process has taken over", || {
            let now = property(&machine, "mesh-agent", "MainPID");
            Ok(now != process && now != "0")
        })
        .unwrap();
        wait_ready(&machine);
        assert_eq!(machine.shell("cat /sys/class/net/mesh0/ifindex").unwrap(), interface, "after {change}");
    }
    assert_eq!(
        machine.shell("tail -1 /etc/mesh/agent.toml").unwrap(),
        "#mine",
        "an upgrade keeps what was changed"
    );

    println!("one that hangs is killed by its watchdog");
    machine
        .shell(
            "mkdir -p /run/systemd/system/mesh-agent.service.d\n\
             printf '[Service]\\nWatchdogSec=3\\n' >/run/systemd/system/mesh-agent.service.d/soon.conf\n\
             systemctl daemon-reload && systemctl restart mesh-agent",
        )
        .unwrap();
    wait_ready(&machine);
    let process = property(&machine, "mesh-agent", "MainPID");
    machine.shell("systemctl kill --signal=STOP mesh-agent").unwrap();
    wait_until(PATIENCE, "the watchdog has acted", || {
        Ok(property(&machine, "mesh-agent", "MainPID") != process)
    })
    .unwrap();
    wait_ready(&machine);

    println!("backup and restore, by root");
    machine.shell("mesh-coordinator backup /root/backup && systemctl stop mesh-coordinator").unwrap();
    machine.shell("mesh-coordinator restore /root/backup && systemctl start mesh-coordinator").unwrap();
    let nodes = machine.shell("mesh-coordinator node list").unwrap();
    assert!(nodes.contains("server-again"), "{nodes}");

    println!("a reboot");
    machine.shut_down().unwrap();
    let machine = disk.boot(host).unwrap();
    wait_ready(&machine);

    println!("removed, then purged");
    machine.shell("dpkg --remove mesh-agent mesh-coordinator").unwrap();
    assert!(machine.run("ip", ["link", "show", "mesh0"]).unwrap().code() != 0, "the interface is left");
    let identity = machine.shell("ls /var/lib/mesh-agent/node.key /etc/mesh/agent.toml").unwrap();
    assert_eq!(identity.lines().count(), 2, "a removal forgets nothing");
    machine.shell("dpkg --purge mesh-agent mesh-coordinator").unwrap();
    let left = machine
        .shell(
            "find / -xdev -path /proc -prune -o -path /run -prune -o -path '/var/log/*' -prune -o -print | grep -i mesh || true",
        )
        .unwrap();
    assert_eq!(left, before, "left after the purge");
    machine.shut_down().unwrap();
}
