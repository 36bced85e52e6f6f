//! The village, each node a Debian under its own systemd.

use std::collections::BTreeMap;
use std::thread;

use mesh_lab::machine::{Disk, Machine};
use mesh_lab::mesh::wait_until;
use mesh_lab::village::{COORDINATOR_HOST, COORDINATOR_NAME, NODES};
use mesh_lab::{Lab, Village};

use crate::{INSTALL, PATIENCE, address, package, packages, property, start_coordinator, wait_ready};

#[test]
fn every_node_under_its_own_systemd() {
    let lab = Lab::new("machines").unwrap();
    let village = Village::prepare(&lab).unwrap();
    let network = village.network();
    let disks: BTreeMap<&str, Disk> =
        NODES.iter().map(|name| (*name, Disk::new(&lab, name, &packages()).unwrap())).collect();
    let mut machines: BTreeMap<&str, Machine> = thread::scope(|scope| {
        let boots: Vec<_> = disks
            .iter()
            .map(|(name, disk)| {
                let boot = move || {
                    let machine = disk.boot(network.host(name).unwrap()).unwrap();
                    machine.shell(&format!("{INSTALL} {}", package("mesh-agent"))).unwrap();
                    machine
                };
                (*name, scope.spawn(boot))
            })
            .collect();
        boots.into_iter().map(|(name, boot)| (name, boot.join().unwrap())).collect()
    });
    let pi = &machines[COORDINATOR_HOST];
    pi.shell(&format!("{INSTALL} {}", package("mesh-coordinator"))).unwrap();
    let join = start_coordinator(pi, COORDINATOR_NAME);
    for (name, machine) in &machines {
        machine.shell(&format!("{join} --name {name}")).unwrap();
        machine.shell("systemctl start mesh-agent").unwrap();
    }
    machines.values().for_each(wait_ready);
    all_answer(&machines);

    println!("country reboots");
    machines.remove("country").unwrap().shut_down().unwrap();
    machines.insert("country", disks["country"].boot(network.host("country").unwrap()).unwrap());
    all_answer(&machines);

    println!("an agent is restarted and an agent crashes, under traffic");
    for (victim, deed) in
        [("home-a", "systemctl restart mesh-agent"), ("office", "systemctl kill --signal=KILL mesh-agent")]
    {
        let watcher = &machines["country"];
        let process = property(&machines[victim], "mesh-agent", "MainPID");
        // 10 s of echoes, one each 20 ms.
        let echo = format!("ping -q -i 0.02 -c 500 -W 2 {}", address(&machines[victim]));
        let said = thread::scope(|scope| {
            let echo = scope.spawn(|| watcher.run("sh", ["-c", &echo]).unwrap());
            machines[victim].shell(&format!("sleep 2; {deed}")).unwrap();
            echo.join().unwrap().stdout
        });
        println!(
            "{victim}: {deed}: {}",
            said.lines().find(|line| line.contains("received")).unwrap_or(&said)
        );
        let received: u32 = received(&said);
        assert!(received >= 400, "more than two seconds were lost at `{deed}`: {said}");
        assert_ne!(
            property(&machines[victim], "mesh-agent", "MainPID"),
            process,
            "{victim} still runs as before"
        );
    }
    all_answer(&machines);
    for (name, machine) in machines {
        assert_eq!(machine.shell("systemctl --failed --no-legend").unwrap(), "", "failed units of {name}");
        machine.shut_down().unwrap();
    }
}

/// Every node reaches every other by its address in the mesh.
fn all_answer(machines: &BTreeMap<&str, Machine>) {
    let addresses: Vec<String> = machines.values().map(address).collect();
    for (name, machine) in machines {
        for address in &addresses {
            wait_until(PATIENCE, &format!("{name} reaches {address}"), || {
                Ok(machine.run("ping", ["-c", "1", "-W", "2", address])?.status.success())
            })
            .unwrap();
        }
    }
}

/// How many echoes came back, by what ping prints at its end.
fn received(said: &str) -> u32 {
    let (before, _) = said.split_once(" received").unwrap_or_else(|| panic!("ping says {said}"));
    before
        .rsplit(' ')
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("ping says {said}"))
}
