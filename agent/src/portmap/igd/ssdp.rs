//! SSDP: asks for gateways (UPnP Device Architecture 1.1, section 1.3), and reads where their descriptions are.
//!
//! The question goes to the router's own address and to the group of all devices, for some listen to the one and some to
//! the other. Whoever else answers is not heard.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use rustix::net::sockopt;
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use super::{
    super::{policy::Failure, router::Router},
    Target,
};

/// Where devices listen.
const PORT: u16 = 1900;
/// All devices of a LAN.
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// As far as a question goes: routers of the LAN alone have to do with it.
const TTL: u32 = 2;
/// What is asked for; version 2 devices answer to version 1, but some do not.
const WANTED: [&str; 2] = [
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
];
/// How long answers are waited for after each of the questions; devices spread theirs over a second (MX).
const WAITS: [Duration; 2] = [Duration::from_millis(1200), Duration::from_millis(1200)];
/// How long further answers are waited for after the first: a router answers to each of the questions.
const MORE: Duration = Duration::from_millis(100);
/// Descriptions that are looked at.
const MAX_PLACES: usize = 3;
/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 2048;
/// Most lines of an answer.
const MAX_HEADERS: usize = 32;

/// Returns where the router's descriptions are.
pub(super) async fn search(router: Router) -> Result<Vec<Target>, Failure> {
    let unreachable = |error: std::io::Error| {
        tracing::trace!(%error, "gateways cannot be asked for");
        Failure::Silent
    };
    let socket = UdpSocket::bind((router.local, 0)).await.map_err(unreachable)?;
    for error in [
        sockopt::set_ip_multicast_if(&socket, &router.local).err(),
        sockopt::set_ip_multicast_ttl(&socket, TTL).err(),
    ]
    .into_iter()
    .flatten()
    {
        tracing::trace!(%error, "multicast");
    }
    let mut places: Vec<Target> = Vec::new();
    let mut failure = Failure::Silent;
    let mut buffer = [0; MAX_ANSWER];
    for wait in WAITS {
        for wanted in WANTED {
            for to in [router.gateway, GROUP] {
                // A host without multicast has the router's own address, and the other way round.
                if let Err(error) = socket.send_to(question(wanted).as_bytes(), (to, PORT)).await {
                    tracing::trace!(%error, "gateways are not asked for");
                }
            }
        }
        let mut deadline = Instant::now() + wait;
        while let Ok(received) = timeout_at(deadline, socket.recv_from(&mut buffer)).await {
            // The router says that nothing listens there; the group may be heard all the same.
            let Ok((len, from)) = received else { continue };
            if from.ip() != IpAddr::V4(router.gateway) {
                continue;
            }
            match location(&buffer[..len], router.gateway) {
                Some(place) if !places.contains(&place) && places.len() < MAX_PLACES => {
                    places.push(place);
                    deadline = deadline.min(Instant::now() + MORE);
                }
                Some(_) => {}
                None => failure = Failure::Garbage,
            }
        }
        if !places.is_empty() {
            return Ok(places);
        }
    }
    Err(failure)
}

fn question(wanted: &str) -> String {
    format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}:{PORT}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {wanted}\r\n\r\n"
    )
}

/// Reads where an answer says that the description is, if that is on the router.
fn location(datagram: &[u8], gateway: Ipv4Addr) -> Option<Target> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut answer = httparse::Response::new(&mut headers);
    // Some leave the empty line at the end away.
    answer.parse(datagram).ok()?;
    if answer.code != Some(200) {
        return None;
    }
    let location = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case("location"))?;
    Target::parse(std::str::from_utf8(location.value).ok()?, gateway).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

    #[test]
    fn the_question_is_these_bytes() {
        let expected = "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
            ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n";
        assert_eq!(question(WANTED[0]), expected);
    }

    #[test]
    fn the_description_is_where_the_router_says_if_that_is_the_router() {
        let answer = |location: &str| {
            let text = format!(
                "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: urn:schemas-upnp-org:device:\
                 InternetGatewayDevice:1\r\nEXT:\r\nLocation: {location}\r\n\r\n"
            );
            location_of(&text)
        };
        fn location_of(text: &str) -> Option<Target> {
            location(text.as_bytes(), GATEWAY)
        }
        let place = Target { port: 5000, path: "/rootDesc.xml".to_owned() };
        assert_eq!(answer("http://192.168.1.1:5000/rootDesc.xml"), Some(place));
        assert_eq!(answer("http://169.254.169.254/latest/meta-data"), None);
        assert_eq!(answer("http://203.0.113.1/"), None);
        assert_eq!(location_of("HTTP/1.1 200 OK\r\nST: x\r\n\r\n"), None);
        assert_eq!(location_of("HTTP/1.1 302 Found\r\nLocation: http://192.168.1.1/\r\n\r\n"), None);
        assert_eq!(location_of("NOTIFY * HTTP/1.1\r\nLocation: http://192.168.1.1/\r\n\r\n"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(location(&bytes, GATEWAY), None);
        }
    }
}
