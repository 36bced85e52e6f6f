//! `make bench-roam`: how soon a pair talks again after its network has changed, in the village.
//!
//! Each kind of change is made again and again under traffic, and timed from the moment at which the new network can be
//! used (or the old one no longer can) to the first reply through the tunnel, to a question that was sent after it. A host
//! asks every few milliseconds; what is measured holds that much, and a round trip. Beside it a TCP download goes on
//! through all changes of a kind, and has to arrive whole.
//!
//! | kind | what happens | who asks whom |
//! |---|---|---|
//! | `roam` | `macbook` moves to another LAN, behind a NAT of another type | the one that moves asks |
//! | `peer-roam` | the same, while nobody says anything | the one that stays asks |
//! | `rebind-port` | a NAT forgets its mappings and gives another port; nobody is told | every second time the one behind it asks |
//! | `rebind-address` | the same with another outside address | as above |
//! | `uplink` | a line is dead for some seconds, behind a live link, and comes back | the one behind it |
//! | `udp-blocked` | a site stops letting UDP out | the one behind it |
//! | `relay-dies` | kill -9 of the relay that a hard pair uses; another one is known | both ends are as good |
//! | `wake` | an agent stands still while its host moves, coordinator and relay are restarted, and all NATs forget it | the sleeper |
//! | `dns` | the coordinator, and the relay with it, moves to another address; its record follows | a relayed pair |
//! | `cold-start` | an agent is killed and started while the coordinator is away | the one that starts |
//!
//! The same script runs over nebula, as far as it can follow: see [`nebula`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mesh_lab::traffic::{Download, Probe};
use mesh_lab::{Host, Lab, Network};

mod hosts;
pub mod nebula;
mod overlay;
mod relays;
pub mod report;
mod script;
mod slowest;
mod village;

use overlay::Overlay;
use report::{Budget, Series};

/// Between two questions: what a measurement is too long by at most.
const INTERVAL: Duration = Duration::from_millis(4);
/// How long a reply is waited for before a trial counts as failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// We move.
    Roam,
    /// The peer moves, and we are silent.
    PeerRoam,
    /// A NAT gives another port.
    RebindPort,
    /// A NAT has another address.
    RebindAddress,
    /// A line is dead, and comes back.
    Uplink,
    /// UDP is blocked.
    UdpBlocked,
    /// A relay dies.
    RelayDies,
    /// An agent has slept.
    Wake,
    /// The coordinator has moved.
    Dns,
    /// An agent starts without the coordinator.
    ColdStart,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Roam,
        Self::PeerRoam,
        Self::RebindPort,
        Self::RebindAddress,
        Self::Uplink,
        Self::UdpBlocked,
        Self::RelayDies,
        Self::Wake,
        Self::Dns,
        Self::ColdStart,
    ];
    /// Those that need nothing but a network, so that others can be put through them.
    pub const OF_NETWORK: [Self; 5] =
        [Self::Roam, Self::PeerRoam, Self::RebindPort, Self::RebindAddress, Self::Uplink];

    /// Its name, also on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Roam => "roam",
            Self::PeerRoam => "peer-roam",
            Self::RebindPort => "rebind-port",
            Self::RebindAddress => "rebind-address",
            Self::Uplink => "uplink",
            Self::UdpBlocked => "udp-blocked",
            Self::RelayDies => "relay-dies",
            Self::Wake => "wake",
            Self::Dns => "dns",
            Self::ColdStart => "cold-start",
        }
    }

    /// What the first reply is held against.
    fn budget(self) -> Budget {
        let (p50, p99) = match self {
            Self::Roam | Self::PeerRoam => (Some(150), 500),
            Self::RebindPort | Self::RebindAddress | Self::Uplink | Self::UdpBlocked => (None, 3000),
            Self::RelayDies | Self::ColdStart => (None, 2000),
            Self::Wake => (None, 1000),
            Self::Dns => (None, 10_000),
        };
        Budget { p50: p50.map(Duration::from_millis), p99: Some(Duration::from_millis(p99)) }
    }

    /// How often it is made to happen unless told otherwise: less often where one time takes long.
    #[must_use]
    pub const fn trials(self) -> usize {
        match self {
            Self::Roam | Self::PeerRoam | Self::RebindPort | Self::RebindAddress | Self::ColdStart => 60,
            Self::Uplink | Self::UdpBlocked | Self::RelayDies | Self::Wake | Self::Dns => 20,
        }
    }
}

/// Direct again after a move.
const DIRECT_AGAIN: Budget = Budget { p50: None, p99: Some(Duration::from_millis(1500)) };

/// What one time came to; nothing where there was no reply in time.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    reply: Option<Duration>,
    /// How long it took until both sides sent directly; `None` if that was not to be expected.
    direct: Option<Option<Duration>>,
}

/// Two ends: one asks and downloads, the other one answers.
struct Pair<'a> {
    asks: &'a Host,
    probe: Probe,
    download: Download,
}

impl<'a> Pair<'a> {
    /// Starts both.
    fn start(
        overlay: &dyn Overlay,
        network: &'a Network,
        [asks, answers]: [&str; 2],
    ) -> anyhow::Result<Self> {
        let (asks, answers) = (network.host(asks)?, network.host(answers)?);
        let address = overlay.address(answers.name())?;
        let download = Download::start(asks, (answers, address)).context("the download does not begin")?;
        Ok(Self { asks, probe: Probe::start(asks, (answers, address), INTERVAL)?, download })
    }

    /// Says nothing for a while, or goes on.
    fn set_silent(&self, silent: bool) {
        self.probe.set_silent(silent);
        self.download.set_paused(silent);
    }

    fn wait(&self, since: Instant) -> Option<Duration> {
        let reply = self.probe.wait_reply(since, PATIENCE);
        reply.inspect_err(|error| eprintln!("  {} asks: {error:#}", self.asks.name())).ok()
    }

    /// Ends both; whether the download has arrived whole.
    fn finish(self) -> bool {
        match self.download.finish() {
            Ok(transfer) => transfer.sent == transfer.received,
            Err(error) => {
                eprintln!("  the download of {}: {error:#}", self.asks.name());
                false
            }
        }
    }
}

/// Times this kind over our own mesh.
///
/// # Errors
/// When the lab or the binaries fail. That nobody answers is no error: it is what is measured.
pub fn measure(kind: Kind, trials: usize) -> anyhow::Result<Vec<Series>> {
    let lab = Lab::new("roam")?;
    let (samples, whole) = match kind {
        Kind::Roam | Kind::PeerRoam | Kind::RebindPort | Kind::RebindAddress | Kind::Uplink => {
            let stage = village::start(&lab, &[])?;
            script::run(kind, &stage, trials)?
        }
        Kind::UdpBlocked => village::udp_blocked(&village::start(&lab, &[])?, trials)?,
        Kind::RelayDies => relays::run(&lab, trials)?,
        Kind::Wake => hosts::wake(&village::start(&lab, &[])?, trials)?,
        Kind::Dns => village::dns(&village::start(&lab, &["--punch-rate", "0"])?, trials)?,
        Kind::ColdStart => hosts::cold_start(&village::start(&lab, &[])?, trials)?,
    };
    Ok(series("ours", kind, &samples, whole, kind.budget()))
}

/// Sums samples up: the first reply, and directness where it was looked for.
fn series(who: &str, kind: Kind, samples: &[Sample], whole: bool, budget: Budget) -> Vec<Series> {
    let replies = samples.iter().map(|sample| sample.reply).collect();
    let mut all = vec![Series::new(who, kind.name(), "first reply", replies, budget).with_download(whole)];
    let direct: Vec<_> = samples.iter().filter_map(|sample| sample.direct).collect();
    if !direct.is_empty() {
        let budget = match kind {
            Kind::Roam | Kind::PeerRoam => DIRECT_AGAIN,
            Kind::RebindPort
            | Kind::RebindAddress
            | Kind::Uplink
            | Kind::UdpBlocked
            | Kind::RelayDies
            | Kind::Wake
            | Kind::Dns
            | Kind::ColdStart => Budget::default(),
        };
        all.push(Series::new(who, kind.name(), "direct again", direct, budget));
    }
    all
}

/// A pause that differs from one time to the next, so that no clock of the agents keeps step with the trials: up to a second,
/// by a multiplicative hash of the number.
pub(crate) fn out_of_step(trial: usize) -> Duration {
    const MULTIPLIER: u32 = 2_654_435_761;
    let number = u32::try_from(trial).unwrap_or(u32::MAX).wrapping_mul(MULTIPLIER);
    Duration::from_millis(u64::from(number % 1000))
}

/// Says how it goes, on one line each ten times.
fn progress(kind: Kind, trial: usize, samples: &[Sample]) {
    if trial.is_multiple_of(10) && trial > 0 {
        let slowest = samples.iter().filter_map(|sample| sample.reply).max().unwrap_or_default();
        eprintln!("  {}: {trial} times, {slowest:?} at worst so far", kind.name());
    }
}

/// Addresses by host.
type Addresses = BTreeMap<String, std::net::IpAddr>;
