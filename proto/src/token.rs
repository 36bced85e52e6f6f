//! Join tokens: `<id>.<secret>`, 10 and 32 lower-case hex digits.
//!
//! The id names the token and may be logged; the secret proves the right to join. The coordinator stores the id
//! and a hash, the SHA-256 of the whole text, and comparing is done in constant time. The secret has 128 random
//! bits, so that a fast hash is enough.
//!
//! In a Kubernetes cluster a pod's own token can stand in for one ([`ServiceAccountToken`]): the coordinator has the API
//! server check it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Length of a token's id, in hex digits.
pub const TOKEN_ID_LEN: usize = 10;

/// Length of a token's secret, in hex digits: 128 bits.
pub const TOKEN_SECRET_LEN: usize = 32;

/// A join token. `Debug` shows the id alone; [`JoinToken::reveal`] gives the whole.
#[derive(Clone)]
pub struct JoinToken {
    id: String,
    secret: Zeroizing<String>,
}

/// Why a text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a join token has the form <id>.<secret>")]
pub struct InvalidToken;

/// Longest token of a ServiceAccount, in bytes: those of today have 1 to 2 KiB.
pub const MAX_SERVICE_ACCOUNT_TOKEN_LEN: usize = 8 << 10;

/// A token that Kubernetes has given to a pod, as it is: three parts with dots between them (RFC 7515, section 3.1).
/// `Debug` shows nothing of it.
#[derive(Clone)]
pub struct ServiceAccountToken(Zeroizing<String>);

/// Why a text is not a token of a ServiceAccount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a token of a ServiceAccount: three parts in base64url with dots between them")]
pub struct InvalidServiceAccountToken;

/// The SHA-256 of a token's text, as the coordinator stores it; as JSON, 64 hex digits.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct TokenHash(#[serde(with = "hex::serde")] pub [u8; 32]);

impl JoinToken {
    /// Makes a token from random bytes: 5 for the id, 16 for the secret.
    #[must_use]
    pub fn from_random(id: [u8; TOKEN_ID_LEN / 2], secret: [u8; TOKEN_SECRET_LEN / 2]) -> Self {
        Self { id: hex::encode(id), secret: Zeroizing::new(hex::encode(secret)) }
    }

    /// Returns the part that names the token.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Hashes the secret, bound to the id.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash(
            Sha256::new()
                .chain_update(&self.id)
                .chain_update(".")
                .chain_update(&*self.secret)
                .finalize()
                .into(),
        )
    }

    /// Returns the whole token, secret included.
    #[must_use]
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}.{}", self.id, *self.secret))
    }
}

impl ServiceAccountToken {
    /// Returns the whole token.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceAccountToken {
    type Err = InvalidServiceAccountToken;

    fn from_str(text: &str) -> Result<Self, InvalidServiceAccountToken> {
        let is_part = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let fits = text.len() <= MAX_SERVICE_ACCOUNT_TOKEN_LEN;
        if fits && text.split('.').count() == 3 && text.split('.').all(is_part) {
            Ok(Self(Zeroizing::new(text.to_owned())))
        } else {
            Err(InvalidServiceAccountToken)
        }
    }
}

impl fmt::Debug for ServiceAccountToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceAccountToken(..)")
    }
}

impl Serialize for ServiceAccountToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ServiceAccountToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Zeroizing::new(String::deserialize(deserializer)?).parse().map_err(serde::de::Error::custom)
    }
}

impl TokenHash {
    /// Compares in constant time.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let hex_of = |part: &str, len| {
            part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let (id, secret) = text.split_once('.').ok_or(InvalidToken)?;
        if !hex_of(id, TOKEN_ID_LEN) || !hex_of(secret, TOKEN_SECRET_LEN) {
            return Err(InvalidToken);
        }
        Ok(Self { id: id.to_owned(), secret: Zeroizing::new(secret.to_owned()) })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

impl Serialize for JoinToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.reveal())
    }
}

impl<'de> Deserialize<'de> for JoinToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Zeroizing::new(String::deserialize(deserializer)?).parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_prints_and_nothing_else() {
        let token = JoinToken::from_random([1; 5], [2; 16]);
        let text = token.reveal();
        let again: JoinToken = text.parse().unwrap();
        assert!(again.hash().matches(&token.hash()));
        for bad in
            ["", ".", "a.b", &text[1..], &format!("{} ", *text), &text.to_uppercase().replace("01", "AB")]
        {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
        assert!(!format!("{token:?}").contains("0202"));
    }

    #[test]
    fn a_service_account_s_token_is_kept_as_it_is_and_not_shown() {
        let token: ServiceAccountToken = "eyJhbGciOiJSUzI1NiJ9.e30.c2ln-_".parse().unwrap();
        assert_eq!(token.reveal(), "eyJhbGciOiJSUzI1NiJ9.e30.c2ln-_");
        assert_eq!(format!("{token:?}"), "ServiceAccountToken(..)");
        let long = format!("a.b.{}", "c".repeat(MAX_SERVICE_ACCOUNT_TOKEN_LEN));
        for bad in ["", "a", "a.b", "a..c", "a.b.c.d", "a.b.c\n", "a.b.c=", &long] {
            assert!(bad.parse::<ServiceAccountToken>().is_err(), "{bad}");
        }
    }
}
