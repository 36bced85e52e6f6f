//! Against a server that speaks DuckDNS's documented protocol, and the policy by itself.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// DuckDNS, as its specification says, for one name with one token.
#[derive(Default)]
struct FakeDuckDns {
    ipv4: String,
    ipv6: String,
    requests: Vec<BTreeMap<String, String>>,
}

impl FakeDuckDns {
    fn answer(&mut self, query: BTreeMap<String, String>, from: &str) -> String {
        let get = |key: &str| query.get(key).map(String::as_str);
        self.requests.push(query.clone());
        if (get("domains"), get("token")) != (Some("pi"), Some("aaaa-bbbb")) {
            return "KO".to_owned();
        }
        let before = (self.ipv4.clone(), self.ipv6.clone());
        match (get("clear"), get("ip"), get("ipv6")) {
            (Some("true"), ..) => (self.ipv4, self.ipv6) = Default::default(),
            (_, None, None) => self.ipv4 = from.to_owned(),
            (_, ipv4, ipv6) => {
                ipv4.into_iter().for_each(|ipv4| self.ipv4 = ipv4.to_owned());
                ipv6.into_iter().for_each(|ipv6| self.ipv6 = ipv6.to_owned());
            }
        }
        if get("verbose") != Some("true") {
            return "OK".to_owned();
        }
        let is_same = before == (self.ipv4.clone(), self.ipv6.clone());
        let news = if is_same { "NOCHANGE" } else { "UPDATED" };
        format!("OK\n{}\n{}\n{news}", self.ipv4, self.ipv6)
    }

    /// Returns what was asked besides name, token and words, and forgets it.
    fn take_asked(&mut self) -> Vec<String> {
        let extra = |query: &BTreeMap<String, String>| {
            let extra = query.iter().filter(|(key, _)| ["ip", "ipv6", "clear"].contains(&key.as_str()));
            extra.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&")
        };
        std::mem::take(&mut self.requests).iter().map(extra).collect()
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
    let (provider, domain, ipv6) = (Provider::DuckDns, "pi".to_owned(), Ipv6::Off);
    let options = DynDnsOptions { provider, domain, token_file, endpoint, ipv6 };
    Keeper { fetcher: Fetcher::new(&options.endpoint).unwrap(), options }
}

#[tokio::test]
async fn the_name_points_to_where_the_request_comes_from() {
    let (dir, duck) = (tempfile::tempdir().unwrap(), Arc::new(Mutex::new(FakeDuckDns::default())));
    let keeper = keeper(serve(Arc::clone(&duck)).await, "aaaa-bbbb\n", dir.path());
    let first = keeper.update().await.unwrap();
    assert_eq!(first, Updated { ipv4: "127.0.0.1".parse().ok(), ipv6: None, changed: true });
    assert!(!keeper.update().await.unwrap().changed);
    duck.lock().unwrap().ipv4 = "203.0.113.9".to_owned();
    assert!(keeper.update().await.unwrap().changed);
    let duck = duck.lock().unwrap();
    assert_eq!(duck.ipv4, "127.0.0.1");
    let keys: Vec<_> = duck.requests[0].keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        ["domains", "token", "verbose"],
        "it detects the address: neither ip= nor ipv6= nor clear="
    );
}

#[tokio::test]
async fn an_ipv6_address_is_told_once_and_taken_away_when_it_is_gone() {
    let (dir, duck) = (tempfile::tempdir().unwrap(), Arc::new(Mutex::new(FakeDuckDns::default())));
    let mut keeper = keeper(serve(Arc::clone(&duck)).await, "aaaa-bbbb\n", dir.path());
    let asked = || duck.lock().unwrap().take_asked();
    let (first, second) = ("2a00::7".parse().unwrap(), "2a00::8".parse().unwrap());

    keeper.options.ipv6 = Ipv6::Address(first);
    let updated = keeper.update().await.unwrap();
    assert_eq!(updated, Updated { ipv4: "127.0.0.1".parse().ok(), ipv6: Some(first), changed: true });
    assert_eq!(asked(), ["", "ip=127.0.0.1&ipv6=2a00::7"]);
    assert!(!keeper.update().await.unwrap().changed);
    assert_eq!(asked(), [""], "it is so already");

    keeper.options.ipv6 = Ipv6::Address(second);
    assert_eq!(keeper.update().await.unwrap().ipv6, Some(second));
    keeper.options.ipv6 = Ipv6::Off;
    assert_eq!(keeper.update().await.unwrap().ipv6, Some(second), "it stays what it is");
    asked();

    let token = keeper.token().await.unwrap();
    let name = DuckDns { domain: "pi", token: &token };
    let updated = name.update(&keeper.fetcher, Wanted::None).await.unwrap();
    assert_eq!(updated, Updated { ipv4: "127.0.0.1".parse().ok(), ipv6: None, changed: true });
    assert_eq!(asked(), ["", "clear=true", ""]);
    assert!(!name.update(&keeper.fetcher, Wanted::None).await.unwrap().changed);
    assert_eq!(asked(), [""], "nothing is cleared that is not there");
}

/// What is logged, whatever its level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_shows_the_token_and_no_debug() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (dir, duck) = (tempfile::tempdir().unwrap(), Arc::new(Mutex::new(FakeDuckDns::default())));
    let endpoint = serve(duck).await;
    let (_sender, outside) = watch::channel(None);
    for (token, said) in [("aaaa-bbbb", "up to date"), ("cccc-dddd", "is not kept")] {
        let keeper = keeper(endpoint.clone(), token, dir.path());
        let secret = keeper.token().await.unwrap();
        assert_eq!(format!("{secret:?} {:?}", keeper.options).matches(token).count(), 0);
        assert_eq!(secret.expose(), token);
        let is_said = async {
            while !log.text().contains(said) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = keep_by(|| keeper.update(), outside.clone(), || Wanted::Any) => {}
            is_said = tokio::time::timeout(Duration::from_secs(10), is_said) => is_said.expect(said),
        }
    }
    let log = log.text();
    assert!(!log.contains("aaaa") && !log.contains("cccc"), "{log}");
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
    let _ =
        tokio::time::timeout(Duration::from_secs(seconds), keep_by(update, outside, || Wanted::Any)).await;
    times.into_inner()
}

fn done() -> Result<Updated, UpdateError> {
    Ok(Updated { ipv4: None, ipv6: None, changed: false })
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
    let refused = |_| Err(UpdateError::Refused);
    assert_eq!(times(12_000, outside, refused).await, [0, 300, 900, 2100, 4500, 8100, 11_700]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_does_not_keep_a_new_address_waiting() {
    let (sender, outside) = watch::channel(None);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1000)).await;
        sender.send_replace(Some(IpAddr::from([203, 0, 113, 1])));
        std::future::pending::<()>().await;
    });
    assert_eq!(times(1500, outside, |_| Err(UpdateError::Refused)).await, [0, 300, 900, 1000]);
}

#[tokio::test(start_paused = true)]
async fn another_own_ipv6_address_is_told_soon() {
    let (_sender, outside) = watch::channel(None);
    let (start, times) = (Instant::now(), RefCell::new(Vec::new()));
    let update = || {
        times.borrow_mut().push(start.elapsed().as_secs());
        std::future::ready(done())
    };
    let wanted = || match start.elapsed().as_secs() {
        0..100 => Wanted::At("2a00::7".parse().unwrap()),
        _ => Wanted::None,
    };
    let _ = tokio::time::timeout(Duration::from_secs(200), keep_by(update, outside, wanted)).await;
    assert_eq!(times.into_inner(), [0, 120]);
}
