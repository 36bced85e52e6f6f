//! Against name servers of the test's.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use hickory_resolver::proto::{op::ResponseCode, rr::RecordType};
use ipnet::IpNet;
use tempfile::TempDir;

use super::{
    Answer, NameError, Question, Wanted,
    fake::{FakeServer, Reply, files, write_servers},
    lookup_in,
    system::Files,
};

const NAME: &str = "pi.example.org";
const V4: &str = "192.0.2.7";
const V6: &str = "2001:db8::7";

async fn lookup_with(files: &Files, host: &str, mesh: &[IpNet]) -> Result<Answer, NameError> {
    lookup_in(files, Question { host, wanted: Wanted::Any, mesh }).await
}

async fn lookup_v6(files: &Files) -> Result<Answer, NameError> {
    lookup_in(files, Question { host: NAME, wanted: Wanted::V6, mesh: &[] }).await
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn both(ttl: u32) -> Reply {
    Reply::Addresses(vec![ip(V4), ip(V6)], ttl)
}

fn answer(addresses: &[&str], ttl: u64) -> Answer {
    Answer { addresses: addresses.iter().map(|text| ip(text)).collect(), ttl: Duration::from_secs(ttl) }
}

/// A server that always says the same, and files that name it alone.
async fn one(reply: Reply) -> (FakeServer, Files, TempDir) {
    let server = FakeServer::start("127.0.0.1:0", move |_, _| reply.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path(), &["127.0.0.1"], server.address.port());
    (server, files, dir)
}

/// Two servers at one port, and files that name them.
async fn two(first: Reply, second: Reply) -> ([FakeServer; 2], Files, TempDir) {
    let (first, files, dir) = one(first).await;
    let at = format!("127.0.0.2:{}", first.address.port());
    let second = FakeServer::start(&at, move |_, _| second.clone()).await;
    write_servers(&files, &["127.0.0.1", "127.0.0.2"]);
    ([first, second], files, dir)
}

#[tokio::test]
async fn both_families_are_answered_with_their_time() {
    let (_server, files, _dir) = one(both(60)).await;
    assert_eq!(lookup_with(&files, NAME, &[]).await.unwrap(), answer(&[V6, V4], 60));
    assert_eq!(lookup_with(&files, "PI.example.org.", &[]).await.unwrap(), answer(&[V6, V4], 60));
}

#[tokio::test]
async fn no_time_and_days_are_told_as_they_are() {
    let (_server, files, _dir) = one(both(0)).await;
    assert_eq!(lookup_with(&files, NAME, &[]).await.unwrap().ttl, Duration::ZERO);
    let (_server, files, _dir) = one(both(7 * 86_400)).await;
    // The library knows no more than a day.
    assert!(lookup_with(&files, NAME, &[]).await.unwrap().ttl >= Duration::from_secs(86_400));
}

#[tokio::test]
async fn an_alias_is_followed_and_its_time_counts() {
    let alias = Reply::Alias("home.example.net.", 20, vec![ip(V4)], 300);
    let (_server, files, _dir) = one(alias).await;
    assert_eq!(lookup_with(&files, NAME, &[]).await.unwrap(), answer(&[V4], 20));
    // The server leaves it to whoever asks.
    let server = FakeServer::start("127.0.0.1:0", |name, kind| match (name, kind) {
        (NAME, _) => Reply::Alias("a.example.net.", 300, vec![], 300),
        ("a.example.net", _) => Reply::Alias("b.example.net.", 40, vec![], 40),
        ("b.example.net", _) => both(90),
        _ => Reply::NoName(60),
    });
    let server = server.await;
    let dir = tempfile::tempdir().unwrap();
    let files = files_of(&server, &dir);
    assert_eq!(lookup_with(&files, NAME, &[]).await.unwrap().addresses, [ip(V6), ip(V4)]);
}

fn files_of(server: &FakeServer, dir: &TempDir) -> Files {
    files(dir.path(), &[&server.address.ip().to_string()], server.address.port())
}

#[tokio::test]
async fn no_such_name_says_for_how_long() {
    let (_server, files, _dir) = one(Reply::NoName(17)).await;
    let error = lookup_with(&files, NAME, &[]).await.unwrap_err();
    assert!(matches!(error, NameError::NotFound { ttl: Some(ttl) } if ttl.as_secs() == 17), "{error:?}");
    let (_server, files, _dir) = one(Reply::Addresses(vec![], 0)).await;
    let error = lookup_with(&files, NAME, &[]).await.unwrap_err();
    assert!(matches!(error, NameError::NotFound { .. }), "a name without an address: {error:?}");
}

#[tokio::test]
async fn a_server_that_is_dead_fails_or_knows_nothing_does_not_hide_the_other() {
    for bad in [
        Reply::Silence,
        Reply::Failure(ResponseCode::ServFail),
        Reply::Failure(ResponseCode::Refused),
        Reply::NoName(3600),
    ] {
        let (_servers, files, _dir) = two(bad.clone(), both(60)).await;
        let started = Instant::now();
        assert_eq!(lookup_with(&files, NAME, &[]).await.unwrap(), answer(&[V6, V4], 60), "{bad:?}");
        assert!(started.elapsed() < Duration::from_secs(3), "{bad:?}: {:?}", started.elapsed());
        let (_servers, files, _dir) = two(both(60), bad.clone()).await;
        assert_eq!(lookup_with(&files, NAME, &[]).await.unwrap(), answer(&[V6, V4], 60), "{bad:?}");
    }
}

#[tokio::test]
async fn a_failure_of_all_is_said_as_what_it_is() {
    let (_server, files, _dir) = one(Reply::Failure(ResponseCode::ServFail)).await;
    let error = lookup_with(&files, NAME, &[]).await.unwrap_err();
    assert!(matches!(error, NameError::Failing(_)), "{error:?}");
    let (server, files, _dir) = one(Reply::Silence).await;
    let error = lookup_with(&files, NAME, &[]).await.unwrap_err();
    assert!(matches!(error, NameError::Silent), "{error:?}");
    assert!(server.questions() > 2, "a packet may be lost: {}", server.questions());
}

#[tokio::test]
async fn a_family_that_is_never_answered_holds_up_no_other() {
    let server = FakeServer::start("127.0.0.1:0", |_, kind| match kind {
        RecordType::A => both(60),
        _ => Reply::Silence,
    });
    let server = server.await;
    let dir = tempfile::tempdir().unwrap();
    let started = Instant::now();
    assert_eq!(lookup_with(&files_of(&server, &dir), NAME, &[]).await.unwrap(), answer(&[V4], 60));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn where_ipv6_alone_is_wanted_it_is_waited_for_and_looked_for() {
    let v4 = || Reply::Addresses(vec![ip(V4)], 60);
    let (_servers, files, _dir) = two(v4(), both(60)).await;
    assert_eq!(lookup_v6(&files).await.unwrap(), answer(&[V6], 60), "the second one knows");
    let (_server, files, _dir) = one(v4()).await;
    let error = lookup_v6(&files).await.unwrap_err();
    assert!(matches!(error, NameError::NotFound { .. }), "{error:?}");
}

#[tokio::test]
async fn what_is_too_long_for_udp_is_asked_for_over_tcp() {
    let (_server, files, _dir) = one(Reply::Truncated(vec![ip(V4)], 60)).await;
    assert_eq!(lookup_with(&files, NAME, &[]).await.unwrap(), answer(&[V4], 60));
}

#[tokio::test]
async fn a_server_that_is_reached_over_ipv6_alone_is_enough() {
    let server = FakeServer::start("[::1]:0", |_, _| both(60)).await;
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(lookup_with(&files_of(&server, &dir), NAME, &[]).await.unwrap(), answer(&[V6, V4], 60));
}

#[tokio::test]
async fn nothing_is_asked_through_the_mesh() {
    let (server, files, _dir) = one(both(60)).await;
    // A server inside.
    let error = lookup_with(&files, NAME, &["127.0.0.1/32".parse().unwrap()]).await.unwrap_err();
    assert!(matches!(error, NameError::NoServer), "{error:?}");
    // One outside, to which the route leads from an address inside.
    let ([_first, second], files, _dir) = two(Reply::Silence, both(60)).await;
    write_servers(&files, &["127.0.0.2"]);
    let error = lookup_with(&files, NAME, &["127.0.0.1/32".parse().unwrap()]).await.unwrap_err();
    assert!(matches!(error, NameError::NoServer), "{error:?}");
    assert_eq!((server.questions(), second.questions()), (0, 0));
}

#[tokio::test]
async fn a_name_without_a_dot_is_looked_for_in_the_search_domains() {
    let server = FakeServer::start("127.0.0.1:0", |name, _| match name {
        "pi.lan" => both(60),
        _ => Reply::NoName(60),
    });
    let server = server.await;
    let dir = tempfile::tempdir().unwrap();
    let files = files_of(&server, &dir);
    let lines = std::fs::read_to_string(&files.resolv_conf).unwrap();
    std::fs::write(&files.resolv_conf, format!("{lines}search example.net lan\n")).unwrap();
    assert_eq!(lookup_with(&files, "pi", &[]).await.unwrap(), answer(&[V6, V4], 60));
    assert!(lookup_with(&files, "pi.org", &[]).await.is_err(), "a name with a dot is whole");
}

#[tokio::test]
async fn what_a_person_has_written_down_needs_no_server() {
    let (server, files, _dir) = one(both(60)).await;
    std::fs::write(&files.hosts, format!("192.0.2.99 {NAME}\n")).unwrap();
    assert_eq!(lookup_with(&files, NAME, &[]).await.unwrap().addresses, [ip("192.0.2.99")]);
    assert_eq!(server.questions(), 0);
}

#[tokio::test]
async fn other_servers_in_the_file_are_asked_at_once() {
    let (_servers, files, _dir) = two(Reply::Silence, both(60)).await;
    write_servers(&files, &["127.0.0.1"]);
    let started = Instant::now();
    let (found, ()) = tokio::join!(lookup_with(&files, NAME, &[]), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        write_servers(&files, &["127.0.0.2"]);
    });
    assert_eq!(found.unwrap(), answer(&[V6, V4], 60));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test]
async fn names_of_this_host_are_known_to_the_system() {
    let (_server, files, _dir) = one(Reply::NoName(60)).await;
    std::fs::write(&files.nsswitch, "hosts: files dns myhostname\n").unwrap();
    let found = lookup_with(&files, "localhost", &[]).await.unwrap();
    assert!(found.addresses.iter().all(IpAddr::is_loopback), "{found:?}");
}
