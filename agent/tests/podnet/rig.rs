//! A node between the world and another node, each a network namespace.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use mesh_agent::kubernetes::podnet::{Desired, K3s, MeshState, Places, Problem};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(10);
/// Says to all nodes of a link that this one is a router for half an hour (RFC 4861, section 4.2); the kernel adds the checksum.
const ROUTER: &str = "socket($s, AF_INET6, SOCK_RAW, 58) or die; setsockopt($s, 41, 18, pack('i', 255)) or die; \
                      setsockopt($s, 41, 17, pack('i', $ARGV[0])) or die; \
                      send($s, pack('CCnCCnNN', 134, 0, 0, 64, 0, 1800, 0, 0), 0, \
                      pack_sockaddr_in6(0, inet_pton(AF_INET6, 'ff02::1'))) or die";

/// A network namespace, which is there as long as its process.
pub(crate) struct Netns(Child);

/// The node is this process' own namespace.
pub(crate) struct Rig {
    pub(crate) world: Netns,
    other: Netns,
    root: TempDir,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let child =
            Command::new("unshare").args(["--net", "sleep", "600"]).stdin(Stdio::null()).spawn().unwrap();
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let netns = Self(child);
        eventually("a new network namespace", || {
            let there = std::fs::read_link(netns.path()).ok()?;
            let runs = std::fs::read_to_string(format!("/proc/{}/comm", netns.0.id())).ok()?;
            (there != own && runs.trim() == "sleep").then_some(())
        });
        netns.run("ip link set lo up");
        netns
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }

    pub(crate) fn run(&self, line: &str) -> String {
        self.try_run(line).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn try_run(&self, line: &str) -> Result<String, String> {
        try_run(&format!("nsenter --net={} {line}", self.path().display()))
    }

    /// Starts a program that runs until it is dropped.
    pub(crate) fn start(&self, program: &str, args: &[&str]) -> Running {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program).args(args);
        Running(command.stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that runs.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Rig {
    pub(crate) fn new() -> Self {
        let (world, other) = (Netns::new(), Netns::new());
        run("ip link set lo up");
        run(&format!("ip link add eth0 type veth peer name eth0 netns {}", world.pid()));
        run(&format!("ip link add mesh0 type veth peer name mesh0 netns {}", other.pid()));
        for line in [
            "ip link set eth0 up",
            "ip addr add 198.51.100.1/24 dev eth0",
            "ip addr add 2001:db8::1/64 dev eth0 nodad",
            "ip route add default via 198.51.100.2",
            "ip link set mesh0 mtu 1420 up",
            "ip addr add 10.90.0.1/32 dev mesh0",
            "ip addr add fd5d::1/128 dev mesh0 nodad",
            "ip route add 10.90.0.0/16 dev mesh0",
            "ip route add 10.244.2.0/24 dev mesh0",
            "ip route add fd00:10:244:2::/64 dev mesh0",
        ] {
            run(line);
        }
        for line in [
            "ip link set eth0 up",
            "ip addr add 198.51.100.2/24 dev eth0",
            "ip addr add 2001:db8::2/64 dev eth0 nodad",
        ] {
            world.run(line);
        }
        for line in [
            "ip link set mesh0 mtu 1420 up",
            "ip addr add 10.90.0.2/32 dev mesh0",
            "ip addr add 10.244.2.2/32 dev mesh0",
            "ip addr add fd00:10:244:2::2/128 dev mesh0 nodad",
            "ip route add 10.90.0.0/16 dev mesh0",
            "ip route add 10.244.0.0/16 via 10.90.0.1 dev mesh0 onlink",
            "ip route add fd00:10:244::/48 via fd5d::1 dev mesh0 onlink",
            "nft add table inet refuse",
            "nft add chain inet refuse in { type filter hook input priority 0; }",
            "nft add rule inet refuse in ip saddr != 10.244.0.0/16 icmp type echo-request drop",
            "nft add rule inet refuse in ip6 saddr != fd00:10:244::/48 icmpv6 type echo-request drop",
        ] {
            other.run(line);
        }
        Self { world, other, root: tempfile::tempdir().unwrap() }
    }

    /// Gives the node one more way to the world.
    pub(crate) fn add_uplink(&self, name: &str) {
        run(&format!("ip link add {name} type veth peer name {name} netns {}", self.world.pid()));
        run(&format!("ip link set {name} up"));
        self.world.run(&format!("ip link set {name} up"));
    }

    /// Lets the world say, on one of its devices, that it is a router.
    pub(crate) fn announce_router(&self, device: &str) {
        let shown = self.world.run(&format!("ip -o link show {device}"));
        let index = shown.split(':').next().unwrap();
        // Its address on the link may be still tentative.
        let _ =
            self.world.try_run(&format!("perl -MSocket=:all -e '{}' {index}", ROUTER.replace('\'', "\"")));
    }

    /// Lets the other node answer the mesh address of this one.
    pub(crate) fn accept_node(&self) {
        self.other.run("nft flush table inet refuse");
    }

    pub(crate) fn places(&self) -> Places {
        let own = Path::new(env!("CARGO_BIN_EXE_mesh-cni")).parent().unwrap();
        Places {
            cni_conf_dir: self.root.path().join("net.d"),
            cni_bin_dir: self.root.path().join("bin"),
            plugin_sources: vec![own.to_owned(), "/usr/lib/cni".into()],
            host_local_dir: self.root.path().join("leases"),
            k3s: K3s { socket: self.root.path().join("k3s.sock"), configuration: "/dev/null".into() },
        }
    }

    pub(crate) fn desired(&self) -> Desired {
        let nets = |all: &[&str]| all.iter().map(|net| net.parse().unwrap()).collect();
        Desired {
            pods: nets(&["10.244.1.0/24", "fd00:10:244:1::/64"]),
            cluster_pods: nets(&["10.244.0.0/16", "fd00:10:244::/48"]),
            services: nets(&["10.96.0.0/12"]),
            mesh: nets(&["10.90.0.0/16", "fd5d::/48"]),
            offered: vec![],
            interface: "mesh0".to_owned(),
            mtu: 1420,
            socket: self.root.path().join("agent.sock"),
            mesh_state: MeshState::Ready,
        }
    }

    /// Leaves out what is of the kernel that the test runs on.
    pub(crate) fn problems(&self, all: Vec<Problem>) -> Vec<Problem> {
        all.into_iter().filter(|problem| *problem != Problem::NoBridgeFilter).collect()
    }
}

pub(crate) fn run(line: &str) -> String {
    try_run(line).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a command; words are kept together by single quotes.
pub(crate) fn try_run(line: &str) -> Result<String, String> {
    let words = line.split('\'').enumerate().flat_map(|(at, part)| match at % 2 {
        0 => part.split_whitespace().collect::<Vec<_>>(),
        _ => vec![part],
    });
    let mut words = words;
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(words.next().unwrap())
        .args(words)
        .env("PATH", path)
        .output()
        .map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(format!("{line}: {}{said}", String::from_utf8_lossy(&output.stderr)))
    }
}

pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
