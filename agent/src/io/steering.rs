//! Steering: several sockets on one port, and which of them the system gives a datagram to.
//!
//! A program of the classic packet filter, which the system runs for each datagram (Linux 4.5, `SO_ATTACH_REUSEPORT_CBPF`),
//! finds the engine that it belongs to, as far as the first bytes tell:
//!
//! ```text
//! data, cookie     the receiver index at 4, little endian: its upper 24 bits are the slot, modulo the sockets
//! response         the same at 8
//! a relay's Data   the sender's number at 4, big endian, modulo the sockets
//! anything else    the first socket: handshakes that begin, probes, STUN, a relay's other frames
//! ```
//!
//! It is a matter of speed alone: what comes to the wrong engine is handed over ([`mesh_engine::shard`]). So nothing is
//! lost where the system does not take the program; it then chooses by the addresses.

use std::{io, os::fd::AsFd};

use nix::sys::socket::{setsockopt, sockopt};

/// First bytes of what is told apart.
const RESPONSE: u32 = 2;
const COOKIE: u32 = 3;
const DATA: u32 = 4;
const RELAYED: u32 = 0x82;

/// Has the sockets of a port share what comes by what it is. Any of them will do.
///
/// # Errors
/// When the system does not know such programs.
pub(super) fn attach(socket: &impl AsFd, sockets: u32) -> io::Result<()> {
    let mut filter = program(sockets);
    let len = u16::try_from(filter.len()).expect("a program of a few instructions");
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    setsockopt(socket, sockopt::AttachReusePortCbpf, &program).map_err(Into::into)
}

/// Returns the program: its result is the number of a socket. A load beyond the end gives 0, the first.
fn program(sockets: u32) -> Vec<libc::sock_filter> {
    let modulo = [alu(libc::BPF_MOD | libc::BPF_K, sockets), give()];
    let response: Vec<_> = slot(8).into_iter().chain(modulo).collect();
    let data: Vec<_> = slot(4).into_iter().chain(modulo).collect();
    let relayed = [load(libc::BPF_W, 4), modulo[0], modulo[1]];
    // Each test jumps over what stands between it and its part.
    let [to_response, to_data] = [1, 1 + response.len()];
    let to_relayed = to_data + data.len();
    let tests =
        [(RELAYED, 3 + to_relayed), (RESPONSE, 2 + to_response), (COOKIE, 1 + to_data), (DATA, to_data)];
    let first = libc::sock_filter { code: code(libc::BPF_RET | libc::BPF_K), jt: 0, jf: 0, k: 0 };
    let jump = |(value, over): (u32, usize)| libc::sock_filter {
        code: code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K),
        jt: u8::try_from(over).expect("a short program"),
        jf: 0,
        k: value,
    };
    let head = std::iter::once(load(libc::BPF_B, 0)).chain(tests.map(jump)).chain([first]);
    head.chain(response).chain(data).chain(relayed).collect()
}

/// Loads the slot of the receiver index at `at`: three bytes, the last one first.
fn slot(at: u32) -> [libc::sock_filter; 9] {
    let to_x = libc::sock_filter { code: code(libc::BPF_MISC | libc::BPF_TAX), jt: 0, jf: 0, k: 0 };
    let up = alu(libc::BPF_LSH | libc::BPF_K, 8);
    let or = alu(libc::BPF_OR | libc::BPF_X, 0);
    let byte = |offset| load(libc::BPF_B, at + offset);
    [byte(3), up, to_x, byte(2), or, up, to_x, byte(1), or]
}

fn load(size: u32, at: u32) -> libc::sock_filter {
    libc::sock_filter { code: code(libc::BPF_LD | size | libc::BPF_ABS), jt: 0, jf: 0, k: at }
}

fn alu(operation: u32, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: code(libc::BPF_ALU | operation), jt: 0, jf: 0, k: value }
}

fn give() -> libc::sock_filter {
    libc::sock_filter { code: code(libc::BPF_RET | libc::BPF_A), jt: 0, jf: 0, k: 0 }
}

fn code(code: u32) -> u16 {
    u16::try_from(code).expect("codes have 16 bits")
}

#[cfg(test)]
mod tests {
    use std::{io::IoSliceMut, net::UdpSocket, num::NonZeroU32};

    use quinn_udp::RecvMeta;

    use crate::io::{
        offload::Offloads,
        udp::{RECV_BATCH, UdpSockets},
    };

    fn datagram(kind: u8, at: usize, bytes: [u8; 4]) -> Vec<u8> {
        let mut datagram = vec![0; 64];
        datagram[0] = kind;
        datagram[at..at + 4].copy_from_slice(&bytes);
        datagram
    }

    #[test]
    fn the_system_gives_every_datagram_to_the_socket_of_its_engine() {
        for count in [2, 3] {
            let group = UdpSockets::bind_group(0, Offloads::ALL, NonZeroU32::new(count).unwrap()).unwrap();
            let port = group[0].port;
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut cases =
                vec![(vec![1; 148], 0), (vec![4], 0), (vec![], 0), (b"mdisco and so on".to_vec(), 0)];
            for slot in [0, 1, 2, 3, 255, 256, 65_537, 0xff_fffe_u32] {
                for (kind, at) in [(4, 4), (3, 4), (2, 8)] {
                    cases.push((datagram(kind, at, (slot << 8 | 7).to_le_bytes()), slot % count));
                }
                cases.push((datagram(0x82, 4, slot.to_be_bytes()), slot % count));
                cases.push((datagram(0x81, 4, slot.to_be_bytes()), 0));
            }
            for (datagram, expected) in cases {
                sender.send_to(&datagram, ("127.0.0.1", port)).unwrap();
                let got: Vec<_> = (0..count).filter(|shard| received(&group[*shard as usize])).collect();
                assert_eq!(got, [expected], "{datagram:02x?} with {count} sockets");
            }
        }
    }

    /// Whether something came to a socket; over loopback it has when the send returns.
    fn received(sockets: &UdpSockets) -> bool {
        let mut memory = vec![0; RECV_BATCH * 2000];
        let mut chunks = memory.chunks_exact_mut(2000);
        let mut buffers = std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap()));
        let mut meta = [RecvMeta::default(); RECV_BATCH];
        sockets.v4.as_ref().unwrap().try_recv(&mut buffers, &mut meta).is_ok()
    }
}
