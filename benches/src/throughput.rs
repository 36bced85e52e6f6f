//! One row of throughput that costs little: one TCP stream, beside the wireguard-go that is at hand.
//!
//! `make bench-wire` measures the rest; see [`crate::wire`].

use std::path::Path;

use anyhow::Context as _;
use mesh_lab::Lab;

use crate::{
    figure::Figure,
    wire::{
        self, Kind, Link, Load, Metric, Plan, Profiling,
        goal::GOALS,
        peers::{self, Peers},
    },
};

/// Few: the figure is a hint, not a verdict.
const PLAN_ROUNDS: usize = 3;
const PLAN_SECONDS: u32 = 3;

/// Measures.
///
/// # Errors
/// When the lab, the binaries or iperf3 fail, or there is no wireguard-go.
pub fn measure(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let program = peers::wireguard_go_at_hand(Path::new(peers::FOLDER))?;
    let peers = Peers { found: vec![program], missing: Vec::new() };
    let plan = Plan {
        rounds: PLAN_ROUNDS,
        seconds: PLAN_SECONDS,
        loads: vec![Load::Tcp1],
        link: Link::Lan,
        ways: Vec::new(),
        profile: Profiling::Off,
    };
    let report = wire::measure(lab, peers, &plan)?;
    let rate = |kind| report.figure(Load::Tcp1, Metric::Received, kind);
    let ratio = GOALS.iter().find(|goal| (goal.load, goal.metric) == (Load::Tcp1, Metric::Received));
    [rate(Kind::Mesh), rate(Kind::WireguardGo), ratio.and_then(|goal| report.judge(goal))]
        .into_iter()
        .map(|figure| figure.with_context(|| format!("not measured: {}", report.failures().join("; "))))
        .collect()
}
