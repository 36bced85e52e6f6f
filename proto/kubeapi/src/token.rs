//! What a ServiceAccount's token says of itself (RFC 7519). Only the API server checks it: this is for sentences for people.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

/// What a token claims.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// When it expires, in seconds since 1970, if it does.
    pub expires: Option<i64>,
    /// For whom it is.
    pub audiences: Vec<String>,
}

#[derive(Deserialize)]
struct Payload {
    exp: Option<i64>,
    aud: Option<Audience>,
}

/// One, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// Returns what a token claims; `None` if it is none.
#[must_use]
pub fn claims(token: &str) -> Option<Claims> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let Payload { exp, aud } = serde_json::from_slice(&payload).ok()?;
    let audiences = match aud {
        Some(Audience::One(audience)) => vec![audience],
        Some(Audience::Several(audiences)) => audiences,
        None => Vec::new(),
    };
    Some(Claims { expires: exp, audiences })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_when_it_expires_and_for_whom_it_is_if_it_does() {
        let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        let full = claims(&token(r#"{"exp":1767323045,"aud":["mesh"]}"#)).unwrap();
        assert_eq!(full, Claims { expires: Some(1_767_323_045), audiences: vec!["mesh".to_owned()] });
        let one = claims(&token(r#"{"aud":"mesh","iat":1}"#)).unwrap();
        assert_eq!(one, Claims { expires: None, audiences: vec!["mesh".to_owned()] });
        assert_eq!(claims(&token("{}")), Some(Claims::default()));
        for text in ["", "abc", "a.b.c", &token("no json")] {
            assert_eq!(claims(text), None, "{text}");
        }
    }
}
