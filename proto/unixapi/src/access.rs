//! Who may do what.

use hyper::{HeaderMap, Uri, header};
use tokio::net::unix::UCred;

/// The superuser, and its group.
const ROOT: u32 = 0;

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Root, the daemon's own user, or a process of its own group: may change things.
    Operator,
    /// Anyone else: may read.
    Reader,
}

/// A process, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

impl Caller {
    /// Judges a caller. The group of root counts for nothing: it is the default of many containers, and no
    /// group of the daemon's own.
    pub(crate) fn judge(caller: Credentials, daemon: Credentials) -> Self {
        let same_group = caller.gid == daemon.gid && daemon.gid != ROOT;
        if caller.uid == ROOT || caller.uid == daemon.uid || same_group {
            Self::Operator
        } else {
            Self::Reader
        }
    }
}

impl Credentials {
    /// Returns those of this process.
    #[must_use]
    pub fn own() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }
}

impl From<UCred> for Credentials {
    fn from(credentials: UCred) -> Self {
        Self { uid: credentials.uid(), gid: credentials.gid() }
    }
}

/// Says whether a request can come only from a client that names this host, and not from a web page.
#[must_use]
pub fn is_from(host: &str, headers: &HeaderMap, uri: &Uri) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let is_named =
        hosts.next().is_some_and(|named| named.as_bytes() == host.as_bytes()) && hosts.next().is_none();
    let from_page = headers.contains_key(header::ORIGIN) || headers.contains_key(header::REFERER);
    is_named && !from_page && uri.authority().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "daemon.sock";

    fn judge(caller: (u32, u32), daemon: (u32, u32)) -> Caller {
        let credentials = |(uid, gid)| Credentials { uid, gid };
        Caller::judge(credentials(caller), credentials(daemon))
    }

    #[test]
    fn root_and_the_daemon_change_things_and_others_read() {
        let daemon = (990, 980);
        assert_eq!(judge((0, 0), daemon), Caller::Operator);
        assert_eq!(judge((0, 5), daemon), Caller::Operator);
        assert_eq!(judge((990, 5), daemon), Caller::Operator);
        assert_eq!(judge((1000, 980), daemon), Caller::Operator);
        assert_eq!(judge((1000, 1000), daemon), Caller::Reader);
        assert_eq!(judge((1000, 0), daemon), Caller::Reader);
        assert_eq!(judge((1000, 0), (0, 0)), Caller::Reader, "root's group is not the daemon's");
    }

    #[test]
    fn what_a_web_page_can_send_is_not_ours() {
        let ours = |headers: &[(&str, &str)], uri: &str| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(header::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
            }
            is_from(HOST, &map, &uri.parse().unwrap())
        };
        assert!(ours(&[("host", HOST)], "/v1/nodes"));
        assert!(!ours(&[], "/v1/nodes"));
        assert!(!ours(&[("host", "evil.com")], "/v1/nodes"));
        assert!(!ours(&[("host", HOST), ("host", "evil.com")], "/v1/nodes"));
        assert!(!ours(&[("host", HOST), ("origin", "null")], "/v1/nodes"));
        assert!(!ours(&[("host", HOST), ("referer", "http://evil.com")], "/v1/nodes"));
        assert!(!ours(&[("host", HOST)], "http://evil.com/v1/nodes"));
    }
}
