//! For how long connections are silent while systemd restarts an agent: as it is installed, and with the drop-in of a node
//! whose pod network the mesh is.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::time::Duration;

use mesh_lab::kubernetes::Stream;
use mesh_lab::kubernetes::pods::ECHO_PORT;
use mesh_lab::machine::{Disk, Machine};
use mesh_lab::mesh::wait_until;
use mesh_lab::{Host, Lab, Site, Topology};

use crate::{INSTALL, PATIENCE, address, package, packages, start_coordinator, wait_ready};

/// The machine whose agent is restarted, and the other one.
const NAMES: [&str; 2] = ["restarted", "other"];
/// What each site adds to a round trip, as between two homes.
const LATENCY: Duration = Duration::from_millis(20);
/// How often an agent is restarted, for a median.
const RESTARTS: usize = 15;
/// What a node with some dozen pods has mounted beside its own: systemd looks through all of it for each path of a sandbox.
const MOUNTS: usize = 60;
/// For how long a stream may be silent: more than that is no restart that connections live through.
const SILENCE: Duration = Duration::from_secs(5);

#[test]
fn connections_live_through_restarts_by_systemd() {
    let lab = Lab::new("restarts").unwrap();
    let site = |name: &str| Site::public(name).latency(LATENCY);
    let network = lab.build(NAMES.iter().fold(Topology::new(), |all, name| all.site(site(name)))).unwrap();
    let hosts = NAMES.map(|name| network.host(name).unwrap());
    let machines = hosts.map(|host| {
        let disk = Disk::new(&lab, host.name(), &packages()).unwrap();
        let machine = disk.for_containers(host.name()).unwrap().boot(host).unwrap();
        machine.shell(&format!("{INSTALL} {}", package("mesh-agent"))).unwrap();
        machine
    });
    let [restarted, other] = &machines;
    other.shell(&format!("{INSTALL} {}", package("mesh-coordinator"))).unwrap();
    let join = start_coordinator(other, &hosts[1].address().to_string());
    for (machine, name) in machines.iter().zip(NAMES) {
        machine.shell(&format!("{join} --name {name}")).unwrap();
        machine.shell("systemctl start mesh-agent").unwrap();
    }
    let to: IpAddr = address(other).parse().unwrap();
    answer(hosts[1]);

    print_gaps(restarted, (hosts[0], to), "as it is installed");
    restarted
        .shell(
            "install -D -m 644 /usr/share/doc/mesh-agent/kubernetes.conf \
                 /etc/systemd/system/mesh-agent.service.d/kubernetes.conf\n\
             systemctl daemon-reload && systemctl stop mesh-agent && systemctl start mesh-agent",
        )
        .unwrap();
    wait_ready(restarted);
    print_gaps(restarted, (hosts[0], to), "with the drop-in");
    restarted
        .shell(&format!(
            "for number in $(seq {MOUNTS}); do mkdir -p /run/pods/$number && mount -t tmpfs none /run/pods/$number; done"
        ))
        .unwrap();
    print_gaps(restarted, (hosts[0], to), &format!("with the drop-in and {MOUNTS} more mounts"));
    for machine in machines {
        machine.shut_down().unwrap();
    }
}

/// Restarts an agent under a stream from its host to an address, and prints for how long that was silent.
fn print_gaps(machine: &Machine, (host, to): (&Host, IpAddr), how: &str) {
    wait_until(PATIENCE, "the other answers", || {
        Ok(machine.run("ping", ["-c", "1", "-W", "1", &to.to_string()])?.status.success())
    })
    .unwrap();
    let stream = Stream::start(host.netns(), to).unwrap();
    let wait_on = |what: &str| {
        let before = stream.count();
        wait_until(PATIENCE, what, || Ok(stream.count() > before + 10)).unwrap();
    };
    let mut silences: Vec<Duration> = (0..RESTARTS)
        .map(|_| {
            wait_on("the stream runs");
            stream.take_longest();
            machine.shell("systemctl restart mesh-agent").unwrap();
            wait_on("the stream goes on");
            stream.take_longest()
        })
        .collect();
    silences.sort();
    println!("{how}: median {:.0?}: {silences:.0?}", silences[RESTARTS / 2]);
    assert!(silences[RESTARTS - 1] < SILENCE, "a stream was silent for {silences:?}");
    stream.finish().unwrap();
}

/// Sends back what connections to this host bring, until the test ends.
fn answer(host: &Host) {
    let listener =
        host.netns().enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, ECHO_PORT))).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut buffer = [0; 8];
            while stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer).is_ok() {}
        }
    });
}
