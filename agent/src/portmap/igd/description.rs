//! Device descriptions (UPnP Device Architecture 1.1, section 2): which services map ports, and where they are asked.

use std::net::Ipv4Addr;

use roxmltree::{Document, Node, ParsingOptions};

use super::{Service, Target};

/// The services, the best first (IGD:2, then IGD:1; PPP is what DSL routers have).
const KINDS: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// Nodes of the longest document, so that a document costs no more than some times its size.
const MAX_NODES: u32 = 4096;

/// Reads the services of a description that was found at `place`, the best first.
pub(super) fn services(
    text: &str,
    gateway: Ipv4Addr,
    place: &Target,
) -> Result<Vec<Service>, roxmltree::Error> {
    let document = parse(text)?;
    let base = child_text(document.root_element(), "URLBase");
    let base = base.and_then(|base| Target::parse(base, gateway).ok());
    let base = base.as_ref().unwrap_or(place);
    let mut services: Vec<(usize, Service)> = document
        .descendants()
        .filter(|node| node.is_element() && node.tag_name().name() == "service")
        .filter_map(|node| {
            let kind = child_text(node, "serviceType")?;
            let rank = KINDS.iter().position(|known| *known == kind)?;
            let control = base.join(child_text(node, "controlURL")?, gateway).ok()?;
            Some((rank, Service { kind: KINDS[rank], control }))
        })
        .collect();
    services.sort_by_key(|(rank, _)| *rank);
    Ok(services.into_iter().map(|(_, service)| service).collect())
}

/// Parses a document without a DTD, so that nothing in it grows; deep nesting costs no stack (`parse_content`).
pub(super) fn parse(text: &str) -> Result<Document<'_>, roxmltree::Error> {
    let options = ParsingOptions { nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    Document::parse_with_options(text, options)
}

/// Returns the text of the first child of this name.
pub(super) fn child_text<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    let child = node.children().find(|child| child.is_element() && child.tag_name().name() == name)?;
    child.text().map(str::trim)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

    fn place() -> Target {
        Target { port: 5000, path: "/rootDesc.xml".to_owned() }
    }

    fn service(kind: &str, url: &str) -> String {
        format!("<service><serviceType>{kind}</serviceType><controlURL>{url}</controlURL></service>")
    }

    fn device(services: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?>\n<root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device><deviceList><device>\
             <serviceList>{services}</serviceList></device></deviceList></device></root>"
        )
    }

    fn found(text: &str) -> Vec<(&'static str, u16, String)> {
        let services = services(text, GATEWAY, &place()).unwrap();
        services
            .into_iter()
            .map(|service| (service.kind, service.control.port, service.control.path))
            .collect()
    }

    #[test]
    fn the_services_of_both_versions_are_found_the_best_first() {
        let text = device(
            &[
                service("urn:schemas-upnp-org:service:Layer3Forwarding:1", "/l3f"),
                service(KINDS[2], "ppp"),
                service(KINDS[1], "/ctl/IPConn"),
                service(KINDS[0], " http://192.168.1.1:49152/ip2 "),
            ]
            .concat(),
        );
        let expected = [
            (KINDS[0], 49152, "/ip2".to_owned()),
            (KINDS[1], 5000, "/ctl/IPConn".to_owned()),
            (KINDS[2], 5000, "/ppp".to_owned()),
        ];
        assert_eq!(found(&text), expected);
    }

    #[test]
    fn services_elsewhere_are_none_of_the_routers() {
        let text =
            device(&[service(KINDS[0], "http://203.0.113.1/x"), service(KINDS[1], "//10.0.0.1/y")].concat());
        assert_eq!(found(&text), []);
        let based = device(&service(KINDS[1], "x"))
            .replace("<device><deviceList>", "<URLBase>http://203.0.113.1/a/</URLBase><device><deviceList>");
        assert_eq!(found(&based), [(KINDS[1], 5000, "/x".to_owned())], "a base elsewhere is no base");
        let based = based.replace("203.0.113.1", "192.168.1.1:81");
        assert_eq!(found(&based), [(KINDS[1], 81, "/a/x".to_owned())]);
    }

    #[test]
    fn hostile_documents_are_refused() {
        let bomb = "<!DOCTYPE r [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;\">]><root>&b;</root>";
        let file = "<!DOCTYPE r [<!ENTITY a SYSTEM \"file:///etc/passwd\">]><root>&a;</root>";
        let deep = format!("{}{}", "<a>".repeat(9000), "</a>".repeat(9000));
        let many = format!("<root>{}</root>", "<a/>".repeat(16_000));
        let attributes = format!("<root {}/>", "a".repeat(60_000));
        for text in [bomb, file, &deep, &many, &attributes, "", "<html>", "\u{0}", "<root><a></root>"] {
            assert!(
                services(text, GATEWAY, &place()).is_err(),
                "{}",
                text.chars().take(40).collect::<String>()
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[<>/a-c \"'=!\\[\\]&;?-]{0,200}|.{0,100}") {
            let _ = services(&text, GATEWAY, &place());
        }
    }
}
