//! Join tokens: `<id>.<secret>`, 10 and 32 lower-case hex digits.
//!
//! The id names the token and may be logged; the secret proves the right to join. The coordinator stores the id
//! and a hash, the SHA-256 of the whole text, and comparing is done in constant time. The secret has 128 random
//! bits, so that a fast hash is enough.

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
}
