//! What the system's files say of names: `resolv.conf`, `hosts` and `nsswitch.conf`.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use resolv_conf::ScopedIp;

/// Name servers that are asked, as the C library does it.
const MAX_SERVERS: usize = 3;
/// Domains in which a name without a dot is looked for.
const MAX_SEARCH: usize = 6;
/// The port of DNS.
const PORT: u16 = 53;
/// What is longer is none of these files.
const MAX_FILE: u64 = 1 << 20;
/// Sources of `nsswitch.conf` that are asked here already.
const OWN_SOURCES: [&str; 2] = ["files", "dns"];
/// The domain of multicast DNS (RFC 6762).
const LOCAL: &str = "local";

/// Where the files are.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) resolv_conf: PathBuf,
    pub(super) hosts: PathBuf,
    pub(super) nsswitch: PathBuf,
    /// The port of the name servers in it.
    pub(super) port: u16,
}

/// What they say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct System {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    hosts: String,
    has_other_sources: bool,
}

impl Default for Files {
    fn default() -> Self {
        let etc = Path::new("/etc");
        let [resolv_conf, hosts, nsswitch] =
            ["resolv.conf", "hosts", "nsswitch.conf"].map(|name| etc.join(name));
        Self { resolv_conf, hosts, nsswitch, port: PORT }
    }
}

impl Files {
    /// Reads them; what cannot be read is as if it were empty.
    pub(super) fn read(&self) -> System {
        let resolv_conf = read(&self.resolv_conf).unwrap_or_default();
        // Lines that are not understood are left out.
        let (conf, _) = resolv_conf::Config::parse_with_errors(resolv_conf.as_bytes());
        let mut servers: Vec<_> =
            conf.nameservers.iter().filter_map(|server| endpoint(server, self.port)).collect();
        if servers.is_empty() {
            // See resolv.conf(5).
            servers.push((Ipv4Addr::LOCALHOST, self.port).into());
        }
        servers.truncate(MAX_SERVERS);
        System {
            servers,
            search: conf.get_last_search_or_domain().take(MAX_SEARCH).cloned().collect(),
            hosts: read(&self.hosts).unwrap_or_default(),
            // Without such a file it is not known what the system does.
            has_other_sources: read(&self.nsswitch).is_none_or(|text| has_other_sources(&text)),
        }
    }
}

impl System {
    /// Returns the name servers outside the mesh.
    pub(super) fn servers(&self, mesh: &[IpNet]) -> Vec<SocketAddr> {
        let is_inside = |server: &SocketAddr| mesh.iter().any(|range| range.contains(&server.ip()));
        self.servers.iter().copied().filter(|server| !is_inside(server)).collect()
    }

    /// Returns how many name servers there are, wherever they are.
    pub(super) fn server_count(&self) -> usize {
        self.servers.len()
    }

    /// Returns the domains in which a name without a dot is looked for.
    pub(super) fn search(&self) -> &[String] {
        &self.search
    }

    /// Whether the system knows names that neither files nor name servers know.
    pub(super) fn has_other_sources(&self) -> bool {
        self.has_other_sources
    }

    /// Returns the addresses that a person has written down for a name (hosts(5)).
    pub(super) fn written(&self, host: &str) -> Vec<IpAddr> {
        let mut found = Vec::new();
        for line in self.hosts.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
            if words.any(|name| name.eq_ignore_ascii_case(host)) && !found.contains(&address) {
                found.push(address);
            }
        }
        found
    }
}

/// Whether a name is asked for by multicast on the link.
pub(super) fn is_local(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.rsplit_once('.').is_some_and(|(_, last)| last.eq_ignore_ascii_case(LOCAL))
}

/// Reads a file of text, if it is there and not too long.
fn read(path: &Path) -> Option<String> {
    let is_fine = fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_FILE);
    is_fine.then(|| fs::read(path).ok()).flatten().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Where a name server is; `None` if it is on a link that is not there.
fn endpoint(server: &ScopedIp, port: u16) -> Option<SocketAddr> {
    match server {
        ScopedIp::V4(v4) => Some((*v4, port).into()),
        ScopedIp::V6(v6, None) => Some((*v6, port).into()),
        ScopedIp::V6(v6, Some(link)) => {
            let index = link.parse().ok().or_else(|| nix::net::if_::if_nametoindex(link.as_str()).ok())?;
            Some(SocketAddrV6::new(*v6, port, 0, index).into())
        }
    }
}

/// Reads the sources of host names; what stands in brackets is about what comes before (nsswitch.conf(5)).
fn has_other_sources(text: &str) -> bool {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let Some(sources) = lines.filter_map(|line| line.strip_prefix("hosts:")).next_back() else {
        return false;
    };
    let mut is_action = false;
    let mut has = false;
    for word in sources.split_whitespace() {
        is_action |= word.starts_with('[');
        has |= !is_action && !OWN_SOURCES.contains(&word);
        is_action &= !word.ends_with(']');
    }
    has
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(resolv_conf: &str, hosts: &str) -> System {
        let dir = tempfile::tempdir().unwrap();
        let files = Files {
            resolv_conf: dir.path().join("resolv.conf"),
            hosts: dir.path().join("hosts"),
            nsswitch: dir.path().join("nsswitch.conf"),
            port: PORT,
        };
        fs::write(&files.resolv_conf, resolv_conf).unwrap();
        fs::write(&files.hosts, hosts).unwrap();
        fs::write(&files.nsswitch, "hosts: files dns\n").unwrap();
        files.read()
    }

    #[test]
    fn name_servers_are_read_as_they_are_written() {
        let text = "# by NetworkManager\nsearch lan example.org\nnameserver 192.0.2.1\nnonsense\n\
                    nameserver 2001:db8::1\nnameserver fe80::1%lo\nnameserver 192.0.2.4\noptions ndots:5\n";
        let system = system(text, "");
        let servers: Vec<_> = system.servers(&[]).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%1]:53"]);
        assert_eq!(system.search(), ["lan", "example.org"]);
        let gone = super::endpoint(&ScopedIp::V6("fe80::1".parse().unwrap(), Some("gone0".to_owned())), 53);
        assert_eq!(gone, None, "a link that is not there");
    }

    #[test]
    fn a_name_server_inside_the_mesh_is_passed_over() {
        let mesh = ["10.90.0.0/16".parse().unwrap(), "fd00:1::/48".parse().unwrap()];
        let system = system("nameserver 10.90.0.1\nnameserver fd00:1::1\nnameserver 192.0.2.1\n", "");
        assert_eq!(system.servers(&mesh), ["192.0.2.1:53".parse().unwrap()]);
        assert_eq!(system.server_count(), 3);
    }

    #[test]
    fn without_a_name_server_this_host_is_one() {
        for text in ["", "search lan\n", "nameserver nonsense\n"] {
            assert_eq!(system(text, "").servers(&[]), ["127.0.0.1:53".parse().unwrap()], "{text:?}");
        }
        let nowhere = Files {
            resolv_conf: "/nowhere/resolv.conf".into(),
            hosts: "/nowhere/hosts".into(),
            nsswitch: "/nowhere/nsswitch.conf".into(),
            port: PORT,
        };
        assert!(nowhere.read().has_other_sources());
    }

    #[test]
    fn what_is_written_down_is_found() {
        let hosts = "127.0.0.1 localhost\n# 192.0.2.9 pi.example\n192.0.2.1\tother Pi.example # mine\n\
                     2001:db8::1 pi.example\nnonsense pi.example\n";
        let system = system("", hosts);
        let want: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(system.written("pi.example"), want);
        assert!(system.written("example").is_empty() && system.written("mine").is_empty());
    }

    #[test]
    fn sources_of_the_system_are_told_apart() {
        for (text, want) in [
            ("hosts: files dns\n", false),
            ("passwd: files sss\n", false),
            ("hosts:\tfiles [NOTFOUND=return  UNAVAIL=continue] dns # mdns\n", false),
            ("hosts: files mdns4_minimal [NOTFOUND=return] dns\n", true),
            ("hosts: mymachines resolve [!UNAVAIL=return] files myhostname dns\n", true),
        ] {
            assert_eq!(has_other_sources(text), want, "{text:?}");
        }
    }

    #[test]
    fn names_of_a_link_are_known() {
        assert!(is_local("pi.local") && is_local("a.pi.LOCAL."));
        assert!(!is_local("local") && !is_local("pi.local.example") && !is_local("pi.mylocal"));
    }
}
