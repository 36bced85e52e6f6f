//! The settings of byte pipes: the proxy, and where the WebSocket is.
//!
//! A proxy that was named for this program goes before those that are named for all programs; `off` means none.
//! `NO_PROXY` holds for the latter alone.

use std::ffi::OsString;

use mesh_settings::{Secret, Settings};

use crate::control::{Proxy, ProxyRules, StreamOptions, WebSocketUrl};

/// Variables that name a proxy for all programs, in the order in which they are looked at.
const PROXY_VARIABLES: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
/// Variables that name what is reached without a proxy.
const EXCEPTION_VARIABLES: [&str; 2] = ["no_proxy", "NO_PROXY"];
/// What is said to use no proxy.
const OFF: &str = "off";

/// Resolves the settings.
pub(super) fn take<E: Fn(&str) -> Option<OsString>>(
    settings: &mut Settings<E>,
    proxy: Option<&Secret>,
    url: Option<&str>,
) -> StreamOptions {
    let proxy = settings.take("proxy", proxy.map(Secret::reveal), parse_proxy);
    let url = settings
        .take("websocket-url", url, |text| text.parse::<WebSocketUrl>().map_err(|error| error.to_string()));
    let proxy = match proxy {
        Some(proxy) => ProxyRules { proxy, exceptions: Vec::new() },
        None => of_environment(settings),
    };
    StreamOptions { url, proxy }
}

fn parse_proxy(text: &str) -> Result<Option<Proxy>, String> {
    if text == OFF {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error: crate::control::InvalidProxy| error.to_string())
}

/// What was set for all programs may be of a kind that others understand: then it is left alone.
fn of_environment<E: Fn(&str) -> Option<OsString>>(settings: &Settings<E>) -> ProxyRules {
    let named = PROXY_VARIABLES.iter().find_map(|name| Some((name, settings.foreign(name)?)));
    let proxy = named.and_then(|(name, text)| {
        let parsed = text.parse::<Proxy>();
        parsed.inspect_err(|error| tracing::warn!("{name} is not used: {error}")).ok()
    });
    let exceptions = EXCEPTION_VARIABLES.iter().find_map(|name| settings.foreign(name)).unwrap_or_default();
    ProxyRules { proxy, exceptions: exceptions.split(',').map(|rule| rule.trim().to_owned()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flag: Option<&str>, variables: &[(&str, &str)], file: &str) -> StreamOptions {
        let environment = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(*value))
        };
        let mut settings = Settings::new(environment, file).unwrap();
        let flag: Option<Secret> = flag.map(|text| text.parse().unwrap());
        let options = take(&mut settings, flag.as_ref(), None);
        settings.finish().unwrap();
        options
    }

    fn proxy_of(options: &StreamOptions) -> Option<String> {
        options.proxy.proxy.as_ref().map(ToString::to_string)
    }

    #[test]
    fn this_programs_own_proxy_goes_before_that_of_all_programs() {
        let variables = [("HTTPS_PROXY", "http://all:1"), ("NO_PROXY", "a, .b"), ("MESH_PROXY", "own:2")];
        let options = resolve(Some("flag:3"), &variables, "proxy = 'file:4'");
        assert_eq!(proxy_of(&options).unwrap(), "http://flag:3");
        assert!(options.proxy.exceptions.is_empty());
        assert_eq!(proxy_of(&resolve(None, &variables, "")).unwrap(), "http://own:2");
        assert_eq!(proxy_of(&resolve(None, &variables[..2], "proxy = 'file:4'")).unwrap(), "http://file:4");
        let options = resolve(None, &variables[..2], "");
        assert_eq!(proxy_of(&options).unwrap(), "http://all:1");
        assert_eq!(options.proxy.exceptions, ["a", ".b"]);
        assert_eq!(proxy_of(&resolve(Some("off"), &variables, "")), None);
        assert_eq!(proxy_of(&resolve(None, &[("all_proxy", "socks5://x"), ("HTTPS_PROXY", "")], "")), None);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        let mut settings = Settings::new(|_: &str| None, "websocket-url = 'https://x'").unwrap();
        take(&mut settings, Some(&"https://u:secret@x".parse().unwrap()), None);
        let problems = settings.finish().unwrap_err().to_string();
        assert!(problems.contains("--proxy: only") && problems.contains("websocket-url: "), "{problems}");
        assert!(!problems.contains("secret"));
    }
}
