//! What happens to the network, whatever mesh is on it.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use mesh_lab::Host;
use mesh_lab::topology::{OBSERVERS, Reach};

use super::overlay::Overlay;
use super::slowest::Slowest;
use super::{Kind, Pair, Sample, out_of_step, progress};

/// The host that moves, where it moves in turns, and whom it talks to.
const MOVES: &str = "macbook";
const SITES: [&str; 4] = ["cafe", "home", "lte", "office"];
const STAYS: &str = "country";
/// The outside addresses of `country`, in turns.
const OUTSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 21), Ipv4Addr::new(198, 51, 100, 20)];
/// The outside ports that a router gives, in turns; the first of them.
const FIRST_PORT: u16 = 40_000;
/// How long a line is dead, in turns: before anything is given up, and long after.
const DEAD: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(6), Duration::from_secs(12)];
/// How long a host may take to find its router, and how often that is looked at.
const USABLE_PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(1);
/// Where the kernel's default route stands in its table, by its destination and mask.
const DEFAULT: &str = "00000000";
/// The flags of a neighbour whose address is known, in the kernel's table (`ATF_COM`).
const COMPLETE: &str = "0x2";
/// For how long nobody says anything before a change that is to be noticed without it.
const SILENCE: Duration = Duration::from_millis(300);

/// Puts a mesh through one kind of change, so many times; also whether the downloads have arrived whole.
///
/// # Errors
/// When the lab fails, or the pair is not quiet again before the next change.
pub(super) fn run(kind: Kind, overlay: &dyn Overlay, trials: usize) -> anyhow::Result<(Vec<Sample>, bool)> {
    let network = overlay.network();
    let pair = match kind {
        Kind::PeerRoam => [STAYS, MOVES],
        Kind::Roam
        | Kind::RebindPort
        | Kind::RebindAddress
        | Kind::Uplink
        | Kind::UdpBlocked
        | Kind::RelayDies
        | Kind::Wake
        | Kind::Dns
        | Kind::ColdStart => [MOVES, STAYS],
    };
    let running = Pair::start(overlay, network, pair)?;
    // Where it is the one behind the NAT that asks.
    let reverse = match kind {
        Kind::RebindPort | Kind::RebindAddress => Some(Pair::start(overlay, network, [STAYS, MOVES])?),
        _ => None,
    };
    overlay.settle(pair)?;
    let mut samples = Vec::new();
    let mut slowest = Slowest::new(kind, overlay.daemons());
    for trial in 0..trials {
        progress(kind, trial, &samples);
        slowest.begin();
        std::thread::sleep(out_of_step(trial));
        let ends: Vec<&Pair<'_>> = std::iter::once(&running).chain(&reverse).collect();
        let asks = ends[trial % ends.len()];
        let is_silent = kind != Kind::Roam && kind != Kind::Uplink;
        for end in &ends {
            end.set_silent(is_silent);
        }
        let before = overlay.look(pair);
        std::thread::sleep(if is_silent { SILENCE } else { Duration::ZERO });
        change(kind, overlay, trial)?;
        if matches!(kind, Kind::Roam | Kind::PeerRoam) {
            wait_usable(network.host(MOVES)?)?;
        }
        let since = (Instant::now(), SystemTime::now());
        asks.probe.set_silent(false);
        let reply = asks.wait(since.0);
        let moved = matches!(kind, Kind::Roam | Kind::PeerRoam);
        let is_easy = matches!(network.reach(MOVES, STAYS)?, Reach::Lan | Reach::Direct);
        let direct = match (before, reply) {
            (Some(before), Some(_)) if moved && is_easy => Some(overlay.wait_direct(pair, &before, since)),
            _ => None,
        };
        let sample = Sample { reply, direct };
        slowest.end(trial, &sample)?;
        samples.push(sample);
        for end in &ends {
            end.set_silent(false);
        }
        overlay.settle(pair)?;
    }
    let mut whole = running.finish();
    if let Some(reverse) = reverse {
        whole &= reverse.finish();
    }
    Ok((samples, whole))
}

/// Makes it happen; when this returns, the network can be used as it is then.
fn change(kind: Kind, overlay: &dyn Overlay, trial: usize) -> anyhow::Result<()> {
    let network = overlay.network();
    match kind {
        Kind::Roam | Kind::PeerRoam => network.move_host(MOVES, SITES[trial % SITES.len()]),
        Kind::RebindPort => {
            let port = FIRST_PORT + u16::try_from(trial % 10_000)?;
            network.rebind(STAYS, overlay.port(), port)
        }
        Kind::RebindAddress => network.set_outside(STAYS, OUTSIDE[trial % OUTSIDE.len()]),
        Kind::Uplink => {
            let site = network.host(MOVES)?.site();
            network.set_connected(&site, false)?;
            std::thread::sleep(DEAD[trial % DEAD.len()]);
            network.set_connected(&site, true)
        }
        Kind::UdpBlocked | Kind::RelayDies | Kind::Wake | Kind::Dns | Kind::ColdStart => {
            anyhow::bail!("{} needs more than a network", kind.name())
        }
    }
}

/// Waits until a host that has been plugged in has found its router: before that nothing of it gets out, though it may
/// have found others on its LAN. A bridge may take a second to notice a new port on a busy machine, and the kernel asks for
/// its router once a second, which no mesh can help.
fn wait_usable(host: &Host) -> anyhow::Result<()> {
    host.netns().enter(|| {
        let deadline = Instant::now() + USABLE_PATIENCE;
        // Has the router asked for, if nobody else has.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        while Instant::now() < deadline {
            socket.send_to(&[0], OBSERVERS[0].to_string() + ":9")?;
            let router = router()?.to_string();
            let known = std::fs::read_to_string("/proc/thread-self/net/arp")?;
            let is_found = |line: &str| {
                let mut fields = line.split_whitespace();
                fields.next() == Some(&router) && fields.nth(1) == Some(COMPLETE)
            };
            if known.lines().any(is_found) {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        anyhow::bail!("{} does not find its router", host.name())
    })?
}

/// The router of the host in whose namespace this is called.
fn router() -> anyhow::Result<Ipv4Addr> {
    let routes = std::fs::read_to_string("/proc/thread-self/net/route")?;
    let router = routes.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, DEFAULT, gateway, _, _, _, _, DEFAULT, ..] = fields[..] else { return None };
        u32::from_str_radix(gateway, 16).ok()
    });
    // The kernel prints the four bytes as a number of this machine's.
    Ok(Ipv4Addr::from(router.context("there is no default route")?.to_ne_bytes()))
}
