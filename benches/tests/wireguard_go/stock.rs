//! wireguard-go on a host of the lab, set up and asked with `wg`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::Context as _;
use mesh_engine::config::PeerConfig;
use mesh_lab::{Host, Process, mesh::wait_until, nat::probe::socket_in};
use mesh_proto::{key::PublicKey, netmap::NodeId};

use crate::{STOCK, peer::Peer};

/// Where wireguard-go listens at first.
pub(crate) const PORT: u16 = 51_820;
/// Where the UDP socket behind wireguard-go listens.
pub(crate) const SERVICE: u16 = 9000;
/// Between two echo requests of [`Stock::ping`].
pub(crate) const PING_INTERVAL: Duration = Duration::from_millis(200);
/// For the machine's busiest moments.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running wireguard-go, and a UDP socket on its inside that sends back what it gets.
pub(crate) struct Stock<'a> {
    host: &'a Host,
    public_key: PublicKey,
    service: UdpSocket,
    _process: Process,
}

/// What `ping` has counted.
pub(crate) struct Pings {
    pub(crate) received: u32,
    /// Replies whose bytes are not those of the request.
    pub(crate) damaged: usize,
}

impl<'a> Stock<'a> {
    pub(crate) fn start(host: &'a Host) -> anyhow::Result<Self> {
        let process = host.command("wireguard-go").args(["-f", "wg0"]).spawn("wireguard-go")?;
        let script = format!(
            "umask 077; wg genkey > \"$0\"; wg set wg0 listen-port {PORT} private-key \"$0\"; rm \"$0\""
        );
        let key_file = std::env::temp_dir().join(format!("mesh-wggo-{}.key", std::process::id()));
        wait_until(PATIENCE, "wireguard-go takes its configuration", || {
            Ok(host.command("sh").args(["-ec", &script]).arg(&key_file).output()?.success().is_ok())
        })?;
        let shown = host.command("wg").args(["show", "wg0", "public-key"]).output()?.success()?.stdout;
        host.netns().ip(&format!(
            "address add {STOCK}/24 dev wg0\naddress add fd5e:ed::2/64 dev wg0 nodad\nlink set wg0 up\n"
        ))?;
        let service = socket_in(host.netns(), SocketAddrV4::new(STOCK, SERVICE))?;
        Ok(Self { host, public_key: shown.trim().parse()?, service, _process: process })
    }

    /// How an engine is told of it.
    pub(crate) fn peer_config(&self, id: u32, address: Ipv4Addr) -> PeerConfig {
        let allowed_ips = vec![IpAddr::from(address).into(), "fd5e:ed::2/128".parse().unwrap()];
        PeerConfig { id: NodeId(id), public_key: self.public_key, allowed_ips }
    }

    /// Tells it of an engine, and where to reach it if it shall begin.
    pub(crate) fn add_peer(&self, peer: &Peer, endpoint: Option<SocketAddr>) -> anyhow::Result<()> {
        let allowed: Vec<String> = peer.addresses().iter().map(ToString::to_string).collect();
        let mut args = vec!["peer".to_owned(), peer.public_key().to_string()];
        args.extend(["allowed-ips".to_owned(), allowed.join(",")]);
        if let Some(endpoint) = endpoint {
            args.extend(["endpoint".to_owned(), endpoint.to_string()]);
        }
        self.wg_set(&args)
    }

    /// Moves it to another port.
    pub(crate) fn set_port(&self, port: u16) -> anyhow::Result<()> {
        self.wg_set(&["listen-port".to_owned(), port.to_string()])
    }

    /// When the latest handshake with a peer was, in seconds since 1970.
    pub(crate) fn handshake(&self, peer: PublicKey) -> anyhow::Result<u64> {
        Ok(self.show(peer, "latest-handshakes")?.parse()?)
    }

    /// Where it sees a peer.
    pub(crate) fn endpoint(&self, peer: PublicKey) -> anyhow::Result<SocketAddr> {
        Ok(self.show(peer, "endpoints")?.parse()?)
    }

    /// Has the host send echo requests of this payload, five a second, and compare the replies.
    pub(crate) fn ping(&self, to: IpAddr, count: u32, payload: usize) -> anyhow::Result<Pings> {
        let finished = self
            .host
            .command("ping")
            .args([
                "-n",
                "-i",
                &PING_INTERVAL.as_secs_f64().to_string(),
                "-W",
                "5",
                "-M",
                "do",
                "-c",
                &count.to_string(),
            ])
            .args(["-s", &payload.to_string(), &to.to_string()])
            .timeout(PING_INTERVAL * count + PATIENCE)
            .output()?;
        let (_, after) = finished.stdout.split_once("packets transmitted, ").context("ping says nothing")?;
        let received = after.split_whitespace().next().context("ping counts nothing")?.parse()?;
        Ok(Pings { received, damaged: finished.stdout.matches("wrong data byte").count() })
    }

    /// Takes one datagram that came out of the tunnel and sends it back.
    pub(crate) fn serve_one(&self) -> anyhow::Result<Vec<u8>> {
        let mut buffer = [0; 2000];
        let (length, from) = self.service.recv_from(&mut buffer)?;
        self.service.send_to(&buffer[..length], from)?;
        Ok(buffer[..length].to_vec())
    }

    fn wg_set(&self, args: &[String]) -> anyhow::Result<()> {
        self.host.command("wg").args(["set", "wg0"]).args(args).output()?.success().map(drop)
    }

    /// A peer's column of `wg show wg0 WHAT`.
    fn show(&self, peer: PublicKey, what: &str) -> anyhow::Result<String> {
        let shown = self.host.command("wg").args(["show", "wg0", what]).output()?.success()?.stdout;
        let key = peer.to_string();
        let line = shown.lines().find_map(|line| line.strip_prefix(&key));
        Ok(line.with_context(|| format!("wg shows no {what} of {key}"))?.trim().to_owned())
    }
}
