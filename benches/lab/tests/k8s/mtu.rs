//! Large packets between pods. Small ones pass everywhere; what is lost where the MTU is wrong are these.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_lab::kubernetes::RunningPod;
use mesh_lab::kubernetes::pods::POD_PORT;
use mesh_lab::mesh::wait_until;
use mesh_lab::netns::Netns;

use crate::rig::{PATIENCE, Rig};

/// The headers of IPv4 and of an echo request.
const ECHO_HEADERS: usize = 28;
/// What DNS servers with EDNS send in one piece.
const DNS_ANSWER: usize = 1400;
const QUESTIONS: u32 = 20;
const DNS_PORT: u16 = 5300;
const TLS_PORT: u16 = 4433;
/// So many names make a certificate of more than ten kilobytes.
const NAMES: usize = 600;
const MIN_HANDSHAKE: usize = 10_000;
/// `/10mb` of the web pods.
const FILE: usize = 10 << 20;

/// Everything that is large passes between two pods, both ways, and what is too large is refused where it is sent.
pub(crate) fn large_packets_pass(rig: &Rig, from: &RunningPod, to: &RunningPod) -> anyhow::Result<()> {
    until_measured(rig, from, to)?;
    let ends = [(rig.cluster.netns(from)?, from.address), (rig.cluster.netns(to)?, to.address)];
    let mut took = Vec::new();
    for (one, other) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
        let mtu = mtu(&one.0)?;
        ensure!(mtu == self::mtu(&other.0)?, "pods differ in their MTU");
        let fits = ping(one, other.1, mtu)?;
        ensure!(fits.status.success(), "an echo of {mtu} bytes is lost: {fits:?}");
        let too_large = ping(one, other.1, mtu + 1)?;
        let said = String::from_utf8_lossy(&too_large.stderr).into_owned();
        ensure!(
            !too_large.status.success() && said.contains(&format!("mtu={mtu}")),
            "an echo of {} bytes is not refused: {too_large:?}",
            mtu + 1
        );
        answers_of_dns(one, other).context("answers over UDP")?;
        handshake(rig, one, other).context("a handshake of TLS")?;
        took.push(download(&one.0, other.1).context("10 MB")?);
    }
    println!("10 MB between pods of {} and {}, each way: {took:.1?}", from.node, to.node);
    Ok(())
}

type End = (Netns, IpAddr);

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
        run(&rig.cluster.netns(one)?, Command::new("ip").args(["route", "flush", "cache"]))?;
    }
    Ok(())
}

/// The MTU of a pod.
fn mtu(pod: &Netns) -> anyhow::Result<usize> {
    let shown = run(pod, Command::new("ip").args(["-j", "link", "show", "eth0"]))?;
    let links: Vec<serde_json::Value> = serde_json::from_slice(&shown.stdout)?;
    let mtu = links.first().and_then(|link| link["mtu"].as_u64()).context("a device has an MTU")?;
    Ok(usize::try_from(mtu)?)
}

/// One echo request of this length, not to be cut; a first one may be lost while a tunnel is made.
fn ping((from, _): &End, to: IpAddr, length: usize) -> anyhow::Result<Output> {
    let size = (length - ECHO_HEADERS).to_string();
    run(
        from,
        Command::new("ping")
            .args(["-n", "-M", "do", "-c", "3", "-i", "0.2", "-W", "3", "-s", &size])
            .arg(to.to_string()),
    )
}

/// Each question is answered, in one piece for whoever asks.
fn answers_of_dns((from, _): &End, (to, address): &End) -> anyhow::Result<()> {
    let server = to.enter(|| UdpSocket::bind((*address, DNS_PORT)))??;
    let client = from.enter(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    client.connect((*address, DNS_PORT))?;
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
fn handshake(rig: &Rig, (from, _): &End, (to, address): &End) -> anyhow::Result<()> {
    let [certificate, key] = certificate(rig.directory())?;
    let mut serve = Command::new("openssl");
    serve.args(["s_server", "-quiet", "-accept", &format!("{address}:{TLS_PORT}")]);
    serve.arg("-cert").arg(certificate).arg("-key").arg(key);
    serve.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut server = to.enter(|| serve.spawn())??;
    let shaken = wait_until(PATIENCE, "the handshake is done", || {
        let line = format!("timeout 20 openssl s_client -connect {address}:{TLS_PORT} </dev/null");
        let done = run(from, Command::new("sh").args(["-c", &line]))?;
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

/// The large file of a web pod; returns how long it took.
fn download(from: &Netns, to: IpAddr) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut stream = from.enter(|| TcpStream::connect_timeout(&(to, POD_PORT).into(), PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /10mb HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::with_capacity(2 * FILE);
    stream.read_to_end(&mut answer)?;
    ensure!(answer.len() > FILE, "{} bytes of {FILE}", answer.len());
    Ok(started.elapsed())
}

fn run(inside: &Netns, command: &mut Command) -> anyhow::Result<Output> {
    Ok(inside.enter(|| command.output())??)
}
