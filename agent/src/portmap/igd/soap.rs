//! Actions of WANIPConnection and WANPPPConnection, as SOAP (WANIPConnection:1, section 2.4; UPnP Device Architecture
//! 1.1, section 3).

use std::{collections::BTreeMap, fmt::Write as _, net::Ipv4Addr, time::Duration};

use super::description::{self, child_text};

/// Something that a service is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action<'a> {
    GetExternalIpAddress,
    AddPortMapping {
        external_port: u16,
        internal_port: u16,
        client: Ipv4Addr,
        description: &'a str,
        /// Zero for ever.
        lease: Duration,
    },
    GetSpecificPortMappingEntry {
        external_port: u16,
    },
    DeletePortMapping {
        external_port: u16,
    },
}

/// The values of an answer, by their names.
pub(super) type Answer = BTreeMap<String, String>;

/// Why an answer is not one.
#[derive(Debug, thiserror::Error)]
pub(super) enum SoapError {
    /// It cannot be read.
    #[error(transparent)]
    Xml(#[from] roxmltree::Error),
    /// It is the answer to something else.
    #[error("not an answer to this question")]
    Unrelated,
    /// The router says no.
    #[error("the router refused: {0:?}")]
    Fault(Fault),
}

/// Why the router says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// There is no such mapping (714).
    NoSuchEntry,
    /// Somebody else has the port, or the router itself (718, 729).
    Conflict,
    /// The router knows no leases (725).
    OnlyPermanentLeases,
    /// Anything else.
    Other(u32),
}

impl Action<'_> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::GetExternalIpAddress => "GetExternalIPAddress",
            Self::AddPortMapping { .. } => "AddPortMapping",
            Self::GetSpecificPortMappingEntry { .. } => "GetSpecificPortMappingEntry",
            Self::DeletePortMapping { .. } => "DeletePortMapping",
        }
    }

    /// The value of the header `SOAPAction`.
    pub(super) fn header(&self, service: &str) -> String {
        format!("\"{service}#{}\"", self.name())
    }

    /// The request's body.
    pub(super) fn body(&self, service: &str) -> String {
        let name = self.name();
        let mut arguments = String::new();
        for (name, value) in self.arguments() {
            let _ = write!(arguments, "<{name}>{value}</{name}>");
        }
        format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{name} xmlns:u=\"{service}\">\
             {arguments}</u:{name}></s:Body></s:Envelope>\r\n"
        )
    }

    /// In the order that the standard gives; some routers depend on it. No value needs an escape.
    fn arguments(&self) -> Vec<(&'static str, String)> {
        let which = |port: u16| {
            vec![
                ("NewRemoteHost", String::new()),
                ("NewExternalPort", port.to_string()),
                ("NewProtocol", "UDP".to_owned()),
            ]
        };
        match *self {
            Self::GetExternalIpAddress => Vec::new(),
            Self::GetSpecificPortMappingEntry { external_port }
            | Self::DeletePortMapping { external_port } => which(external_port),
            Self::AddPortMapping { external_port, internal_port, client, description, lease } => {
                let mut arguments = which(external_port);
                arguments.extend([
                    ("NewInternalPort", internal_port.to_string()),
                    ("NewInternalClient", client.to_string()),
                    ("NewEnabled", "1".to_owned()),
                    ("NewPortMappingDescription", description.to_owned()),
                    ("NewLeaseDuration", lease.as_secs().to_string()),
                ]);
                arguments
            }
        }
    }
}

/// Reads the answer to an action.
pub(super) fn read(text: &str, action: &str) -> Result<Answer, SoapError> {
    let document = description::parse(text)?;
    let mut elements = document.descendants().filter(roxmltree::Node::is_element);
    let wanted = format!("{action}Response");
    let found = elements.find(|node| [wanted.as_str(), "UPnPError"].contains(&node.tag_name().name()));
    let found = found.ok_or(SoapError::Unrelated)?;
    if found.tag_name().name() == wanted {
        let values = found.children().filter(roxmltree::Node::is_element);
        let value = |node: roxmltree::Node<'_, '_>| {
            (node.tag_name().name().to_owned(), node.text().unwrap_or_default().trim().to_owned())
        };
        return Ok(values.map(value).collect());
    }
    let code = child_text(found, "errorCode").and_then(|code| code.parse().ok());
    Err(SoapError::Fault(match code.ok_or(SoapError::Unrelated)? {
        714 => Fault::NoSuchEntry,
        718 | 729 => Fault::Conflict,
        725 => Fault::OnlyPermanentLeases,
        other => Fault::Other(other),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SERVICE: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";

    #[test]
    fn a_mapping_is_asked_for_with_these_bytes() {
        let add = Action::AddPortMapping {
            external_port: 51821,
            internal_port: 51820,
            client: Ipv4Addr::new(192, 168, 1, 10),
            description: "mesh-agent",
            lease: Duration::from_secs(7200),
        };
        assert_eq!(add.header(SERVICE), "\"urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping\"");
        let expected = "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
            s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
            <u:AddPortMapping xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:1\">\
            <NewRemoteHost></NewRemoteHost><NewExternalPort>51821</NewExternalPort><NewProtocol>UDP</NewProtocol>\
            <NewInternalPort>51820</NewInternalPort><NewInternalClient>192.168.1.10</NewInternalClient>\
            <NewEnabled>1</NewEnabled><NewPortMappingDescription>mesh-agent</NewPortMappingDescription>\
            <NewLeaseDuration>7200</NewLeaseDuration></u:AddPortMapping></s:Body></s:Envelope>\r\n";
        assert_eq!(add.body(SERVICE), expected);
    }

    fn envelope(body: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?>\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>{body}\
             </s:Body></s:Envelope>"
        )
    }

    fn fault(code: &str) -> String {
        envelope(&format!(
            "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>\
             <UPnPError xmlns=\"urn:schemas-upnp-org:control-1-0\"><errorCode>{code}</errorCode></UPnPError></detail></s:Fault>"
        ))
    }

    #[test]
    fn answers_and_faults_are_read() {
        let text = envelope(&format!(
            "<u:GetExternalIPAddressResponse xmlns:u=\"{SERVICE}\"><NewExternalIPAddress>203.0.113.1\
             </NewExternalIPAddress></u:GetExternalIPAddressResponse>"
        ));
        let answer = read(&text, "GetExternalIPAddress").unwrap();
        assert_eq!(answer.get("NewExternalIPAddress").map(String::as_str), Some("203.0.113.1"));
        assert!(matches!(read(&text, "AddPortMapping"), Err(SoapError::Unrelated)));
        for (code, expected) in [
            ("714", Fault::NoSuchEntry),
            ("718", Fault::Conflict),
            ("725", Fault::OnlyPermanentLeases),
            ("606", Fault::Other(606)),
        ] {
            let error = read(&fault(code), "AddPortMapping").unwrap_err();
            assert!(matches!(error, SoapError::Fault(fault) if fault == expected), "{code}");
        }
        assert!(matches!(read(&fault("no number"), "AddPortMapping"), Err(SoapError::Unrelated)));
        assert!(matches!(read("<html>", "AddPortMapping"), Err(SoapError::Xml(_))));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[<>/:a-c \"'=UPnPError]{0,200}|.{0,100}") {
            let _ = read(&text, "AddPortMapping");
        }
    }
}
