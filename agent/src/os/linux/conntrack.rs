//! The kernel's table of connections (conntrack), by which NAT and stateful packet filters go.

use std::{fs, path::Path};

/// Where the kernel tells of it.
const DIR: &str = "/proc/sys/net/netfilter";

/// How full the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections of this network namespace.
    pub count: u64,
    /// How many it may have; the kernel has one number for the whole machine.
    pub most: u64,
}

impl Conntrack {
    /// Reads it; `None` where nothing uses one.
    #[must_use]
    pub fn read() -> Option<Self> {
        Self::read_in(Path::new(DIR))
    }

    fn read_in(dir: &Path) -> Option<Self> {
        let number = |name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok();
        let (count, most) = (number("nf_conntrack_count")?, number("nf_conntrack_max")?);
        // 0 is no limit.
        (most > 0).then_some(Self { count, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_numbers_are_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Conntrack::read_in(dir.path()), None);
        fs::write(dir.path().join("nf_conntrack_count"), "262100\n").unwrap();
        assert_eq!(Conntrack::read_in(dir.path()), None);
        fs::write(dir.path().join("nf_conntrack_max"), "262144\n").unwrap();
        assert_eq!(Conntrack::read_in(dir.path()), Some(Conntrack { count: 262_100, most: 262_144 }));
        fs::write(dir.path().join("nf_conntrack_max"), "0\n").unwrap();
        assert_eq!(Conntrack::read_in(dir.path()), None);
    }
}
