//! Routers that answer as they please, on the loopback of a network namespace.

use std::time::Instant as StdInstant;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::netns::isolated;

const ROUTER: Router = Router { gateway: Ipv4Addr::new(127, 0, 0, 2), local: Ipv4Addr::LOCALHOST };
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
/// Where gateways listen for M-SEARCH.
const SSDP_PORT: u16 = 1900;
const OUTSIDE: &str = "0080000000000009cb007101";

fn asker() -> Asker {
    Asker { router: ROUTER, port: 51820, nonce: [7; 12], service: None }
}

/// Brings the namespace's loopback up.
fn bring_up() {
    let status = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(status.success());
}

/// Answers each datagram with these, from `from`.
async fn answer_from(from: Ipv4Addr, answers: Vec<Vec<u8>>) {
    let heard = UdpSocket::bind((ROUTER.gateway, PORT)).await.unwrap();
    let other =
        if from == ROUTER.gateway { None } else { Some(UdpSocket::bind((from, PORT)).await.unwrap()) };
    tokio::spawn(async move {
        let mut buffer = [0; 1100];
        loop {
            let (_, client) = heard.recv_from(&mut buffer).await.unwrap();
            for answer in &answers {
                // The client may have heard enough.
                let _ = other.as_ref().unwrap_or(&heard).send_to(answer, client).await;
            }
        }
    });
}

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

#[test]
fn a_router_that_does_not_listen_costs_no_time() {
    isolated("portmap::asking::tests::a_router_that_does_not_listen_costs_no_time", async || {
        bring_up();
        let start = StdInstant::now();
        assert_eq!(asker().probe(Protocol::Pcp).await, Err(Failure::Silent));
        assert_eq!(asker().probe(Protocol::NatPmp).await, Err(Failure::Silent));
        assert!(start.elapsed() < WAITS[0], "it says so at once");
    });
}

#[test]
fn garbage_is_passed_over() {
    isolated("portmap::asking::tests::garbage_is_passed_over", async || {
        bring_up();
        let garbage = vec![Vec::new(), vec![0; 1], vec![0xff; 1100], b"HTTP/1.1 200 OK".to_vec()];
        answer_from(ROUTER.gateway, garbage.into_iter().chain([bytes(OUTSIDE)]).collect()).await;
        assert_eq!(asker().outside().await.map(|outside| outside.epoch), Ok(9));
        // What PCP gets is the answer of another version: there is nothing better to wait for.
        assert_eq!(asker().probe(Protocol::Pcp).await, Err(Failure::Refused));
        assert_eq!(asker().map(Protocol::NatPmp, 1).await, Err(Failure::Garbage));
    });
}

#[test]
fn refusals_are_final() {
    isolated("portmap::asking::tests::refusals_are_final", async || {
        bring_up();
        answer_from(ROUTER.gateway, vec![bytes("0081000200000009")]).await;
        let start = StdInstant::now();
        assert_eq!(asker().map(Protocol::NatPmp, 1).await, Err(Failure::Refused));
        assert!(start.elapsed() < WAITS[0]);
    });
}

#[test]
fn answers_from_elsewhere_are_not_heard() {
    isolated("portmap::asking::tests::answers_from_elsewhere_are_not_heard", async || {
        bring_up();
        answer_from(ELSEWHERE, vec![bytes(OUTSIDE)]).await;
        assert_eq!(asker().outside().await, Err(Failure::Silent));
    });
}

/// A gateway that names this as its description's address.
async fn ssdp(from: Ipv4Addr, location: String) {
    let heard = UdpSocket::bind((ROUTER.gateway, SSDP_PORT)).await.unwrap();
    let other =
        if from == ROUTER.gateway { None } else { Some(UdpSocket::bind((from, SSDP_PORT)).await.unwrap()) };
    let answer = format!("HTTP/1.1 200 OK\r\nLOCATION: {location}\r\n\r\n");
    tokio::spawn(async move {
        let mut buffer = [0; 1100];
        loop {
            let (_, client) = heard.recv_from(&mut buffer).await.unwrap();
            let _ = other.as_ref().unwrap_or(&heard).send_to(answer.as_bytes(), client).await;
        }
    });
}

/// A web server that answers by what a request contains; it hands over how many came.
async fn web(
    address: Ipv4Addr,
    answer: impl Fn(&str) -> (u16, String) + Send + 'static,
) -> (u16, tokio::sync::watch::Receiver<u32>) {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (count, requests) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.send_modify(|count| *count += 1);
            let mut request = String::new();
            let mut buffer = [0; 4096];
            while !is_whole(&request) {
                let len = stream.read(&mut buffer).await.unwrap();
                request.push_str(std::str::from_utf8(&buffer[..len]).unwrap());
                if len == 0 {
                    break;
                }
            }
            let (status, body) = answer(&request);
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
        }
    });
    (port, requests)
}

fn is_whole(request: &str) -> bool {
    let end = if request.starts_with("GET") { "\r\n\r\n" } else { "Envelope>\r\n" };
    request.ends_with(end)
}

fn description(control: &str) -> String {
    format!(
        "<root><device><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1\
         </serviceType><controlURL>{control}</controlURL></service></serviceList></device></root>"
    )
}

fn response(action: &str, values: &str) -> (u16, String) {
    (200, format!("<e><b><u:{action}Response xmlns:u='x'>{values}</u:{action}Response></b></e>"))
}

fn fault(code: u32) -> (u16, String) {
    (500, format!("<e><UPnPError><errorCode>{code}</errorCode></UPnPError></e>"))
}

#[test]
fn an_old_gateway_maps_for_ever_and_counts_conflicts() {
    isolated("portmap::asking::tests::an_old_gateway_maps_for_ever_and_counts_conflicts", async || {
        bring_up();
        let (port, _) = web(ROUTER.gateway, |request| {
            if request.starts_with("GET /root.xml ") {
                (200, description("/ctl"))
            } else if request.contains("GetExternalIPAddress") {
                response("GetExternalIPAddress", "<NewExternalIPAddress>100.64.1.2</NewExternalIPAddress>")
            } else if request.contains("<NewExternalPort>1000<") {
                fault(718)
            } else if request.contains("<NewLeaseDuration>0<") {
                response("AddPortMapping", "")
            } else {
                fault(725)
            }
        })
        .await;
        ssdp(ROUTER.gateway, format!("http://{}:{port}/root.xml", ROUTER.gateway)).await;
        let service = asker().probe(Protocol::Upnp).await.unwrap();
        let asker = Asker { service, ..asker() };
        assert_eq!(asker.map(Protocol::Upnp, 1000).await, Err(Failure::Conflict));
        let granted = asker.map(Protocol::Upnp, 1001).await.unwrap();
        assert_eq!(granted.external, "100.64.1.2:1001".parse().unwrap());
    });
}

#[test]
fn nobody_but_the_router_is_ever_asked() {
    isolated("portmap::asking::tests::nobody_but_the_router_is_ever_asked", async || {
        bring_up();
        let (victim_port, asked) = web(ELSEWHERE, |_| (200, String::new())).await;
        let victim = format!("http://{ELSEWHERE}:{victim_port}/");
        let control = victim.clone();
        let (port, _) = web(ROUTER.gateway, move |_| (200, description(&control))).await;
        ssdp(ROUTER.gateway, format!("http://{}:{port}/", ROUTER.gateway)).await;
        assert_eq!(asker().probe(Protocol::Upnp).await, Err(Failure::Garbage), "the service is elsewhere");
        assert_eq!(*asked.borrow(), 0);
    });
}

#[test]
fn a_description_elsewhere_is_not_looked_at() {
    isolated("portmap::asking::tests::a_description_elsewhere_is_not_looked_at", async || {
        bring_up();
        let (victim_port, asked) = web(ELSEWHERE, |_| (200, description("/"))).await;
        ssdp(ROUTER.gateway, format!("http://{ELSEWHERE}:{victim_port}/")).await;
        assert_eq!(asker().probe(Protocol::Upnp).await, Err(Failure::Garbage));
        assert_eq!(*asked.borrow(), 0);
    });
}

#[test]
fn another_gateway_is_not_heard() {
    isolated("portmap::asking::tests::another_gateway_is_not_heard", async || {
        bring_up();
        let (port, asked) = web(ROUTER.gateway, |_| (200, description("/"))).await;
        ssdp(ELSEWHERE, format!("http://{}:{port}/", ROUTER.gateway)).await;
        assert_eq!(asker().probe(Protocol::Upnp).await, Err(Failure::Silent));
        assert_eq!(*asked.borrow(), 0);
    });
}
