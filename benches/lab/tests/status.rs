//! `meshctl status --json`, held against the text of DESIGN section 7 and not against the types that write it.

use std::time::{Duration, Instant};

use mesh_lab::traffic::Echo;
use mesh_lab::{Lab, Village, village};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(15);
const INTERVAL: Duration = Duration::from_millis(200);

/// What a value must be.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Text,
    /// RFC 3339, in UTC.
    Time,
    /// An IP address.
    Address,
    /// An IP address and a port.
    Endpoint,
    /// An IP network.
    Network,
    Whole,
    Number,
    Flag,
    Word(&'static [&'static str]),
    List(&'static Shape),
    Record(&'static [(&'static str, Shape)]),
    /// Names of reasons, and how often.
    Counts,
    OrNull(&'static Shape),
}

use Shape::{
    Address, Counts, Endpoint, Flag, List, Network, Number, OrNull, Record, Text, Time, Whole, Word,
};

const CANDIDATE: Shape = Record(&[
    ("address", Endpoint),
    ("kind", Word(&["host", "reflexive", "port-mapped", "relayed", "guess"])),
]);

const SELF: Shape = Record(&[
    ("name", Text),
    ("node_key", Text),
    ("public_key", Text),
    ("addresses", List(&Address)),
    ("interface", Text),
    ("mtu", Whole),
    ("candidates", List(&CANDIDATE)),
    (
        "nat",
        Record(&[
            ("mapping", Word(&["eim", "adm", "apdm", "none", "unknown"])),
            ("port_mapping", Word(&["pcp", "nat-pmp", "upnp", "none"])),
            ("udp_blocked", Flag),
        ]),
    ),
    (
        "coordinator",
        Record(&[
            ("state", Word(&["connected", "connecting", "offline"])),
            ("address", OrNull(&Text)),
            ("transport", OrNull(&Word(&["quic", "websocket"]))),
            ("rtt_ms", OrNull(&Number)),
        ]),
    ),
    (
        "relay",
        OrNull(&Record(&[
            ("name", Text),
            ("transport", Word(&["udp", "websocket"])),
            ("rtt_ms", OrNull(&Number)),
        ])),
    ),
    ("routes", List(&Network)),
]);

const PEER: Shape = Record(&[
    ("name", Text),
    ("node_key", Text),
    ("public_key", Text),
    ("addresses", List(&Address)),
    ("allowed_ips", List(&Network)),
    ("online", Flag),
    (
        "path",
        Record(&[
            ("kind", Word(&["direct", "relay", "none"])),
            ("address", OrNull(&Endpoint)),
            ("relay", OrNull(&Text)),
            ("rtt_ms", OrNull(&Number)),
            ("mtu", OrNull(&Whole)),
            ("since", OrNull(&Time)),
            ("code", Text),
            ("reason", Text),
        ]),
    ),
    ("last_handshake", OrNull(&Time)),
    ("tx_bytes", Whole),
    ("rx_bytes", Whole),
    ("loss", Number),
    ("loss_measured", Flag),
    ("drops", Counts),
]);

const STATUS: Shape = Record(&[("self", SELF), ("peers", List(&PEER))]);

#[test]
fn status_is_to_the_letter_of_the_design() {
    let lab = Lab::new("status").unwrap();
    let village = Village::start(&lab).unwrap();
    for node in village.nodes() {
        check(STATUS, &node.status_json().unwrap(), "status").unwrap();
    }
    let echo = Echo::all(&village, INTERVAL).unwrap();
    echo.wait_all(Instant::now(), PATIENCE).unwrap();
    for node in village.nodes() {
        let status = node.status_json().unwrap();
        check(STATUS, &status, "status").unwrap();
        let this = &status["self"];
        assert_eq!(this["name"], node.name());
        assert_eq!(this["interface"], "mesh0");
        assert_eq!(this["coordinator"]["state"], "connected");
        assert_eq!(this["coordinator"]["transport"], "quic");
        assert_eq!(this["relay"]["name"], village::COORDINATOR_HOST);
        assert!(this["addresses"][0].as_str().unwrap().starts_with("10.90."), "{this}");
        assert!(this["addresses"][1].as_str().unwrap().starts_with("fd"), "{this}");
        assert!(!this["candidates"].as_array().unwrap().is_empty(), "{this}");
        let peers = status["peers"].as_array().unwrap();
        let names: Vec<&str> = peers.iter().map(|peer| peer["name"].as_str().unwrap()).collect();
        let mut wanted: Vec<&str> = village::NODES.into_iter().filter(|name| *name != node.name()).collect();
        wanted.sort_unstable();
        assert_eq!(names, wanted, "peers, by name");
        for peer in peers {
            assert_eq!(peer["online"], true, "{peer}");
            assert!(peer["last_handshake"].is_string(), "{peer}");
            assert!(peer["tx_bytes"].as_u64() > Some(0) && peer["rx_bytes"].as_u64() > Some(0), "{peer}");
            let (path, kind) = (&peer["path"], peer["path"]["kind"].as_str().unwrap());
            assert_eq!(path["address"].is_string(), kind == "direct", "{path}");
            assert_eq!(path["relay"].is_string(), kind == "relay", "{path}");
            assert!(path["since"].is_string() && path["mtu"].as_u64() >= Some(1280), "{path}");
            assert!(!path["reason"].as_str().unwrap().is_empty(), "{path}");
        }
    }
    village.check_logs(&[]).unwrap();
}

/// Compares a value with its shape; fields beyond it are allowed, as later versions add some.
fn check(shape: Shape, value: &Value, at: &str) -> anyhow::Result<()> {
    let text = value.as_str().unwrap_or_default();
    let is_right = match shape {
        Shape::OrNull(_) if value.is_null() => true,
        Shape::OrNull(inner) => return check(*inner, value, at),
        Shape::List(inner) => {
            let Some(list) = value.as_array() else { anyhow::bail!("{at} is no list: {value}") };
            return list
                .iter()
                .enumerate()
                .try_for_each(|(index, value)| check(*inner, value, &format!("{at}[{index}]")));
        }
        Shape::Record(fields) => {
            return fields.iter().try_for_each(|(name, shape)| match value.get(name) {
                Some(value) => check(*shape, value, &format!("{at}.{name}")),
                None => anyhow::bail!("{at} has no {name}: {value}"),
            });
        }
        Shape::Text => value.is_string(),
        Shape::Time => text.ends_with('Z') && text.as_bytes().get(10) == Some(&b'T') && text.len() >= 20,
        Shape::Address => text.parse::<std::net::IpAddr>().is_ok(),
        Shape::Endpoint => text.parse::<std::net::SocketAddr>().is_ok(),
        Shape::Network => text.parse::<ipnet::IpNet>().is_ok(),
        Shape::Whole => value.is_u64(),
        Shape::Number => value.is_number(),
        Shape::Flag => value.is_boolean(),
        Shape::Word(words) => words.contains(&text),
        Shape::Counts => value.as_object().is_some_and(|counts| counts.values().all(Value::is_u64)),
    };
    anyhow::ensure!(is_right, "{at} is not {shape:?}: {value}");
    Ok(())
}
