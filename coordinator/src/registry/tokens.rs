//! Join tokens: made, checked, consumed.

use std::time::Duration;

use mesh_proto::token::{JoinToken, TokenHash};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{
    RegistryError,
    draft::{Decision, Draft, parse},
    keys,
};
use crate::store::Revision;

/// The longest time that a token can be valid: a year. What is stolen must not work for ever.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a new token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSpec {
    /// For how long it is valid.
    pub ttl: Duration,
    /// How many nodes may join with it.
    pub uses: u32,
    /// What these nodes are tagged with.
    pub tags: Vec<String>,
}

/// A token as it is stored. It is deleted when it is used up.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TokenRecord {
    hash: TokenHash,
    #[serde(with = "time::serde::rfc3339")]
    expires: OffsetDateTime,
    uses_left: u32,
    #[serde(default)]
    tags: Vec<String>,
}

/// Stores a new token, and forgets those that have expired.
pub(super) struct Create {
    pub(super) token: JoinToken,
    pub(super) spec: TokenSpec,
    pub(super) now: OffsetDateTime,
}

impl TokenSpec {
    /// Checks that such a token makes sense.
    pub(super) fn check(&self) -> Result<(), RegistryError> {
        if self.uses == 0 {
            return Err(RegistryError::TokenSpec("a join token needs at least one use"));
        }
        if self.ttl.is_zero() || self.ttl > MAX_TTL {
            return Err(RegistryError::TokenSpec("a join token is valid for one second to one year"));
        }
        if self.tags.iter().any(|tag| !valid_tag(tag)) {
            return Err(RegistryError::TokenSpec("a tag is 1 to 63 of a-z, 0-9 and '-' (RFC 1123)"));
        }
        Ok(())
    }
}

impl TokenRecord {
    /// Says whether the token admits a node now. The hash is compared in constant time, and whatever else
    /// is wrong with the token.
    fn admits(&self, hash: &TokenHash, now: OffsetDateTime) -> bool {
        let matches = self.hash.matches(hash);
        matches && self.uses_left > 0 && now < self.expires
    }
}

/// Makes a random token.
pub(super) fn generate() -> Result<JoinToken, RegistryError> {
    let (mut id, mut secret) = ([0; 5], [0; 16]);
    getrandom::fill(&mut id)
        .and_then(|()| getrandom::fill(&mut secret))
        .map_err(RegistryError::Randomness)?;
    Ok(JoinToken::from_random(id, secret))
}

impl Decision for Create {
    type Output = ();

    async fn decide(&self, draft: &mut Draft<'_>) -> Result<(), RegistryError> {
        for entry in draft.peek_range(keys::TOKENS).await?.entries {
            if parse::<TokenRecord>(&entry.key, &entry.value)?.expires <= self.now {
                draft.delete(entry.key);
            }
        }
        let record = TokenRecord {
            hash: self.token.hash(),
            expires: self.now + self.spec.ttl,
            uses_left: self.spec.uses,
            tags: self.spec.tags.clone(),
        };
        draft.put(keys::token(self.token.id()), &record)
    }
}

/// Uses a token once and returns the tags that it gives. `not_before` refuses tokens that were made before
/// that revision.
pub(super) async fn consume(
    draft: &mut Draft<'_>,
    token: &JoinToken,
    not_before: Revision,
    now: OffsetDateTime,
) -> Result<Vec<String>, RegistryError> {
    let key = keys::token(token.id());
    let found = draft.find::<TokenRecord>(&key).await?.ok_or(RegistryError::Token)?;
    let mut record = found.value;
    if !record.admits(&token.hash(), now) || found.create_revision < not_before {
        return Err(RegistryError::Token);
    }
    record.uses_left -= 1;
    if record.uses_left == 0 {
        draft.delete(key);
    } else {
        draft.put(key, &record)?;
    }
    Ok(record.tags)
}

/// Tags are written as names are.
fn valid_tag(tag: &str) -> bool {
    tag.parse::<mesh_proto::name::NodeName>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_judged_by_hash_uses_and_time() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let hash = TokenHash([1; 32]);
        let record =
            |uses_left| TokenRecord { hash, expires: now + Duration::from_secs(60), uses_left, tags: vec![] };
        assert!(record(1).admits(&hash, now));
        assert!(record(1).admits(&hash, now + Duration::from_millis(59_999)));
        assert!(!record(1).admits(&hash, now + Duration::from_secs(60)));
        assert!(!record(0).admits(&hash, now));
        assert!(!record(1).admits(&TokenHash([2; 32]), now));
    }

    #[test]
    fn senseless_tokens_are_refused() {
        let spec = TokenSpec { ttl: Duration::from_secs(1), uses: 1, tags: vec!["gpu".to_owned()] };
        assert!(spec.check().is_ok());
        for bad in [
            TokenSpec { uses: 0, ..spec.clone() },
            TokenSpec { ttl: Duration::ZERO, ..spec.clone() },
            TokenSpec { ttl: MAX_TTL + Duration::from_secs(1), ..spec.clone() },
            TokenSpec { tags: vec!["a b".to_owned()], ..spec.clone() },
        ] {
            assert!(matches!(bad.check(), Err(RegistryError::TokenSpec(_))), "{bad:?}");
        }
    }
}
