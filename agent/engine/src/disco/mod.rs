//! Sealing of disco messages (the messages themselves: [`mesh_proto::disco`]).
//!
//! Both sides' WireGuard keys give a shared secret (X25519, static-static). BLAKE2s turns it, with a context and
//! both public keys in order, into the key of XChaCha20-Poly1305; nonces are random. So a message proves that
//! its sender holds the WireGuard key it names, and nobody else can read or make it. It does not prove when it was
//! made: a Ping that is replayed from elsewhere is answered, with a Pong that is no longer than it and of no
//! use there.

use blake2::{Blake2s256, Digest};
use chacha20poly1305::{AeadInPlace, Key, KeyInit, XChaCha20Poly1305, XNonce};
use mesh_proto::{
    disco::{HEADER_LEN, Header, Message, NONCE_LEN, TAG_LEN},
    key::PublicKey,
};
use rand_core::RngCore;
use zeroize::Zeroizing;

use crate::{drops::DropReason, session::Keys};

/// Keeps the key from meaning anything elsewhere.
const CONTEXT: &[u8] = b"mesh disco v1";

/// What every Ping carries beyond its transaction id, so that the Pong is not longer: an address.
pub(crate) const PING_PADDING: u16 = 18;

/// Seals and opens messages between this node and one peer.
pub(crate) struct DiscoKey {
    cipher: XChaCha20Poly1305,
}

impl DiscoKey {
    pub(crate) fn new(keys: &Keys, peer: &PublicKey) -> Self {
        let own = keys.public();
        let (low, high) = if own < *peer { (&own, peer) } else { (peer, &own) };
        let mut hash = Blake2s256::new();
        hash.update(CONTEXT);
        hash.update(keys.shared_secret(peer).as_bytes());
        hash.update(low.0);
        hash.update(high.0);
        let key = Zeroizing::new(<[u8; 32]>::from(hash.finalize()));
        Self { cipher: XChaCha20Poly1305::new(Key::from_slice(&*key)) }
    }

    /// Seals a message from `sender`, which is this node.
    pub(crate) fn seal(&self, sender: PublicKey, message: &Message, rng: &mut impl RngCore) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        let header = Header { sender, nonce }.encode();
        let mut datagram = [&header[..], &message.encode()].concat();
        let tag = self
            .cipher
            .encrypt_in_place_detached(XNonce::from_slice(&nonce), &header, &mut datagram[HEADER_LEN..])
            .expect("a disco message is far shorter than the cipher's limit");
        datagram.extend(tag);
        datagram
    }

    /// Opens the sealed body of a message with this header.
    ///
    /// # Errors
    /// When it does not authenticate, or is of a type that this side does not know.
    pub(crate) fn open(&self, header: &Header, sealed: &[u8]) -> Result<Message, DropReason> {
        let body_len = sealed.len().checked_sub(TAG_LEN).ok_or(DropReason::MalformedDatagram)?;
        let (body, tag) = sealed.split_at(body_len);
        let mut body = body.to_vec();
        self.cipher
            .decrypt_in_place_detached(
                XNonce::from_slice(&header.nonce),
                &header.encode(),
                &mut body,
                chacha20poly1305::Tag::from_slice(tag),
            )
            .map_err(|_| DropReason::BadCrypto)?;
        Message::decode(&body).map_err(|_| DropReason::MalformedDatagram)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;
    use crate::config::PrivateKey;

    fn keys(byte: u8) -> Keys {
        Keys::new(&PrivateKey(Zeroizing::new([byte; 32])), Instant::now())
    }

    #[test]
    fn only_the_two_sides_can_open_a_message() {
        let (a, b, c) = (keys(1), keys(2), keys(3));
        let mut rng = ChaCha8Rng::from_seed([9; 32]);
        let ping = Message::Ping { txid: [5; 12], padding: PING_PADDING };
        let datagram = DiscoKey::new(&a, &b.public()).seal(a.public(), &ping, &mut rng);
        let (header, sealed) = Header::decode(&datagram).unwrap();
        assert_eq!(header.sender, a.public());
        assert_eq!(DiscoKey::new(&b, &a.public()).open(&header, sealed), Ok(ping));
        assert_eq!(DiscoKey::new(&c, &a.public()).open(&header, sealed), Err(DropReason::BadCrypto));
        for at in HEADER_LEN..datagram.len() {
            let mut forged = datagram.clone();
            forged[at] ^= 1;
            let (header, sealed) = Header::decode(&forged).unwrap();
            assert_eq!(DiscoKey::new(&b, &a.public()).open(&header, sealed), Err(DropReason::BadCrypto));
        }
        let claimed = Header { sender: c.public(), ..header };
        assert_eq!(DiscoKey::new(&b, &a.public()).open(&claimed, sealed), Err(DropReason::BadCrypto));
    }

    #[test]
    fn a_pong_is_not_longer_than_its_ping() {
        let (a, b) = (keys(1), keys(2));
        let mut rng = ChaCha8Rng::from_seed([9; 32]);
        let key = DiscoKey::new(&a, &b.public());
        let observed = Some("192.0.2.1:7".parse().unwrap());
        let mut len = |message| key.seal(a.public(), &message, &mut rng).len();
        assert_eq!(
            len(Message::Ping { txid: [5; 12], padding: PING_PADDING }),
            len(Message::Pong { txid: [5; 12], observed })
        );
    }
}
