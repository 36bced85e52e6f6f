//! What is wanted: of ours beside others, and of our other ways beside the plain one.

use super::{Kind, Load, Metric};
use crate::figure::Budget;

/// What is wanted of us.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    /// Of which of our ways.
    pub of: Kind,
    /// Under which load.
    pub load: Load,
    /// Of which metric.
    pub metric: Metric,
    /// Whose value of the same round it is divided by, if anyone's.
    pub beside: Option<Kind>,
    /// What the median has to keep.
    pub wanted: Budget,
}

/// All goals.
pub const GOALS: [Goal; 13] = {
    use Budget::{AtLeast, AtMost};
    use Kind::{Boringtun, Mesh, MeshInnerV6, MeshOuterV6, MeshPods, WireguardGo};
    const fn goal(load: Load, metric: Metric, beside: Option<Kind>, wanted: Budget) -> Goal {
        Goal { of: Mesh, load, metric, beside, wanted }
    }
    /// One TCP stream in another way, beside the plain one.
    const fn way(of: Kind) -> Goal {
        Goal { of, load: Load::Tcp1, metric: Metric::Received, beside: Some(Mesh), wanted: AtLeast(0.9) }
    }
    [
        goal(Load::Tcp1, Metric::Received, Some(WireguardGo), AtLeast(1.8)),
        goal(Load::Tcp4, Metric::Received, Some(WireguardGo), AtLeast(1.9)),
        goal(Load::Tcp1, Metric::Cpu, Some(WireguardGo), AtMost(0.48)),
        goal(Load::UdpFlood, Metric::Received, Some(WireguardGo), AtLeast(3.5)),
        goal(Load::UdpSmall, Metric::Cpu, Some(Boringtun), AtMost(0.25)),
        goal(Load::UdpSmall, Metric::Loss, None, AtMost(3.0)),
        goal(Load::PingIdle, Metric::RoundTrip, Some(Boringtun), AtMost(1.0)),
        goal(Load::PingLoaded, Metric::RoundTrip, Some(WireguardGo), AtMost(0.45)),
        goal(Load::Tcp4, Metric::Resident, None, AtMost(15.0)),
        goal(Load::UdpFlood, Metric::Resident, None, AtMost(15.0)),
        way(MeshPods),
        way(MeshInnerV6),
        way(MeshOuterV6),
    ]
};
