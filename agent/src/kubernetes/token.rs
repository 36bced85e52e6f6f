//! What a ServiceAccount's token says of itself: when it expires (RFC 7519, section 4.1.4). Only the API server checks it.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

#[derive(Deserialize)]
struct Claims {
    exp: Option<i64>,
}

/// Returns when a token expires, in seconds since 1970; `None` if it does not say so.
pub(super) fn expiry(token: &str) -> Option<i64> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice::<Claims>(&payload).ok()?.exp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_when_it_expires_if_it_does() {
        let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        assert_eq!(expiry(&token(r#"{"exp":1767323045,"aud":["mesh"]}"#)), Some(1_767_323_045));
        assert_eq!(expiry(&token(r#"{"aud":[]}"#)), None);
        for text in ["", "abc", "a.b.c", &token("no json")] {
            assert_eq!(expiry(text), None, "{text}");
        }
    }
}
