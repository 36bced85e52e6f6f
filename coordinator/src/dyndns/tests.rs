//! Against a server that speaks DuckDNS's documented protocol, and the policy by itself.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::Instant,
};

use super::*;

/// DuckDNS, as its specification says, for one name with one token.
#[derive(Default)]
struct FakeDuckDns {
    address: Option<String>,
    requests: Vec<BTreeMap<String, String>>,
}

impl FakeDuckDns {
    fn answer(&mut self, query: BTreeMap<String, String>, from: &str) -> String {
        let is_ours = query.get("domains").is_some_and(|name| name == "pi")
            && query.get("token").is_some_and(|token| token == "aaaa-bbbb");
        self.requests.push(query.clone());
        if !is_ours {
            return "KO".to_owned();
        }
        let before = self.address.replace(query.get("ip").map_or(from, |ip| ip).to_owned());
        if query.get("verbose").is_none_or(|verbose| verbose != "true") {
            return "OK".to_owned();
        }
        let news = if before == self.address { "NOCHANGE" } else { "UPDATED" };
        format!("OK\n{}\n\n{news}", self.address.as_deref().unwrap_or_default())
    }
}

/// Serves it over HTTP; returns where.
async fn serve(duck: Arc<Mutex<FakeDuckDns>>) -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, from) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.unwrap() > 0 {}
            let text = String::from_utf8(request).unwrap();
            let (path, query) = text.split(' ').nth(1).and_then(|target| target.split_once('?')).unwrap();
            let (status, body) = if path == "/update" {
                let query = query.split('&').filter_map(|pair| pair.split_once('='));
                let query = query.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
                ("200 OK", duck.lock().unwrap().answer(query, &from.ip().to_string()))
            } else {
                ("404 Not Found", String::new())
            };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    format!("http://127.0.0.1:{port}/update").parse().unwrap()
}

fn keeper(endpoint: Endpoint, token: &str, dir: &std::path::Path) -> Keeper {
    let token_file = dir.join("token");
    std::fs::write(&token_file, token).unwrap();
    let options = DynDnsOptions { domain: "pi".to_owned(), token_file, endpoint };
    Keeper { fetcher: Fetcher::new(&options.endpoint).unwrap(), options }
}

#[tokio::test]
async fn the_name_points_to_where_the_request_comes_from() {
    let (dir, duck) = (tempfile::tempdir().unwrap(), Arc::new(Mutex::new(FakeDuckDns::default())));
    let keeper = keeper(serve(Arc::clone(&duck)).await, "aaaa-bbbb\n", dir.path());
    let first = keeper.update().await.unwrap();
    assert_eq!(first, Updated { addresses: vec!["127.0.0.1".parse().unwrap()], changed: true });
    assert!(!keeper.update().await.unwrap().changed);
    duck.lock().unwrap().address = Some("203.0.113.9".to_owned());
    assert!(keeper.update().await.unwrap().changed);
    let duck = duck.lock().unwrap();
    assert_eq!(duck.address.as_deref(), Some("127.0.0.1"));
    let keys: Vec<_> = duck.requests[0].keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        ["domains", "token", "verbose"],
        "it detects the address: neither ip= nor ipv6= nor clear="
    );
}

#[tokio::test]
async fn what_is_wrong_is_said_without_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = serve(Arc::default()).await;
    let refused = keeper(endpoint.clone(), "cccc-dddd", dir.path()).update().await.unwrap_err();
    assert!(matches!(refused, UpdateError::Refused));
    let nothing = "http://127.0.0.1:1/update".parse().unwrap();
    let unreachable = keeper(nothing, "cccc-dddd", dir.path()).update().await.unwrap_err();
    let elsewhere = endpoint.to_string().replace("/update", "/other").parse().unwrap();
    let missing = keeper(elsewhere, "cccc-dddd", dir.path()).update().await.unwrap_err();
    assert!(missing.to_string().contains("404"), "{missing}");
    for error in [&refused, &unreachable, &missing] {
        assert!(!format!("{error} {error:?}").contains("cccc"), "{error:?}");
    }
    for bad in ["", "two words", "a&domains=other"] {
        let error = keeper(endpoint.clone(), bad, dir.path()).update().await.unwrap_err();
        assert!(matches!(error, UpdateError::Token { .. }) && error.is_lasting(), "{error}");
    }
    assert!(!UpdateError::Failed(String::new()).is_lasting());
}

/// Runs the policy for a while; returns when it updated, in seconds.
async fn times(
    seconds: u64,
    outside: watch::Receiver<Option<IpAddr>>,
    result: impl Fn(usize) -> Result<Updated, UpdateError>,
) -> Vec<u64> {
    let (start, times) = (Instant::now(), RefCell::new(Vec::new()));
    let update = || {
        let mut times = times.borrow_mut();
        times.push(start.elapsed().as_secs());
        std::future::ready(result(times.len()))
    };
    let _ = tokio::time::timeout(Duration::from_secs(seconds), keep_by(update, outside)).await;
    times.into_inner()
}

fn done() -> Result<Updated, UpdateError> {
    Ok(Updated { addresses: vec![], changed: false })
}

#[tokio::test(start_paused = true)]
async fn it_is_told_every_five_minutes_and_when_the_outside_address_changes() {
    let (sender, outside) = watch::channel(None);
    let seen = |last| Some(IpAddr::from([203, 0, 113, last]));
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(400)).await;
        sender.send_replace(seen(1));
        // It flaps: not each of these is worth an update.
        for last in 2..10 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            sender.send_replace(seen(last));
        }
        std::future::pending::<()>().await;
    });
    assert_eq!(times(1000, outside, |_| done()).await, [0, 300, 400, 430, 730]);
}

#[tokio::test(start_paused = true)]
async fn errors_are_tried_again_ever_more_seldom_and_a_refusal_hardly_ever() {
    let (_sender, outside) = watch::channel(None);
    let failed = |count| if count < 5 { Err(UpdateError::Failed("x".to_owned())) } else { done() };
    assert_eq!(times(500, outside.clone(), failed).await, [0, 5, 15, 35, 75, 375]);
    assert_eq!(times(4000, outside, |_| Err(UpdateError::Refused)).await, [0, 3600]);
}
