//! What DuckDNS wants to hear, and how it answers (<https://www.duckdns.org/spec.jsp>).
//!
//! ```text
//! GET /update?domains=NAME&token=TOKEN&verbose=true            it sees the IPv4 address that the request comes from
//! GET /update?...&ip=203.0.113.7&ipv6=2001:db8::7              both are said: with ipv6= it sees nothing by itself
//! GET /update?...&clear=true                                   both are taken away
//!
//! OK                                                           KO
//! 203.0.113.7, or nothing
//! 2001:db8::7, or nothing
//! UPDATED or NOCHANGE
//! ```
//!
//! So an IPv6 address is said in a second request, with the IPv4 address that the first one was answered with, and only
//! where the record has another one. One that is no more can only be taken away with the other, which is put back at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zeroize::Zeroizing;

use super::{Ask, Token, UpdateError, Updated, Wanted};

/// Where it is.
pub const ENDPOINT: &str = "https://www.duckdns.org/update";
/// The domain of all its names.
pub const SUFFIX: &str = ".duckdns.org";

/// Longest label of a DNS name (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;

/// One name there.
pub(super) struct DuckDns<'a> {
    pub(super) domain: &'a str,
    pub(super) token: &'a Token,
}

impl DuckDns<'_> {
    /// Has the name point here.
    ///
    /// # Errors
    /// When it was not reached, or does not take it.
    pub(super) async fn update(&self, ask: &impl Ask, wanted: Wanted) -> Result<Updated, UpdateError> {
        let seen = self.ask(ask, "").await?;
        match (wanted, seen.ipv6) {
            (Wanted::At(ipv6), stored) if stored != Some(ipv6) => {
                let ipv4 = seen.ipv4.map(|ipv4| format!("&ip={ipv4}")).unwrap_or_default();
                let updated = self.ask(ask, &format!("{ipv4}&ipv6={ipv6}")).await?;
                Ok(Updated { changed: seen.changed || updated.changed, ..updated })
            }
            (Wanted::None, Some(_)) => {
                self.ask(ask, "&clear=true").await?;
                Ok(Updated { changed: true, ..self.ask(ask, "").await? })
            }
            (Wanted::At(_) | Wanted::None | Wanted::Any, _) => Ok(seen),
        }
    }

    async fn ask(&self, ask: &impl Ask, more: &str) -> Result<Updated, UpdateError> {
        let Self { domain, token } = self;
        let query = format!("domains={domain}&token={}&verbose=true{more}", token.expose());
        judge(&ask.get(&Zeroizing::new(query)).await.map_err(UpdateError::Failed)?)
    }
}

/// Reads a name as it is in the settings: with the domain or without it.
///
/// # Errors
/// When it is no name there.
pub fn parse_domain(text: &str) -> Result<String, String> {
    let label = text.strip_suffix(SUFFIX).unwrap_or(text);
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if label.is_empty() || label.len() > MAX_LABEL || !label.bytes().all(is_fine) {
        return Err(format!("{text:?} is not a name such as home{SUFFIX}"));
    }
    Ok(label.to_ascii_lowercase())
}

/// Reads an answer.
fn judge(answer: &str) -> Result<Updated, UpdateError> {
    let mut lines = answer.lines().map(str::trim);
    match lines.next() {
        Some("OK") => {}
        Some("KO") => return Err(UpdateError::Refused),
        _ => return Err(UpdateError::Failed("what answers is not DuckDNS".to_owned())),
    }
    let rest: Vec<_> = lines.collect();
    // Either may stand in either line: ip= takes both.
    let addresses = || rest.iter().filter_map(|line| line.parse::<IpAddr>().ok());
    let ipv4 = addresses().find_map(|address| match address {
        IpAddr::V4(v4) => Some::<Ipv4Addr>(v4),
        IpAddr::V6(_) => None,
    });
    let ipv6 = addresses().find_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some::<Ipv6Addr>(v6),
    });
    Ok(Updated { ipv4, ipv6, changed: rest.contains(&"UPDATED") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_the_specification_has_them() {
        let (v4, v6) = ("203.0.113.7".parse().unwrap(), "2001:db8::7".parse().unwrap());
        let judge = |text| judge(text).unwrap();
        let want = |ipv4, ipv6, changed| Updated { ipv4, ipv6, changed };
        assert_eq!(judge("OK\n203.0.113.7\n\nUPDATED"), want(Some(v4), None, true));
        assert_eq!(
            judge("OK\r\n203.0.113.7\r\n2001:db8::7\r\nNOCHANGE\r\n"),
            want(Some(v4), Some(v6), false)
        );
        assert_eq!(judge("OK\n\n2001:db8::7\nUPDATED"), want(None, Some(v6), true));
        assert_eq!(judge("OK\n\n\nUPDATED"), want(None, None, true));
        assert_eq!(judge("OK"), want(None, None, false));
    }

    #[test]
    fn what_is_no_answer_is_told_from_a_refusal() {
        assert!(matches!(judge("KO"), Err(UpdateError::Refused)));
        for other in ["", "<html>OK</html>", "OKAY", "ok"] {
            assert!(matches!(judge(other), Err(UpdateError::Failed(_))), "{other:?}");
        }
    }

    #[test]
    fn names_may_be_given_with_their_domain() {
        for text in ["pi", "pi.duckdns.org", "PI"] {
            assert_eq!(parse_domain(text).unwrap(), "pi");
        }
        for bad in ["", ".duckdns.org", "a.b", "a&token=x", "ä", "pi.example"] {
            assert!(parse_domain(bad).is_err(), "{bad:?}");
        }
    }
}
