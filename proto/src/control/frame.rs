//! Framing of control messages on a byte stream.
//!
//! ```text
//! length of the JSON in bytes (4, big-endian) | JSON
//! ```

use serde::{Serialize, de::DeserializeOwned};

/// Longest message, in bytes, without its length.
pub const MAX_MESSAGE_LEN: usize = 1 << 20;

/// Bytes of the length before each message.
pub const LENGTH_LEN: usize = 4;

/// Cuts a byte stream into messages.
///
/// [`Decoder::handle_bytes`] takes what was read, [`Decoder::poll_message`] gives the messages that are whole.
/// When it is polled until `None` each time, it holds no more than one unfinished message of up to
/// [`MAX_MESSAGE_LEN`]. An error is final: every later poll gives it again.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

/// Why a stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The message has, or the other side announced, more than [`MAX_MESSAGE_LEN`].
    #[error("message of {0} bytes is longer than {MAX_MESSAGE_LEN}")]
    TooLong(usize),
    /// The bytes are not the JSON of a message, or the message cannot be written as JSON.
    #[error("malformed message: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Encodes a message with its length.
///
/// # Errors
/// When the message is longer than [`MAX_MESSAGE_LEN`], or cannot be written as JSON.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut out = vec![0; LENGTH_LEN];
    serde_json::to_writer(&mut out, message)?;
    let prefix = length(out.len() - LENGTH_LEN)?;
    out[..LENGTH_LEN].copy_from_slice(&prefix);
    Ok(out)
}

/// Returns what goes before a message of so many bytes.
///
/// # Errors
/// When it is longer than [`MAX_MESSAGE_LEN`].
pub fn length(len: usize) -> Result<[u8; LENGTH_LEN], FrameError> {
    if len > MAX_MESSAGE_LEN {
        return Err(FrameError::TooLong(len));
    }
    Ok(u32::try_from(len).expect("MAX_MESSAGE_LEN fits in 32 bits").to_be_bytes())
}

impl Decoder {
    /// Takes bytes that were read from the stream.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Says whether bytes are held that are not yet a whole message, or were not yet asked for.
    #[must_use]
    pub fn has_partial(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Returns the next whole message, or `None` until more bytes are there.
    ///
    /// # Errors
    /// When the stream cannot be read on: it should be closed.
    pub fn poll_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<LENGTH_LEN>() else { return Ok(None) };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > MAX_MESSAGE_LEN {
            return Err(FrameError::TooLong(len));
        }
        let Some(body) = rest.get(..len) else { return Ok(None) };
        let message = serde_json::from_slice(body)?;
        self.buffer.drain(..LENGTH_LEN + len);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ClientMessage;

    #[test]
    fn messages_come_out_whole_however_they_are_cut() {
        let bytes =
            [encode(&ClientMessage::Ping { id: 7 }).unwrap(), encode(&ClientMessage::Resync).unwrap()]
                .concat();
        for cut in 0..bytes.len() {
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                decoder.handle_bytes(part);
                while let Some(message) = decoder.poll_message::<ClientMessage>().unwrap() {
                    got.push(message);
                }
            }
            assert!(
                matches!(got[..], [ClientMessage::Ping { id: 7 }, ClientMessage::Resync]),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn an_oversized_message_is_refused_before_it_is_read() {
        let mut decoder = Decoder::default();
        decoder.handle_bytes(&u32::MAX.to_be_bytes());
        assert!(matches!(decoder.poll_message::<ClientMessage>(), Err(FrameError::TooLong(_))));
    }
}
