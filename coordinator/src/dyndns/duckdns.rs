//! What DuckDNS wants to hear, and how it answers (<https://www.duckdns.org/spec.jsp>).
//!
//! ```text
//! GET /update?domains=NAME&token=TOKEN&verbose=true
//!
//! OK                          KO
//! 203.0.113.7
//! 2001:db8::7, or nothing
//! UPDATED or NOCHANGE
//! ```
//!
//! Without `ip=` it takes the IPv4 address that the request comes from.

use zeroize::Zeroizing;

use super::{UpdateError, Updated};

/// Where it is.
pub const ENDPOINT: &str = "https://www.duckdns.org/update";
/// The domain of all its names.
pub const SUFFIX: &str = ".duckdns.org";

/// Longest label of a DNS name (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;

/// One name's update.
pub(super) struct DuckDns<'a> {
    pub(super) domain: &'a str,
    pub(super) token: &'a str,
}

impl DuckDns<'_> {
    /// Returns what stands behind the question mark.
    pub(super) fn query(&self) -> Zeroizing<String> {
        let Self { domain, token } = self;
        Zeroizing::new(format!("domains={domain}&token={token}&verbose=true"))
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
pub(super) fn judge(answer: &str) -> Result<Updated, UpdateError> {
    let mut lines = answer.lines().map(str::trim);
    match lines.next() {
        Some("OK") => {}
        Some("KO") => return Err(UpdateError::Refused),
        _ => return Err(UpdateError::Failed("what answers is not DuckDNS".to_owned())),
    }
    let rest: Vec<_> = lines.collect();
    Ok(Updated {
        addresses: rest.iter().filter_map(|line| line.parse().ok()).collect(),
        changed: rest.contains(&"UPDATED"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_the_specification_has_them() {
        let updated = judge("OK\n203.0.113.7\n\nUPDATED").unwrap();
        assert_eq!(updated, Updated { addresses: vec!["203.0.113.7".parse().unwrap()], changed: true });
        let both = judge("OK\r\n203.0.113.7\r\n2001:db8::7\r\nNOCHANGE\r\n").unwrap();
        assert_eq!((both.addresses.len(), both.changed), (2, false));
        assert_eq!(judge("OK").unwrap(), Updated { addresses: vec![], changed: false });
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
