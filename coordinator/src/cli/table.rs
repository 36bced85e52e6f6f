//! Tables for people.

use std::fmt::Write;

use crate::admin::{NodeEntry, RouteEntry};

/// Spaces between two columns.
const GAP: usize = 2;

/// Lists nodes.
pub(super) fn nodes(entries: &[NodeEntry]) -> String {
    let header = ["ID", "NAME", "ADDRESSES", "ONLINE", "TAGS"].map(str::to_owned);
    let rows = entries.iter().map(|NodeEntry { node, online }| {
        let addresses: Vec<_> = node.addresses.iter().map(ToString::to_string).collect();
        let online = if *online { "yes" } else { "no" };
        let tags = if node.tags.is_empty() { "-".to_owned() } else { node.tags.join(",") };
        [node.id.0.to_string(), node.name.to_string(), addresses.join(","), online.to_owned(), tags]
    });
    align(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
}

/// Lists routes.
pub(super) fn routes(entries: &[RouteEntry]) -> String {
    let header = ["NODE", "ROUTE", "KIND", "STATE", "REASON"].map(str::to_owned);
    let rows = entries.iter().map(|entry| {
        [
            entry.node.to_string(),
            entry.prefix.to_string(),
            entry.kind.map_or_else(|| "-".to_owned(), |kind| kind.to_string()),
            entry.state.to_string(),
            entry.reason.clone().unwrap_or_default(),
        ]
    });
    align(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
}

fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:<width$}", width = width + GAP);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        key::{NodeKey, PublicKey},
        netmap::{Node, NodeId},
    };

    use super::*;

    #[test]
    fn columns_are_aligned() {
        let node = Node {
            id: NodeId(12),
            name: "home-a".parse().unwrap(),
            node_key: NodeKey([1; 32]),
            public_key: PublicKey([2; 32]),
            addresses: vec!["10.90.0.12".parse().unwrap(), "fd01::c".parse().unwrap()],
            allowed_ips: vec![],
            tags: vec!["gpu".to_owned(), "fast".to_owned()],
        };
        let bare = Node { name: "pi".parse().unwrap(), tags: vec![], id: NodeId(1), ..node.clone() };
        let table = nodes(&[NodeEntry { node: bare, online: true }, NodeEntry { node, online: false }]);
        assert_eq!(
            table,
            "ID  NAME    ADDRESSES           ONLINE  TAGS\n\
             1   pi      10.90.0.12,fd01::c  yes     -\n\
             12  home-a  10.90.0.12,fd01::c  no      gpu,fast\n"
        );
    }
}
