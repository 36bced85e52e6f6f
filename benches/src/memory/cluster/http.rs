//! As much of HTTP/1.1 as an agent asks with.

use std::io::{self, Read, Write};

use serde_json::Value;

/// Longest head of a request: a token makes most of it.
const MAX_HEAD: usize = 64 << 10;

/// A request.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    target: String,
    pub(super) body: Value,
}

/// What an answer begins with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Code {
    Ok,
    Created,
    Forbidden,
}

impl Asked {
    /// The path.
    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Whether the answer goes on.
    pub(super) fn is_watch(&self) -> bool {
        self.parameter("watch") == Some("true")
    }

    /// From where a watch goes on.
    pub(super) fn version(&self) -> Option<u64> {
        self.parameter("resourceVersion")?.parse().ok()
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }
}

impl Code {
    fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::Created => "201 Created",
            Self::Forbidden => "403 Forbidden",
        }
    }
}

/// Reads a request; `None` when there is no more.
pub(super) fn read(stream: &mut impl Read) -> io::Result<Option<Asked>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 || head.len() == MAX_HEAD {
            return Ok(None);
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let mut words = head.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(None) };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body)?;
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Ok(Some(Asked { method: method.to_owned(), target: target.to_owned(), body }))
}

/// Answers with a document.
pub(super) fn answer(stream: &mut impl Write, code: Code, document: &Value) -> io::Result<()> {
    let text = document.to_string();
    let head = format!(
        "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        code.line(),
        text.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(text.as_bytes())?;
    stream.flush()
}

/// Begins an answer that goes on.
pub(super) fn begin(stream: &mut impl Write) -> io::Result<()> {
    stream.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    stream.flush()
}

/// Says more of it.
pub(super) fn chunk(stream: &mut impl Write, text: &str) -> io::Result<()> {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_are_read_one_after_the_other() {
        let mut text: &[u8] = b"GET /api/v1/nodes?&watch=true&resourceVersion=7 HTTP/1.1\r\nHost: a\r\n\r\n\
            PATCH /api/v1/nodes/a/status?x=y HTTP/1.1\r\ncontent-length: 7\r\n\r\n{\"a\":1}";
        let watch = read(&mut text).unwrap().unwrap();
        assert!(watch.is_watch());
        assert_eq!((watch.path(), watch.version()), ("/api/v1/nodes", Some(7)));
        let patch = read(&mut text).unwrap().unwrap();
        assert_eq!((patch.method.as_str(), patch.path()), ("PATCH", "/api/v1/nodes/a/status"));
        assert_eq!((patch.body, patch.target.contains("watch")), (json!({"a": 1}), false));
        assert!(read(&mut text).unwrap().is_none());
    }
}
