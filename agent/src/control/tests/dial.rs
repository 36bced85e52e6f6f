//! Dialling coordinators in the test's hands, and addresses where nobody is.

use std::{net::UdpSocket, time::Duration};

use tokio::time::Instant;

use super::super::{
    address::HostPort,
    dial::{Target, dial},
    fake::FakeCoordinator,
    namebook::NameBook,
    race::{First, Reached, Refused, race},
    stream::{StreamOptions, StreamTarget},
    tls,
};
use crate::{
    identity::Identity,
    nat64::{Mode, Nat64},
};

fn target(fake: &FakeCoordinator, names: &[String]) -> Target {
    Target {
        config: tls::client_config(&Identity::generate().unwrap(), fake.pin()).unwrap(),
        names: HostPort::parse_all(names),
        known: Vec::new(),
        mesh: vec!["127.9.0.0/16".parse().unwrap()],
        nat64: Nat64::new(Mode::Off),
        book: NameBook::default(),
    }
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[tokio::test]
async fn an_address_that_does_not_answer_holds_up_no_other() {
    let fake = FakeCoordinator::start();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let impostor = FakeCoordinator::start();
    let mut target = target(&fake, &[impostor.address().to_string(), fake.address().to_string()]);
    target.known = vec![silent.local_addr().unwrap()];
    let started = Instant::now();
    let (dialed, _, _) =
        tokio::join!(dial(&target, deadline()), fake.accept_connection(), impostor.accept_connection());
    assert_eq!(dialed.unwrap().connection.remote_address(), fake.address());
    // Far less than the time that an attempt may take.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_dial_out_of_time_says_what_it_was_waiting_for() {
    let fake = FakeCoordinator::start();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let target = target(&fake, &[silent.to_string()]);
    let error = dial(&target, Instant::now() + Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{silent}: no answer"));
}

#[tokio::test]
async fn a_name_that_leads_to_a_silent_address_is_said_with_it() {
    let fake = FakeCoordinator::start();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let name = format!("localhost:{}", silent.port());
    let target = target(&fake, std::slice::from_ref(&name));
    let error = dial(&target, Instant::now() + Duration::from_secs(1)).await.unwrap_err().to_string();
    assert!(error.contains(&format!("{name} ({silent}): ")), "{error}");
}

#[tokio::test]
async fn nothing_is_dialled_through_the_mesh() {
    let fake = FakeCoordinator::start();
    let mut target = target(&fake, &["127.9.0.1:7443".to_owned()]);
    target.known = vec!["127.9.0.2:7443".parse().unwrap()];
    let error = dial(&target, deadline()).await.unwrap_err().to_string();
    assert_eq!(error, "127.9.0.1:7443: the name resolves to no address outside the mesh");
}

#[tokio::test]
async fn where_a_name_led_before_is_tried_without_a_resolver() {
    let fake = FakeCoordinator::start();
    let mut target = target(&fake, &["relay.invalid:7443".to_owned()]);
    target.book = NameBook::of_earlier(&target.names[0], vec![fake.address()]);
    let (dialed, _) = tokio::join!(dial(&target, deadline()), fake.accept_connection());
    assert_eq!(dialed.unwrap().connection.remote_address(), fake.address());
}

/// A byte pipe to where nobody speaks anything.
fn pipe(fake: &FakeCoordinator, url: &str) -> StreamTarget {
    StreamTarget {
        config: tls::stream_config(&Identity::generate().unwrap(), fake.pin()).unwrap(),
        options: StreamOptions { url: Some(url.parse().unwrap()), ..StreamOptions::default() },
        names: Vec::new(),
        known: Vec::new(),
        mesh: Vec::new(),
        last: None,
        nat64: Nat64::new(Mode::Off),
        book: NameBook::default(),
    }
}

#[tokio::test]
async fn quic_wins_over_a_pipe_that_goes_first_and_is_silent() {
    let fake = FakeCoordinator::start();
    // Connections are accepted by the system, and nobody ever says anything.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let pipe = pipe(&fake, &format!("wss://{}/mesh", listener.local_addr().unwrap()));
    let target = target(&fake, &[fake.address().to_string()]);
    for first in [First::Quic, First::Pipe, First::Both] {
        let race = race(target.clone(), pipe.clone(), first, Refused::Patient, deadline());
        let (reached, _) = tokio::join!(race, fake.accept_connection());
        assert!(matches!(reached, Ok(Reached::Quic(_))), "{first:?}");
    }
}

#[tokio::test]
async fn what_failed_is_said_of_both_ways() {
    let fake = FakeCoordinator::start();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let pipe = pipe(&fake, &format!("wss://{closed}/mesh"));
    let target = target(&fake, &[silent.local_addr().unwrap().to_string()]);
    let race = race(target, pipe, First::Quic, Refused::Patient, Instant::now() + Duration::from_secs(1));
    let error = race.await.err().unwrap().to_string();
    assert!(error.contains(&format!("{}: no answer", silent.local_addr().unwrap())), "{error}");
    assert!(error.contains(&format!("wss://{closed}/mesh")) && error.contains("refused"), "{error}");
}

#[tokio::test]
async fn somebody_with_another_key_ends_a_race() {
    let fake = FakeCoordinator::start();
    let impostor = FakeCoordinator::start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let pipe = pipe(&fake, &format!("wss://{}/mesh", listener.local_addr().unwrap()));
    let target = target(&fake, &[impostor.address().to_string()]);
    let (reached, _) = tokio::join!(
        race(target, pipe, First::Quic, Refused::Patient, deadline()),
        impostor.accept_connection()
    );
    assert!(reached.err().unwrap().is_pin_mismatch());
}
