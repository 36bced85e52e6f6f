//! A watch's answer: JSON documents, each on a line of its own, in pieces of any length.

use mesh_kubeapi::ApiError;

/// Longest line: a Node with every image it may list is some hundred KiB.
const MAX_LINE: usize = 4 << 20;

/// Makes lines of pieces.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// Bytes of it in which no line ends.
    searched: usize,
}

impl Lines {
    /// Adds a piece.
    ///
    /// # Errors
    /// When a line gets too long.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), ApiError> {
        if self.buffer.len() + piece.len() > MAX_LINE {
            return Err(ApiError::Malformed(format!("a line is longer than {MAX_LINE} bytes")));
        }
        self.buffer.extend_from_slice(piece);
        Ok(())
    }

    /// Takes the next whole line that is not empty.
    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        loop {
            let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            let Some(end) = end else {
                self.searched = self.buffer.len();
                if self.buffer.is_empty() {
                    // A watch is silent most of the time.
                    self.buffer = Vec::new();
                }
                return None;
            };
            let rest = self.buffer.split_off(self.searched + end + 1);
            let mut line = std::mem::replace(&mut self.buffer, rest);
            self.searched = 0;
            while line.last().is_some_and(u8::is_ascii_whitespace) {
                line.pop();
            }
            if !line.is_empty() {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let text = b"{\"a\":1}\n\r\n{\"b\":2}\r\n{\"c\"";
        for cut in 1..text.len() {
            let mut lines = Lines::default();
            let mut taken = Vec::new();
            for piece in text.chunks(cut) {
                lines.push(piece).unwrap();
                taken.extend(std::iter::from_fn(|| lines.take()));
            }
            assert_eq!(taken, [b"{\"a\":1}".to_vec(), b"{\"b\":2}".to_vec()], "{cut}");
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused() {
        let mut lines = Lines::default();
        let piece = vec![b'x'; MAX_LINE / 2];
        lines.push(&piece).unwrap();
        assert_eq!(lines.take(), None);
        lines.push(&piece).unwrap();
        assert!(lines.push(b"x").is_err());
    }
}
