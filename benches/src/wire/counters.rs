//! What the daemons and the kernel have counted so far.

use anyhow::Context as _;

use super::{
    Tunnel,
    stage::{IPERF_PORT, Stage},
};
use crate::procfs::{self, CpuTime};

/// The kernel's tables, as a thread inside a namespace sees them.
const TABLES: &str = "/proc/thread-self/net";
/// `dev`: which number after an interface's name counts what was dropped on the way out.
const DEV_TX_DROPPED: usize = 11;
/// `udp`: the last column counts what a socket dropped.
const UDP_MIN_COLUMNS: usize = 13;

/// Sums over both ends of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Counters {
    /// CPU time of the daemons.
    pub cpu: CpuTime,
    /// Packets dropped at the queues of the interfaces.
    pub tun: u64,
    /// Datagrams dropped at full sockets, iperf3's aside.
    pub sockets: u64,
    /// Datagrams dropped at full sockets that are iperf3's: those that no living socket has counted.
    pub receiver: u64,
}

impl Counters {
    /// Reads them.
    ///
    /// # Errors
    /// When a daemon or an interface is gone.
    pub fn read(stage: &Stage, tunnel: &Tunnel) -> anyhow::Result<Self> {
        let mut sum = Self::default();
        for end in [0, 1] {
            let read = |table: &str| std::fs::read_to_string(format!("{TABLES}/{table}"));
            let tables = stage.hosts(tunnel)[end].netns().enter(|| {
                let names = ["dev", "udp", "udp6", "snmp", "snmp6"];
                names.into_iter().map(read).collect::<Result<Vec<_>, _>>()
            })??;
            let [dev, udp, udp6, snmp, snmp6] = tables.as_slice() else { continue };
            let sockets = socket_drops(udp) + socket_drops(udp6);
            let all = snmp_rcvbuf_errors(snmp).context("snmp has no RcvbufErrors")?
                + snmp6_rcvbuf_errors(snmp6).unwrap_or_default();
            sum.tun += tx_dropped(dev, &tunnel.interfaces[end])
                .with_context(|| format!("there is no {}", tunnel.interfaces[end]))?;
            sum.sockets += sockets;
            sum.receiver += all.saturating_sub(sockets);
            sum.cpu = sum.cpu + procfs::cpu_time(tunnel.daemons[end])?;
        }
        Ok(sum)
    }

    /// Returns what was added since an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            cpu: self.cpu - earlier.cpu,
            tun: self.tun.saturating_sub(earlier.tun),
            sockets: self.sockets.saturating_sub(earlier.sockets),
            receiver: self.receiver.saturating_sub(earlier.receiver),
        }
    }
}

fn tx_dropped(dev: &str, interface: &str) -> Option<u64> {
    let numbers = dev.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))?;
    numbers.split_whitespace().nth(DEV_TX_DROPPED)?.parse().ok()
}

/// Sums the drops of all sockets but iperf3's.
fn socket_drops(udp: &str) -> u64 {
    let of = |line: &str| -> Option<u64> {
        let columns: Vec<_> = line.split_whitespace().collect();
        let (_, port) = columns.get(1)?.rsplit_once(':')?;
        let is_iperf = u16::from_str_radix(port, 16).ok()? == IPERF_PORT;
        if columns.len() < UDP_MIN_COLUMNS || is_iperf { None } else { columns.last()?.parse().ok() }
    };
    udp.lines().skip(1).filter_map(of).sum()
}

fn snmp_rcvbuf_errors(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp:"));
    let column = lines.next()?.split_whitespace().position(|name| name == "RcvbufErrors")?;
    lines.next()?.split_whitespace().nth(column)?.parse().ok()
}

fn snmp6_rcvbuf_errors(snmp6: &str) -> Option<u64> {
    let value = snmp6.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors"))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
 mesh0: 2456680    4148    0    3    0     0          0         0  2456680    4148    0   77    0     0       0          0
";

    #[test]
    fn the_tun_queue_is_the_interfaces_way_out() {
        assert_eq!(tx_dropped(DEV, "mesh0"), Some(77));
        assert_eq!(tx_dropped(DEV, "mesh"), None);
    }

    #[test]
    fn sockets_count_for_themselves() {
        let udp = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
 9181: 00000000:CABC 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 71711 2 0000000000000000 12
 9222: 00000000:1451 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 71712 2 0000000000000000 500
";
        assert_eq!(socket_drops(udp), 12, "0x1451 is iperf3's port");
    }

    #[test]
    fn the_kernels_sums_are_found_by_name() {
        let snmp = "\
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
Udp: 323241 89 41523 365240 41524 0 0 0 0
UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
UdpLite: 0 0 0 0 0 0 0 0 0
";
        assert_eq!(snmp_rcvbuf_errors(snmp), Some(41_524));
        assert_eq!(snmp6_rcvbuf_errors("Udp6InErrors   \t1\nUdp6RcvbufErrors    \t9\n"), Some(9));
    }
}
