//! Public keys and the pin of the coordinator's key.
//!
//! A node has two key pairs: an Ed25519 *node key* (who it is to the coordinator) and an X25519 *WireGuard
//! key* (who it is to peers). Only their public halves are wire types. The coordinator has one Ed25519 key;
//! agents pin the SHA-256 of its SubjectPublicKeyInfo, as kubeadm's `--discovery-token-ca-cert-hash` does.
//!
//! The text forms are those of JSON, of commands and of `Debug`. Hex digits are written in lower case and read
//! in either; base64 is the standard alphabet with padding. Any 32 bytes are accepted: whether they are a point
//! of the curve is for the code that uses them to find out.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// Length in bytes of every key in this module.
pub const KEY_LEN: usize = 32;

/// DER prefix of an Ed25519 SubjectPublicKeyInfo (RFC 8410, section 4): the 32 key bytes follow it.
const ED25519_SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why a text is not a key or a pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    /// The text is not of the expected encoding.
    #[error("not {0}")]
    Encoding(&'static str),
    /// The decoded key has the wrong length.
    #[error("a key has {KEY_LEN} bytes, this one has {0}")]
    Length(usize),
}

/// An Ed25519 public key: the identity of a node towards the coordinator. Its text form is 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey(pub [u8; KEY_LEN]);

/// An X25519 public key: the identity of a node towards its peers. Its text form is WireGuard's base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; KEY_LEN]);

/// The SHA-256 of a coordinator's SubjectPublicKeyInfo. Its text form is `sha256:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPin(pub [u8; KEY_LEN]);

impl NodeKey {
    /// Encodes the key as a DER SubjectPublicKeyInfo (RFC 8410), the form TLS raw public keys have.
    #[must_use]
    pub fn to_spki(&self) -> Vec<u8> {
        [&ED25519_SPKI_PREFIX[..], &self.0].concat()
    }

    /// Reads the key from a DER SubjectPublicKeyInfo; `None` unless it is exactly an Ed25519 key.
    #[must_use]
    pub fn from_spki(spki: &[u8]) -> Option<Self> {
        let key = spki.strip_prefix(&ED25519_SPKI_PREFIX[..])?;
        Some(Self(key.try_into().ok()?))
    }
}

impl KeyPin {
    /// Computes the pin of a DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn of_spki(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Display for KeyPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl FromStr for NodeKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        from_hex(text).map(Self)
    }
}

impl FromStr for PublicKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = STANDARD.decode(text).map_err(|_| ParseKeyError::Encoding("base64"))?;
        let len = bytes.len();
        bytes.try_into().map(Self).map_err(|_| ParseKeyError::Length(len))
    }
}

impl FromStr for KeyPin {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digest = text.strip_prefix("sha256:").ok_or(ParseKeyError::Encoding("sha256:HEX"))?;
        from_hex(digest).map(Self)
    }
}

fn from_hex(text: &str) -> Result<[u8; KEY_LEN], ParseKeyError> {
    let bytes = hex::decode(text).map_err(|_| ParseKeyError::Encoding("hexadecimal"))?;
    let len = bytes.len();
    bytes.try_into().map_err(|_| ParseKeyError::Length(len))
}

/// Implements `Debug` and serde as the text form.
macro_rules! text_traits {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

text_traits!(NodeKey, PublicKey, KeyPin);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_round_trip() {
        let node = NodeKey([7; 32]);
        let public = PublicKey([8; 32]);
        let pin = KeyPin::of_spki(&node.to_spki());
        assert_eq!(node.to_string().parse(), Ok(node));
        assert_eq!(public.to_string().parse(), Ok(public));
        assert_eq!(pin.to_string().parse(), Ok(pin));
        assert_eq!("sha256:00".parse::<KeyPin>(), Err(ParseKeyError::Length(1)));
        assert_eq!("00".parse::<KeyPin>(), Err(ParseKeyError::Encoding("sha256:HEX")));
    }

    #[test]
    fn spki_round_trips_and_refuses_other_keys() {
        let node = NodeKey([9; 32]);
        let spki = node.to_spki();
        assert_eq!(NodeKey::from_spki(&spki), Some(node));
        assert_eq!(NodeKey::from_spki(&spki[..43]), None);
        assert_eq!(NodeKey::from_spki(&[spki.clone(), vec![0]].concat()), None);
    }
}
