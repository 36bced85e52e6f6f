//! Two nodes with a service manager each, a network monitor, and a stream that goes on until it is told to end.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use mesh_lab::mesh::{Service, wait_until};
use mesh_lab::process::Process;
use mesh_lab::topology::Host;
use mesh_lab::{Lab, Mesh, MeshOptions, Site, Topology};
use mesh_proto::status::PathKind;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// What each site adds to a round trip.
const LATENCY: Duration = Duration::from_millis(20);
/// Written at once, and how often: 12 Mbit/s, which a debug build carries with ease.
const CHUNK: u64 = 16 * 1024;
const PACE: Duration = Duration::from_millis(10);

/// A coordinator and two nodes that have joined; no agent runs.
pub(crate) fn mesh(name: &str) -> anyhow::Result<(Lab, Mesh)> {
    let lab = Lab::new(name)?;
    let site = |name: &str| Site::public(name).latency(LATENCY);
    let topology = Topology::new().site(site("coord")).site(site("a")).site(site("b"));
    let network = lab.build(topology)?;
    let address = network.outside("coord")?.to_string();
    let mesh = Mesh::new(network, &MeshOptions::new("coord", &address, &["a", "b"]))?;
    mesh.start_coordinator()?;
    for node in mesh.nodes() {
        node.join(&mesh.token(&[])?)?;
    }
    Ok((lab, mesh))
}

/// Starts both agents and waits until they talk, on a direct path.
pub(crate) fn start(mesh: &Mesh) -> anyhow::Result<[Service<'_>; 2]> {
    let services = [Service::new(mesh.node("a")?)?, Service::new(mesh.node("b")?)?];
    for service in &services {
        service.start()?;
    }
    mesh.wait_ready(PATIENCE)?;
    mesh.wait_connected(PATIENCE)?;
    wait_direct(mesh)?;
    Ok(services)
}

/// Waits until both agents talk on a direct path.
pub(crate) fn wait_direct(mesh: &Mesh) -> anyhow::Result<()> {
    wait_until(PATIENCE, "the path is direct", || {
        mesh.ping("a", "b")?;
        let is_direct = |from, to| anyhow::Ok(mesh.node(from)?.peer(to)?.path.kind == PathKind::Direct);
        Ok(is_direct("a", "b")? && is_direct("b", "a")?)
    })
}

/// Waits until node `a` is back.
pub(crate) fn wait_back(mesh: &Mesh) -> anyhow::Result<()> {
    wait_until(PATIENCE, "a is back", || Ok(mesh.node("a")?.is_ready() && mesh.ping("b", "a").is_ok()))
}

/// The number of a node's interface.
pub(crate) fn interface_index(host: &Host) -> anyhow::Result<String> {
    let shown = host.command("cat").arg("/sys/class/net/mesh0/ifindex").output()?.success()?;
    Ok(shown.stdout.trim().to_owned())
}

/// What goes and comes at a host's links, addresses and routes.
pub(crate) struct Monitor(Process);

impl Monitor {
    pub(crate) fn start(host: &Host) -> anyhow::Result<Self> {
        let process = host.command("ip").args(["monitor", "link", "address", "route"]);
        let monitor = Self(process.spawn(&format!("{}-monitor", host.name()))?);
        // It says nothing when it has begun, so it is shown something.
        let add = ["address", "add", "198.18.9.9/32", "dev", "lo"];
        host.command("ip").args(add).output()?.success()?;
        let mut change = "add";
        wait_until(PATIENCE, "the monitor sees changes", || {
            change = if change == "add" { "del" } else { "add" };
            host.command("ip").args(["address", change, "198.18.9.9/32", "dev", "lo"]).output()?.success()?;
            Ok(monitor.log()?.contains("198.18.9.9"))
        })?;
        Ok(monitor)
    }

    /// What was deleted of the mesh's interface.
    pub(crate) fn deleted(&self) -> anyhow::Result<Vec<String>> {
        let of_mesh = |line: &&str| line.starts_with("Deleted") && line.contains("mesh0");
        Ok(self.log()?.lines().filter(of_mesh).map(str::to_owned).collect())
    }

    fn log(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.0.log())?)
    }
}

/// Runs a stream of TCP from one node to another while `work` is done; returns how many bytes arrived, which are those
/// that were sent.
pub(crate) fn stream_during(
    from: &Host,
    to: (&Host, IpAddr),
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let listener = to.0.netns().enter(|| TcpListener::bind((to.1, 0)))??;
    let address = listener.local_addr()?;
    let stream = from.netns().enter(|| TcpStream::connect_timeout(&address, PATIENCE))??;
    let ending = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(stream, &ending));
        let receiving = scope.spawn(|| receive(&listener));
        let worked = work();
        ending.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow!("it panicked");
        let sent = sending.join().map_err(panicked)??;
        let received = receiving.join().map_err(panicked)??;
        worked?;
        ensure!(sent == received, "sent {sent:?}, received {received:?} (bytes, checksum)");
        Ok(received.0)
    })
}

/// Each byte tells its place; the checksum is of all of them in order.
fn send(mut stream: TcpStream, ending: &AtomicBool) -> anyhow::Result<(u64, u64)> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut bytes, mut checksum) = (0, FNV_BASIS);
    while !ending.load(Ordering::Relaxed) {
        let chunk: Vec<u8> =
            (bytes..bytes + CHUNK).map(|place| (place ^ place >> 8 ^ place >> 16) as u8).collect();
        stream.write_all(&chunk).context("the connection does not live")?;
        bytes += CHUNK;
        checksum = fnv(checksum, &chunk);
        std::thread::sleep(PACE);
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new()).context("the other side does not end")?;
    Ok((bytes, checksum))
}

fn receive(listener: &TcpListener) -> anyhow::Result<(u64, u64)> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut bytes, mut checksum, mut chunk) = (0, FNV_BASIS, vec![0; 64 * 1024]);
    loop {
        match stream.read(&mut chunk).context("the connection does not live")? {
            0 => return Ok((bytes, checksum)),
            length => {
                bytes += length as u64;
                checksum = fnv(checksum, &chunk[..length]);
            }
        }
    }
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv(checksum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(checksum, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
