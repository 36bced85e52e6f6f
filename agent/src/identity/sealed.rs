//! The form of every state file: one header line, then JSON.
//!
//! ```text
//! mesh1 <kind> <generation> <SHA-256 of "kind generation\n" and the JSON, in hex>\n
//! { ... }\n
//! ```
//!
//! Whatever is cut off or turned over shows in the checksum, so a damaged file is never taken for another
//! state, and a damaged key never for another identity.

use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::error::DamageKind;

/// First word of the header: the format's version.
const FORMAT: &str = "mesh1";

/// Room for a whole key file, so that no secret is left behind in a buffer that grew.
const INITIAL_CAPACITY: usize = 1024;

/// What a sealed file holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened<T> {
    /// Rises with every write.
    pub(super) generation: u64,
    /// The content.
    pub(super) value: T,
}

/// Encodes a value as a sealed file.
pub(super) fn seal<T: Serialize>(
    kind: &str,
    generation: u64,
    value: &T,
) -> serde_json::Result<Zeroizing<Vec<u8>>> {
    let mut body = Zeroizing::new(Vec::with_capacity(INITIAL_CAPACITY));
    serde_json::to_writer(&mut *body, value)?;
    body.push(b'\n');
    let header = format!("{FORMAT} {kind} {generation} {}\n", checksum(kind, generation, &body));
    let mut file = Zeroizing::new(Vec::with_capacity(header.len() + body.len()));
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&body);
    Ok(file)
}

/// Decodes a sealed file of the given kind.
pub(super) fn open<T: DeserializeOwned>(kind: &str, file: &[u8]) -> Result<Opened<T>, DamageKind> {
    let end = file.iter().position(|byte| *byte == b'\n').ok_or(DamageKind::Header)?;
    let header = std::str::from_utf8(&file[..end]).map_err(|_| DamageKind::Header)?;
    let body = &file[end + 1..];
    let mut words = header.split(' ');
    match words.next() {
        Some(FORMAT) => {}
        Some(other) if other.starts_with("mesh") => return Err(DamageKind::Format(other.to_owned())),
        Some(_) | None => return Err(DamageKind::Header),
    }
    let (Some(found), Some(generation), Some(sum), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(DamageKind::Header);
    };
    let generation = generation.parse().map_err(|_| DamageKind::Header)?;
    if checksum(found, generation, body) != sum {
        return Err(DamageKind::Checksum);
    }
    if found != kind {
        return Err(DamageKind::Kind(found.to_owned()));
    }
    let value = serde_json::from_slice(body).map_err(|error| DamageKind::Content(error.to_string()))?;
    Ok(Opened { generation, value })
}

fn checksum(kind: &str, generation: u64, body: &[u8]) -> String {
    let digest = Sha256::new().chain_update(format!("{kind} {generation}\n")).chain_update(body).finalize();
    hex::encode(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_what_it_sealed() {
        let file = seal("numbers", 7, &[1, 2, 3]).unwrap();
        assert_eq!(open::<Vec<u8>>("numbers", &file), Ok(Opened { generation: 7, value: vec![1, 2, 3] }));
        assert_eq!(open::<Vec<u8>>("letters", &file), Err(DamageKind::Kind("numbers".into())));
        let later = [b"mesh2 ", &file[6..]].concat();
        assert_eq!(open::<Vec<u8>>("numbers", &later), Err(DamageKind::Format("mesh2".into())));
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let file = seal("numbers", 7, &[1, 2, 3]).unwrap();
        for cut in 0..file.len() {
            assert!(open::<Vec<u8>>("numbers", &file[..cut]).is_err(), "cut at {cut}");
            for bit in 0..8 {
                let mut flipped = file.to_vec();
                flipped[cut] ^= 1 << bit;
                assert!(open::<Vec<u8>>("numbers", &flipped).is_err(), "bit {bit} of {cut}");
            }
        }
    }
}
