//! What stands in a host's namespace, so that before and after can be compared.

use std::collections::BTreeSet;

use anyhow::Context as _;

use super::Host;
use crate::netns;

/// Every kind of thing that a daemon can leave in a namespace, a line each. Statistics and times are left out.
const SCRIPT: &str = "
for tool in ip ss nft; do command -v $tool >/dev/null; done
ip -o link show | sed 's/^/link /'
ip -o addr show | sed 's/^/address /'
for v in 4 6; do
  ip -$v route show table all | sed \"s/^/route$v /\"
  ip -$v rule show | sed \"s/^/rule$v /\"
done
ss -Hlntu | awk '{ print \"socket\", $1, $5 }'
nft list ruleset | sed 's/^/nft /'
";

/// The interfaces, addresses, routes, rules, sockets, filters and processes of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    host: String,
    lines: BTreeSet<String>,
}

impl Footprint {
    /// What is there now and was not at the time of another footprint of the same host.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        let added = self.lines.difference(&before.lines);
        added.map(|line| format!("{}: {line}", self.host)).collect()
    }
}

impl Host {
    /// Looks at everything that a daemon can leave here.
    ///
    /// # Errors
    ///
    /// If the tools that show it cannot be run.
    pub fn footprint(&self) -> anyhow::Result<Footprint> {
        let finished = self.command("sh").args(["-euc", SCRIPT]).output()?.success();
        let finished = finished.with_context(|| format!("footprint of {}", self.name()))?;
        let mut lines: BTreeSet<String> =
            finished.stdout.lines().map(|line| line.trim_end().to_owned()).collect();
        for pid in netns::processes(self.netns().name()) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            lines.insert(format!("process {pid} {}", name.trim()));
        }
        Ok(Footprint { host: self.name().to_owned(), lines })
    }
}
