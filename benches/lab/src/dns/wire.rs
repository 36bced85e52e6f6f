//! The few parts of a DNS message (RFC 1035) that an authoritative server of addresses needs.

use std::net::IpAddr;
use std::time::Duration;

/// The largest query that is read; an ordinary one with EDNS is far smaller.
pub(super) const MAX_QUERY: usize = 512;

const HEADER: usize = 12;
/// Label lengths from here on are pointers, which no query's only question has.
const MAX_LABEL: u8 = 63;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
/// Response, authoritative; the "recursion desired" bit is copied from the query.
const FLAGS_ANSWER: u16 = 0x8400;
const FLAG_RECURSION_DESIRED: u16 = 0x0100;
const FLAG_RESPONSE: u16 = 0x8000;
const NAME_ERROR: u16 = 3;
/// A pointer to the question's name, right behind the header.
const POINTER_TO_QUESTION: u16 = 0xc000 | HEADER as u16;

/// One question, as it came.
#[derive(Debug)]
pub(super) struct Query<'a> {
    id: [u8; 2],
    flags: u16,
    question: &'a [u8],
    name: String,
    kind: u16,
}

impl<'a> Query<'a> {
    /// Reads a query with exactly one question of class IN.
    pub(super) fn parse(message: &'a [u8]) -> Option<Self> {
        let flags = u16_at(message, 2)?;
        if flags & FLAG_RESPONSE != 0 || u16_at(message, 4)? != 1 {
            return None;
        }
        let mut name = String::new();
        let mut at = HEADER;
        loop {
            let length = *message.get(at)?;
            at += 1;
            if length == 0 {
                break;
            }
            if length > MAX_LABEL {
                return None;
            }
            let label = message.get(at..at + usize::from(length))?;
            if !name.is_empty() {
                name.push('.');
            }
            name.push_str(&std::str::from_utf8(label).ok()?.to_ascii_lowercase());
            at += usize::from(length);
        }
        let (kind, class) = (u16_at(message, at)?, u16_at(message, at + 2)?);
        let id = message.get(..2)?.try_into().ok()?;
        (class == CLASS_IN).then(|| Self { id, flags, question: &message[HEADER..at + 4], name, kind })
    }

    /// The name asked for, in lower case, without a final dot.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The answer, if these are all addresses of the name (`None`: it does not exist).
    pub(super) fn answer(&self, addresses: Option<&[IpAddr]>, ttl: Duration) -> Vec<u8> {
        let code = if addresses.is_some() { 0 } else { NAME_ERROR };
        let fits = |address: &&IpAddr| match address {
            IpAddr::V4(_) => self.kind == TYPE_A,
            IpAddr::V6(_) => self.kind == TYPE_AAAA,
        };
        let found: Vec<&IpAddr> = addresses.unwrap_or_default().iter().filter(fits).collect();
        let mut out = Vec::with_capacity(MAX_QUERY);
        out.extend(self.id);
        out.extend((FLAGS_ANSWER | self.flags & FLAG_RECURSION_DESIRED | code).to_be_bytes());
        out.extend(1u16.to_be_bytes());
        out.extend(u16::try_from(found.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend([0; 4]);
        out.extend(self.question);
        for address in found {
            out.extend(POINTER_TO_QUESTION.to_be_bytes());
            out.extend(self.kind.to_be_bytes());
            out.extend(CLASS_IN.to_be_bytes());
            out.extend(u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).to_be_bytes());
            let bytes = match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            out.extend((bytes.len() as u16).to_be_bytes());
            out.extend(bytes);
        }
        out
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `dig Pi.Example A`, without EDNS.
    const QUERY: &[u8] =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02Pi\x07Example\x00\x00\x01\x00\x01";

    #[test]
    fn answers_with_address_and_ttl() {
        let query = Query::parse(QUERY).unwrap();
        assert_eq!(query.name(), "pi.example");
        let addresses = ["203.0.113.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let answer = query.answer(Some(&addresses), Duration::from_secs(2));
        assert_eq!(answer[..12], *b"\x12\x34\x85\x00\x00\x01\x00\x01\x00\x00\x00\x00");
        assert_eq!(answer[12..QUERY.len()], QUERY[12..]);
        assert_eq!(
            answer[QUERY.len()..],
            *b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x02\x00\x04\xcb\x00\x71\x07"
        );
    }

    #[test]
    fn unknown_name_and_missing_family_differ() {
        let query = Query::parse(QUERY).unwrap();
        assert_eq!(query.answer(None, Duration::ZERO)[3], 3);
        let only_v6 = ["2001:db8::7".parse().unwrap()];
        assert_eq!(query.answer(Some(&only_v6), Duration::ZERO)[3..8], [0, 0, 1, 0, 0]);
    }

    #[test]
    fn every_truncation_is_refused() {
        for end in 0..QUERY.len() {
            assert!(Query::parse(&QUERY[..end]).is_none(), "{end}");
        }
    }
}
