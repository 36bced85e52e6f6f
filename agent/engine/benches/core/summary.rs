//! The medians that belong together, as one table.

use std::path::Path;

use crate::{LENGTHS, PEERS, ROUTES, SEGMENT_LEN, cut::SMALL, star::SEGMENTS};

/// Prints what criterion has kept, of this run or of an earlier one.
pub(crate) fn print(folder: &Path) {
    println!("\nns per packet (share of bare ring's speed)");
    println!("{:<6}{:>6} {:>10}{:>18}{:>18}", "", "bytes", "ring", "1 peer", "1,000 peers");
    for group in ["seal", "open"] {
        for len in LENGTHS {
            let at = |name: &str| median(folder, &[group, name, &len.to_string()]);
            let bare = at("ring");
            print!("{group:<6}{len:>6} {:>10}", show(bare));
            for peers in PEERS {
                let engine = at(&format!("peers-{peers}"));
                let share =
                    bare.zip(engine).map(|(bare, engine)| format!(" ({:.0} %)", 100.0 * bare / engine));
                print!("{:>18}", show(engine) + &share.unwrap_or_default());
            }
            println!();
        }
    }
    let each = median(folder, &["seal", "superpacket"]).map(|whole| whole / SEGMENTS as f64);
    println!("superpacket of {SEGMENTS} segments, cut and sealed: {} ns per segment", show(each));
    for len in [SMALL, SEGMENT_LEN] {
        let each = median(folder, &["cut", "superpacket", &len.to_string()]);
        let each = each.map(|whole| whole / SEGMENTS as f64);
        println!("the same cut only, {len} B of payload: {} ns per segment", show(each));
    }
    let checksum = median(folder, &["cut", "checksum", &SEGMENT_LEN.to_string()]);
    println!("checksum of {SEGMENT_LEN} B completed: {} ns", show(checksum));
    for peers in ROUTES {
        let lookup = median(folder, &["route", "lookup", &peers.to_string()]);
        println!("route lookup, {peers} peers: {} ns", show(lookup));
    }
}

fn show(nanoseconds: Option<f64>) -> String {
    nanoseconds.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"))
}

/// Reads a median, in nanoseconds; `None` if it was not measured.
fn median(folder: &Path, id: &[&str]) -> Option<f64> {
    let file = id.iter().fold(folder.to_owned(), |path, part| path.join(part)).join("new/estimates.json");
    let estimates: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    estimates["median"]["point_estimate"].as_f64()
}
