//! Reads a handshake initiation as far as it can be read before its session exists (whitepaper, section 5.4.2).
//!
//! Its static key tells which peer it is from, and its timestamp whether it is new. The library checks timestamps
//! too, but forgets them with the session: a recorded initiation could open a dropped session anew, and would be
//! answered to wherever it was sent from. So the newest timestamp of each peer is kept outside of its session.

use blake2::{Blake2s256, Digest};
use boringtun::x25519::{PublicKey, StaticSecret};
use chacha20poly1305::{AeadInPlace, ChaCha20Poly1305, Key, KeyInit, Nonce, Tag};
use mesh_proto::key;
use zeroize::Zeroizing;

use super::INITIATION_LEN;
use crate::drops::DropReason;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const EPHEMERAL_AT: usize = 8;
const STATIC_AT: usize = EPHEMERAL_AT + 32;
const TIMESTAMP_AT: usize = STATIC_AT + 32 + TAG_LEN;
const TIMESTAMP_END: usize = TIMESTAMP_AT + 12 + TAG_LEN;
const TAG_LEN: usize = 16;
/// Block length of BLAKE2s, for HMAC.
const BLOCK_LEN: usize = 64;

/// When a peer made an initiation; later ones are greater (TAI64N).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Timestamp([u8; 12]);

/// What an initiation says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Initiation {
    /// Who made it.
    pub(crate) peer: key::PublicKey,
    /// When.
    pub(crate) timestamp: Timestamp,
}

/// Opens the sealed parts of an initiation to the holder of `private`.
///
/// # Errors
/// When it has another length or does not authenticate.
pub(super) fn open(
    private: &StaticSecret,
    public: &PublicKey,
    message: &[u8],
) -> Result<Initiation, DropReason> {
    let message: &[u8; INITIATION_LEN] = message.try_into().map_err(|_| DropReason::MalformedDatagram)?;
    let ephemeral = PublicKey::from(read(message, EPHEMERAL_AT));
    let (sealed_static, sealed_timestamp) =
        (&message[STATIC_AT..TIMESTAMP_AT], &message[TIMESTAMP_AT..TIMESTAMP_END]);

    let chain = hash(&[CONSTRUCTION]);
    let transcript = hash(&[&hash(&[&chain, IDENTIFIER]), public.as_bytes()]);
    let transcript = hash(&[&transcript, ephemeral.as_bytes()]);
    let chain = kdf1(&chain, ephemeral.as_bytes());
    let (chain, key) = kdf2(&chain, private.diffie_hellman(&ephemeral).as_bytes());
    let peer: [u8; 32] = unseal(&key, sealed_static, &transcript)?;

    let transcript = hash(&[&transcript, sealed_static]);
    let (_, key) = kdf2(&chain, private.diffie_hellman(&PublicKey::from(peer)).as_bytes());
    let timestamp: [u8; 12] = unseal(&key, sealed_timestamp, &transcript)?;
    Ok(Initiation { peer: key::PublicKey(peer), timestamp: Timestamp(timestamp) })
}

type Hash = [u8; 32];

fn read<const N: usize>(message: &[u8; INITIATION_LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&message[at..at + N]);
    out
}

fn hash(parts: &[&[u8]]) -> Hash {
    let mut hash = Blake2s256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// HMAC (RFC 2104) of BLAKE2s, for keys of a hash's length.
fn hmac(key: &Hash, parts: &[&[u8]]) -> Zeroizing<Hash> {
    let pad = |byte: u8| {
        let mut block = Zeroizing::new([byte; BLOCK_LEN]);
        block.iter_mut().zip(key).for_each(|(block, key)| *block ^= key);
        block
    };
    let mut inner = Blake2s256::new();
    inner.update(*pad(0x36));
    for part in parts {
        inner.update(part);
    }
    let inner: Hash = inner.finalize().into();
    Zeroizing::new(hash(&[&*pad(0x5c), &inner]))
}

fn kdf1(chain: &Hash, input: &[u8]) -> Zeroizing<Hash> {
    hmac(&hmac(chain, &[input]), &[&[1]])
}

fn kdf2(chain: &Hash, input: &[u8]) -> (Zeroizing<Hash>, Zeroizing<Hash>) {
    let secret = hmac(chain, &[input]);
    let first = hmac(&secret, &[&[1]]);
    let second = hmac(&secret, &[&*first, &[2]]);
    (first, second)
}

fn unseal<const N: usize>(key: &Hash, sealed: &[u8], transcript: &Hash) -> Result<[u8; N], DropReason> {
    let (body, tag) = sealed.split_at(sealed.len() - TAG_LEN);
    let mut out: [u8; N] = body.try_into().map_err(|_| DropReason::MalformedDatagram)?;
    ChaCha20Poly1305::new(Key::from_slice(key))
        .decrypt_in_place_detached(&Nonce::default(), transcript, &mut out, Tag::from_slice(tag))
        .map_err(|_| DropReason::BadCrypto)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{
        config::PrivateKey,
        session::{Admission, Keys, Session, Source},
    };

    fn keys(byte: u8) -> Keys {
        Keys::new(&PrivateKey(Zeroizing::new([byte; 32])), Instant::now())
    }

    #[test]
    fn the_library_s_initiations_are_read() {
        let now = Instant::now();
        let (a, mut b, mut c) = (keys(1), keys(2), keys(3));
        let mut session = Session::new(&a, &b.public(), 5, now);
        let first = session.initiate(now).unwrap();
        let later = now + std::time::Duration::from_millis(700);
        let second = session.initiate(later).unwrap();
        let source = Source::Relay([192, 0, 2, 1].into());
        let mut open = |message: &[u8]| match b.admit(source, message, later) {
            Ok(Admission::Admitted(initiation)) => initiation,
            other => panic!("{other:?}"),
        };
        let (first_read, second_read) = (open(&first), open(&second));
        assert_eq!(first_read.peer, a.public());
        assert!(first_read.timestamp < second_read.timestamp);
        assert!(c.admit(source, &first, later).is_err());
        for at in 0..first.len() - 16 {
            let mut forged = first;
            forged[at] ^= 1;
            assert!(b.admit(source, &forged, later).is_err(), "byte {at}");
        }
    }
}
