//! Large packets between pods. Small ones pass everywhere; what is lost where the MTU is wrong are these.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_lab::kubernetes::RunningPod;
use mesh_lab::mesh::wait_until;
use mesh_lab::netns::Netns;
use mesh_lab::topology::Host;

use crate::rig::{PATIENCE, Rig};

/// The headers of IPv4 and of an echo request.
const ECHO_HEADERS: usize = 28;
/// The same in IPv6.
const ECHO_HEADERS_V6: usize = 48;
/// What a device of Ethernet has that nobody has told of the mesh.
const ETHERNET: usize = 1500;
/// What DNS servers with EDNS send in one piece.
const DNS_ANSWER: usize = 1400;
const QUESTIONS: u32 = 20;
const DNS_PORT: u16 = 5300;
const TLS_PORT: u16 = 4433;
/// So many names make a certificate of more than ten kilobytes.
const NAMES: usize = 600;
const MIN_HANDSHAKE: usize = 10_000;
const TCP_PORT: u16 = 5301;
/// Ten megabytes.
const FILE: usize = 10 << 20;

/// Where packets come from and go to: a namespace, an address there, and its device.
pub(crate) struct End<'a> {
    pub(crate) netns: &'a Netns,
    pub(crate) address: IpAddr,
    pub(crate) device: &'a str,
}

/// Everything that is large passes between two pods, both ways and by each family, and what is too large is refused where it
/// is sent.
pub(crate) fn large_packets_pass(rig: &Rig, from: &RunningPod, to: &RunningPod) -> anyhow::Result<()> {
    until_measured(rig, from, to)?;
    let pods = [from, to];
    let netns = [rig.cluster.netns(from)?, rig.cluster.netns(to)?];
    for address in &from.addresses {
        let end = |number: usize| {
            let address = pods[number].address_like(*address)?;
            anyhow::Ok(End { netns: &netns[number], address, device: "eth0" })
        };
        let took = both_ways(rig, &[end(0)?, end(1)?]).with_context(|| format!("from {address}"))?;
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        println!("10 MB between pods of {} and {} by {family}, each way: {took:.1?}", from.node, to.node);
    }
    Ok(())
}

/// A pod that sends larger packets than the mesh carries is told how large they may be, by its node.
pub(crate) fn a_pod_is_told_what_is_too_large(
    rig: &Rig,
    from: &RunningPod,
    to: &RunningPod,
) -> anyhow::Result<()> {
    let netns = rig.cluster.netns(from)?;
    let right = mtu(&End { netns: &netns, address: from.address, device: "eth0" })?;
    let host = rig.village.network().host(&from.node)?;
    let device = on_the_host(&netns, host)?;
    let set = |mtu: usize| {
        host.netns().ip(&format!("link set {device} mtu {mtu}\n"))?;
        netns.ip(&format!("link set eth0 mtu {mtu}\n"))
    };
    set(ETHERNET)?;
    for address in &to.addresses {
        let one = End { netns: &netns, address: from.address_like(*address)?, device: "eth0" };
        let other = End { netns: &netns, address: *address, device: "eth0" };
        let said = String::from_utf8(ping(&one, &other, ETHERNET)?.stdout)?;
        let told =
            if address.is_ipv4() { format!("(mtu = {right})") } else { format!("too big: mtu={right}") };
        ensure!(said.contains(&told), "a pod that sends {ETHERNET} bytes to {address} is told {said}");
        ensure!(ping(&one, &other, right)?.status.success(), "what fits is lost on the way to {address}");
    }
    set(right)
}

/// The device of a host that leads to a pod.
fn on_the_host(pod: &Netns, host: &Host) -> anyhow::Result<String> {
    let links = |shown: &[u8]| anyhow::Ok(serde_json::from_slice::<Vec<serde_json::Value>>(shown)?);
    let own = run(pod, Command::new("ip").args(["-j", "link", "show", "eth0"]))?;
    let index = links(&own.stdout)?.first().map(|link| link["link_index"].clone());
    let shown = host.command("ip").args(["-j", "link", "show"]).output()?.success()?.stdout;
    let found = links(shown.as_bytes())?.into_iter().find(|link| Some(&link["ifindex"]) == index.as_ref());
    let name =
        found.as_ref().and_then(|link| link["ifname"].as_str()).context("a pod has a device on its host")?;
    Ok(name.to_owned())
}

/// As [`large_packets_pass`], between any two; returns how long 10 MB take in each direction.
pub(crate) fn both_ways(rig: &Rig, [one, other]: &[End<'_>; 2]) -> anyhow::Result<Vec<Duration>> {
    let mut took = Vec::new();
    for (from, to) in [(one, other), (other, one)] {
        let mtu = mtu(from)?;
        ensure!(mtu == self::mtu(to)?, "the two differ in their MTU");
        let fits = ping(from, to, mtu)?;
        ensure!(fits.status.success(), "an echo of {mtu} bytes is lost: {fits:?}");
        let too_large = ping(from, to, mtu + 1)?;
        let said = String::from_utf8_lossy(&too_large.stderr).into_owned();
        // `ping` says it in two ways, one for each family.
        let is_told = ["mtu=", "mtu: "].iter().any(|word| said.contains(&format!("{word}{mtu}")));
        ensure!(
            !too_large.status.success() && is_told,
            "an echo of {} bytes is not refused: {too_large:?}",
            mtu + 1
        );
        answers_of_dns(from, to).context("answers over UDP")?;
        handshake(rig, from, to).context("a handshake of TLS")?;
        took.push(download(from, to).context("10 MB")?);
    }
    Ok(took)
}

/// Waits until both nodes know what their path carries; before, the mesh answers with the least that any path does, and the
/// kernel believes it for ten minutes.
fn until_measured(rig: &Rig, from: &RunningPod, to: &RunningPod) -> anyhow::Result<()> {
    for (one, other) in [(from, to), (to, from)] {
        let node = rig.village.node(&one.node)?;
        wait_until(PATIENCE, "the path between two nodes is measured", || {
            rig.asks(one, other)?;
            let path = node.peer(&other.node)?.path;
            let whole = node.peek()?.this.mtu;
            ensure!(path.mtu.is_some_and(|mtu| mtu >= whole), "{path:?}");
            Ok(true)
        })?;
        for family in ["-4", "-6"] {
            run(&rig.cluster.netns(one)?, Command::new("ip").args([family, "route", "flush", "cache"]))?;
        }
    }
    Ok(())
}

/// The MTU of an end's device.
pub(crate) fn mtu(end: &End<'_>) -> anyhow::Result<usize> {
    let shown = run(end.netns, Command::new("ip").args(["-j", "link", "show", end.device]))?;
    let links: Vec<serde_json::Value> = serde_json::from_slice(&shown.stdout)?;
    let mtu = links.first().and_then(|link| link["mtu"].as_u64()).context("a device has an MTU")?;
    Ok(usize::try_from(mtu)?)
}

/// Echo requests of this length, not to be cut; one is lost where a smaller MTU has to be learnt first.
fn ping(from: &End<'_>, to: &End<'_>, length: usize) -> anyhow::Result<Output> {
    let headers = if to.address.is_ipv4() { ECHO_HEADERS } else { ECHO_HEADERS_V6 };
    let size = (length - headers).to_string();
    let mut ping = Command::new("ping");
    ping.args(["-n", "-M", "do", "-c", "3", "-i", "0.2", "-W", "3", "-s", &size, "-I"]);
    run(from.netns, ping.args([from.address, to.address].map(|address| address.to_string())))
}

/// Each question is answered, in one piece for whoever asks.
fn answers_of_dns(from: &End<'_>, to: &End<'_>) -> anyhow::Result<()> {
    let server = to.netns.enter(|| UdpSocket::bind((to.address, DNS_PORT)))??;
    let client = from.netns.enter(|| UdpSocket::bind((from.address, 0)))??;
    client.connect((to.address, DNS_PORT))?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    let mut buffer = [0; 2 * DNS_ANSWER];
    for question in 0..QUESTIONS {
        client.send(&question.to_be_bytes())?;
        let (_, asker) = server.recv_from(&mut buffer).context("no question")?;
        let mut answer = vec![0x5a; DNS_ANSWER];
        answer[..4].copy_from_slice(&buffer[..4]);
        server.send_to(&answer, asker)?;
        let length =
            client.recv(&mut buffer).with_context(|| format!("question {question} has no answer"))?;
        ensure!(buffer[..length] == answer, "question {question} has another answer");
    }
    Ok(())
}

/// TLS with a certificate that takes many packets.
fn handshake(rig: &Rig, from: &End<'_>, to: &End<'_>) -> anyhow::Result<()> {
    let server_address = SocketAddr::new(to.address, TLS_PORT).to_string();
    let [certificate, key] = certificate(rig.directory())?;
    let mut serve = Command::new("openssl");
    serve.args(["s_server", "-quiet", "-accept", &server_address]);
    serve.arg("-cert").arg(certificate).arg("-key").arg(key);
    serve.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut server = to.netns.enter(|| serve.spawn())??;
    let shaken = wait_until(PATIENCE, "the handshake is done", || {
        let line = format!("timeout 20 openssl s_client -connect {server_address} </dev/null");
        let done = run(from.netns, Command::new("sh").args(["-c", &line]))?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let read = said.lines().find_map(|line| line.strip_prefix("SSL handshake has read "));
        let read = read.and_then(|rest| rest.split(' ').next()).context("no handshake")?;
        ensure!(read.parse::<usize>()? > MIN_HANDSHAKE, "the handshake was of {read} bytes only");
        Ok(true)
    });
    server.kill()?;
    server.wait()?;
    shaken
}

/// A certificate for many names, and its key; made once.
fn certificate(directory: &Path) -> anyhow::Result<[PathBuf; 2]> {
    let files = ["large.crt", "large.key"].map(|name| directory.join(name));
    if files.iter().all(|file| file.exists()) {
        return Ok(files);
    }
    let names: Vec<_> = (0..NAMES).map(|number| format!("DNS:name-{number}.lab.invalid")).collect();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-days", "2", "-subj", "/CN=large", "-addext", &format!("subjectAltName={}", names.join(","))])
        .arg("-out")
        .arg(&files[0])
        .arg("-keyout")
        .arg(&files[1])
        .output()?;
    ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    Ok(files)
}

/// Ten megabytes over TCP; returns how long they took.
fn download(from: &End<'_>, to: &End<'_>) -> anyhow::Result<Duration> {
    let server = to.netns.enter(|| TcpListener::bind((to.address, TCP_PORT)))??;
    let sent = std::thread::spawn(move || {
        server.accept().and_then(|(mut stream, _)| stream.write_all(&vec![0x5a; FILE]))
    });
    let started = Instant::now();
    let mut stream =
        from.netns.enter(|| TcpStream::connect_timeout(&(to.address, TCP_PORT).into(), PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = Vec::with_capacity(FILE);
    stream.read_to_end(&mut answer)?;
    sent.join().expect("a server's thread does not panic")?;
    ensure!(answer.len() == FILE, "{} bytes of {FILE}", answer.len());
    Ok(started.elapsed())
}

fn run(inside: &Netns, command: &mut Command) -> anyhow::Result<Output> {
    Ok(inside.enter(|| command.output())??)
}
