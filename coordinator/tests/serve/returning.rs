//! A mesh comes back after a restart of its coordinator: everybody is in again, and is sent what it lacks and no more.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use mesh_proto::netmap::Version;

use super::{
    rig::{Agent, DEADLINE, Rig},
    storm::{Knows, News, all_come_back},
};

/// Nodes: more than may be at the door at once without proving their address.
const NODES: usize = 100;

async fn joined(rig: &Rig) -> (Vec<Arc<Agent>>, Version) {
    let agents: Vec<_> = (0..NODES).map(|number| Arc::new(Agent::new(&format!("n{number}")))).collect();
    let registry = rig.server.registry();
    let token = rig.token(u32::try_from(NODES).unwrap()).await;
    for agent in &agents {
        let name = agent.name.parse().unwrap();
        registry.join(agent.identity.node_key, token.clone(), name, agent.public_key).await.unwrap();
    }
    (agents, registry.version())
}

/// The agents, all with a map of this version.
fn with(agents: &[Arc<Agent>], map: Option<Version>) -> Vec<(Arc<Agent>, Option<Version>)> {
    agents.iter().map(|agent| (agent.clone(), map)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_comes_back_and_is_sent_what_it_lacks() {
    let rig = Rig::start().await;
    let (agents, version) = joined(&rig).await;
    let first = all_come_back(rig.address(), with(&agents, None), rig.server.pin()).await;
    assert!(first.iter().all(|returned| returned.news == News::Whole(version)));
    drop(first);
    let rig = rig.restart_elsewhere().await;

    let pin = rig.server.pin();
    let began = Instant::now();
    let mut again = all_come_back(rig.address(), with(&agents, Some(version)), pin).await;
    assert!(again.iter().all(|returned| returned.news == News::Nothing), "all had the latest map");
    let last = again.iter().map(|returned| returned.at - began).max();
    println!("{NODES} are back after {:?}", last.unwrap());
    for returned in &mut again {
        returned.meet(Knows { others: NODES - 1, reach: true }, DEADLINE).await;
    }

    // While they are away a node gets another name, and one leaves.
    let registry = rig.server.registry();
    registry.rename_node(&"n1".parse().unwrap(), "renamed".parse().unwrap()).await.unwrap();
    registry.remove_node(&"n0".parse().unwrap()).await.unwrap();
    let now = registry.version();
    drop(again);
    let rig = rig.restart_elsewhere().await;
    let others = all_come_back(rig.address(), with(&agents[2..], Some(version)), pin).await;
    assert!(others.iter().all(|returned| returned.news == News::Delta(now)));

    // A version of another epoch, or of the future, is no base for a delta.
    for known in [Version { epoch: version.epoch + 1, ..now }, Version { serial: now.serial + 1, ..now }] {
        let returned = all_come_back(rig.address(), with(&agents[1..2], Some(known)), pin).await;
        assert_eq!(returned[0].news, News::Whole(now), "{known:?}");
    }
    let failures: BTreeMap<u32, usize> = others.iter().fold(BTreeMap::new(), |mut counts, returned| {
        *counts.entry(returned.failures).or_default() += 1;
        counts
    });
    println!("attempts that failed, and of how many: {failures:?}");
    rig.server.stop().await;
}
