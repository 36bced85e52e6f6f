//! As much of a TURN client (RFC 8656) as sending channel data to one peer asks for.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use mesh_lab::Host;
use nix::sys::socket::{setsockopt, sockopt};

const MAGIC: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const ALLOCATE: u16 = 0x0003;
const CHANNEL_BIND: u16 = 0x0009;
/// What is added to a request's type for its success.
const SUCCESS: u16 = 0x0100;
const ATTRIBUTE_CHANNEL: u16 = 0x000c;
const ATTRIBUTE_PEER: u16 = 0x0012;
const ATTRIBUTE_TRANSPORT: u16 = 0x0019;
const UDP: u8 = 17;
/// The first of the numbers that a client may give to channels.
const CHANNEL: u16 = 0x4000;
const ANSWER: Duration = Duration::from_secs(5);
/// Between bursts: what iperf3 sends at once is about as much.
const BURST: Duration = Duration::from_millis(1);
const RECEIVE_BUFFER: usize = 16 << 20;
/// What is on the way when the last datagram was sent is waited for.
const LAST: Duration = Duration::from_millis(300);

/// A client with one channel to one peer.
pub(super) struct Client {
    socket: UdpSocket,
    peer: UdpSocket,
}

impl Client {
    /// Makes an allocation and binds a channel to a peer on the other host.
    pub(super) fn connect([from, to]: [&Host; 2], relay: SocketAddr) -> anyhow::Result<Self> {
        let open = |host: &Host| -> anyhow::Result<UdpSocket> {
            let address = host.address();
            let socket = host.netns().enter(|| UdpSocket::bind((address, 0)))??;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            Ok(socket)
        };
        let (socket, peer) = (open(from)?, open(to)?);
        socket.connect(relay)?;
        socket.set_read_timeout(Some(ANSWER))?;
        let client = Self { socket, peer };
        client.request(ALLOCATE, &attribute(ATTRIBUTE_TRANSPORT, &[UDP, 0, 0, 0])).context("allocation")?;
        let channel = attribute(ATTRIBUTE_CHANNEL, &[CHANNEL.to_be_bytes(), [0; 2]].concat());
        let peer = attribute(ATTRIBUTE_PEER, &xor_address(client.peer.local_addr()?));
        client.request(CHANNEL_BIND, &[channel, peer].concat()).context("channel")?;
        Ok(client)
    }

    /// Sends datagrams of a length at a rate and returns how many arrive.
    pub(super) fn send(&self, len: usize, per_second: u32, seconds: u32) -> anyhow::Result<u64> {
        let header = [CHANNEL.to_be_bytes(), u16::try_from(len)?.to_be_bytes()].concat();
        let message = [header, vec![0x5a; len.next_multiple_of(4)]].concat();
        let is_sent = AtomicBool::new(false);
        self.peer.set_read_timeout(Some(LAST))?;
        std::thread::scope(|scope| {
            let receiving = scope.spawn(|| {
                let (mut buffer, mut arrived) = (vec![0; 2048], 0);
                loop {
                    match self.peer.recv(&mut buffer) {
                        Ok(received) => arrived += u64::from(received == len),
                        Err(_) if is_sent.load(Ordering::Relaxed) => return arrived,
                        Err(_) => {}
                    }
                }
            });
            let started = Instant::now();
            let total = per_second * seconds;
            let mut sent = 0;
            while sent < total {
                let due = (started.elapsed().as_secs_f64() * f64::from(per_second)) as u32;
                for _ in sent..due.min(total) {
                    self.socket.send(&message)?;
                }
                sent = due.min(total);
                std::thread::sleep(BURST);
            }
            is_sent.store(true, Ordering::Relaxed);
            receiving.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))
        })
    }

    /// Asks the server for something and waits until it has done it.
    fn request(&self, kind: u16, attributes: &[u8]) -> anyhow::Result<()> {
        let mut message = kind.to_be_bytes().to_vec();
        message.extend(u16::try_from(attributes.len())?.to_be_bytes());
        message.extend(MAGIC);
        // Any number that no other request of this socket has.
        message.extend([0x33; 10]);
        message.extend(kind.to_be_bytes());
        message.extend(attributes);
        self.socket.send(&message)?;
        let mut answer = [0; 2048];
        let len = self.socket.recv(&mut answer).context("no answer")?;
        let said = u16::from_be_bytes([answer[0], answer[1]]);
        ensure!(len >= 20 && said == kind + SUCCESS, "refused: {:02x?}", &answer[..len]);
        Ok(())
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(value.len()).expect("attributes are short");
    let mut attribute = [kind.to_be_bytes(), len.to_be_bytes()].concat();
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// An address as XOR-PEER-ADDRESS has it (RFC 8489, section 14.2).
fn xor_address(address: SocketAddr) -> Vec<u8> {
    let port = address.port() ^ u16::from_be_bytes([MAGIC[0], MAGIC[1]]);
    let mut value = vec![0, 1];
    value.extend(port.to_be_bytes());
    if let IpAddr::V4(v4) = address.ip() {
        value.extend(v4.octets().iter().zip(MAGIC).map(|(octet, magic)| octet ^ magic));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_addresses_masked() {
        assert_eq!(attribute(0x0012, &[1, 2, 3]), [0, 0x12, 0, 3, 1, 2, 3, 0]);
        // RFC 5769, section 2.2.
        let address = "192.0.2.1:32853".parse().unwrap();
        assert_eq!(xor_address(address), [0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
    }
}
