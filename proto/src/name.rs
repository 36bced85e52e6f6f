//! Node names: RFC 1123 labels, and nothing else.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

/// Longest label (RFC 1123, section 2.1; RFC 1035, section 2.3.4).
pub const MAX_NAME_LEN: usize = 63;

/// The name of a node: 1 to 63 of `a-z`, `0-9` and `-`, neither first nor last of which is `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct NodeName(String);

/// Why a text is not a node name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a node name is 1 to {MAX_NAME_LEN} of a-z, 0-9 and '-', with no '-' at either end (RFC 1123)")]
pub struct InvalidName;

impl NodeName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let valid = (1..=MAX_NAME_LEN).contains(&text.len())
            && text.bytes().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidName) }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rfc_1123_labels_pass() {
        for good in ["pi", "home-a", "0", "a".repeat(63).as_str()] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "../x", "a\n", "ä", "%n", long.as_str()] {
            assert_eq!(bad.parse::<NodeName>(), Err(InvalidName), "{bad}");
        }
    }
}
