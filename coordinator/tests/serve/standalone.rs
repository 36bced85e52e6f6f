//! A relay that stands alone, beside a coordinator, and without it.

use std::{net::SocketAddr, path::Path};

use mesh_coordinator::{
    relay::Limits,
    standalone::{RelayOptions, StandaloneRelay},
};
use mesh_proto::{
    control::{ClientMessage, RefusalCode, RelayChannel, ServerMessage},
    key::KeyPin,
    netmap::{NetworkMap, NodeId, RELAY_TAG, Relay, RelayId},
    relay::Frame,
    token::JoinToken,
};
use tempfile::TempDir;

use super::rig::{Agent, Client, Rig, bind, read, udp, within};

fn options(rig: &Rig, state: &Path, token: Option<JoinToken>) -> RelayOptions {
    RelayOptions {
        state_dir: state.to_owned(),
        listen_udp: "127.0.0.1:0".parse().unwrap(),
        listen_tcp: "127.0.0.1:0".parse().unwrap(),
        addresses: vec!["relay.example:7443".to_owned()],
        coordinators: vec![rig.address().to_string()],
        pin: rig.server.pin(),
        name: "outpost".parse().unwrap(),
        token,
        limits: Limits::default(),
    }
}

/// Waits until the relay is in a node's map, and returns how the map describes it.
async fn relay_in_map(client: &mut Client, mut map: NetworkMap) -> Relay {
    loop {
        if let Some(relay) = map.relays.iter().find(|relay| relay.key.is_some()) {
            return relay.clone();
        }
        let delta = client
            .hear_until(|message| match message {
                ServerMessage::Delta { delta } => Some(delta.clone()),
                _ => None,
            })
            .await;
        map.apply(delta).unwrap();
        assert!(map.peers.iter().all(|peer| !peer.is_relay()), "a relay is nobody's peer");
    }
}

/// Opens a channel at a relay; again until the relay knows the node.
async fn open_channel(relay: SocketAddr, agent: &Agent, pin: KeyPin) -> (Client, RelayChannel) {
    within(async {
        loop {
            let mut client = Client::dial(relay, agent, pin).await.unwrap();
            client.hello().await;
            client.say(&ClientMessage::RelayOpen).await;
            match client.hear().await {
                ServerMessage::RelayOpened(channel) => return (client, channel),
                ServerMessage::Refused(refusal) => assert_eq!(refusal.code, RefusalCode::NotRegistered),
                other => panic!("expected a channel, got {other:?}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_relay_alone_serves_the_nodes_of_its_map_with_and_without_the_coordinator() {
    let rig = Rig::start().await;
    let (first, second) = (Agent::new("home-a"), Agent::new("home-b"));
    let (first_id, second_id) = (rig.join(&first).await.id, rig.join(&second).await.id);
    let state = TempDir::new().unwrap();
    let token = rig.token_with_tags(1, &[RELAY_TAG]).await;
    let relay = StandaloneRelay::start(options(&rig, state.path(), Some(token))).await.unwrap();

    let (mut client, map) = rig.connect(&first).await;
    let described = relay_in_map(&mut client, map).await;
    assert_eq!(described.name, "outpost");
    assert_eq!(described.addresses, ["relay.example:7443"]);
    let pin = KeyPin::of_spki(&described.key.unwrap().to_spki());

    let nodes = [(&first, first_id), (&second, second_id)];
    exchange(&relay, pin, described.id, nodes).await;
    relay.stop().await;

    let options = options(&rig, state.path(), None);
    rig.server.stop().await;
    let relay = StandaloneRelay::start(options).await.unwrap();
    exchange(&relay, pin, described.id, nodes).await;
    relay.stop().await;
}

#[tokio::test]
async fn strangers_and_removed_nodes_get_no_channel_and_a_removed_relay_serves_nobody() {
    let rig = Rig::start().await;
    let (agent, stranger) = (Agent::new("home-a"), Agent::new("stranger"));
    let node = rig.join(&agent).await;
    let state = TempDir::new().unwrap();
    let token = rig.token_with_tags(1, &[RELAY_TAG]).await;
    let mut relay = StandaloneRelay::start(options(&rig, state.path(), Some(token))).await.unwrap();
    let (mut client, map) = rig.connect(&agent).await;
    let described = relay_in_map(&mut client, map).await;
    let pin = KeyPin::of_spki(&described.key.unwrap().to_spki());

    let (mut to_relay, _) = open_channel(relay.udp_addr(), &agent, pin).await;
    let mut refused = Client::dial(relay.udp_addr(), &stranger, pin).await.unwrap();
    refused.hello().await;
    assert_eq!(refused.hear_refusal().await, RefusalCode::NotRegistered);

    rig.server.registry().remove_node(&node.name).await.unwrap();
    assert_eq!(to_relay.hear_refusal().await, RefusalCode::NotRegistered, "a removed node is cut off");

    let again = Agent::new("home-b");
    rig.join(&again).await;
    let (mut to_relay, _) = open_channel(relay.udp_addr(), &again, pin).await;
    rig.server.registry().remove_node(&"outpost".parse().unwrap()).await.unwrap();
    assert_eq!(to_relay.hear_refusal().await, RefusalCode::NotRegistered);
    let error = within(relay.failed()).await.to_string();
    assert!(error.contains("token"), "its token is used up: {error}");
    relay.stop().await;
    rig.server.stop().await;
}

#[tokio::test]
async fn a_node_that_did_not_join_as_a_relay_is_not_put_into_the_map_as_one() {
    let rig = Rig::start().await;
    let agent = Agent::new("home-a");
    rig.join(&agent).await;
    let (mut client, map) = rig.connect(&agent).await;
    client.say(&ClientMessage::ServeRelay { addresses: vec!["evil.example:1".to_owned()] }).await;
    assert_eq!(client.hear_refusal().await, RefusalCode::Protocol);
    let (_client, again) = rig.connect(&agent).await;
    assert_eq!(again.relays, map.relays);
    rig.server.stop().await;
}

/// Has two nodes open channels and send each other something.
async fn exchange(
    relay: &StandaloneRelay,
    pin: KeyPin,
    id: RelayId,
    [(first, first_id), (second, second_id)]: [(&Agent, NodeId); 2],
) {
    let address = relay.udp_addr();
    let (_one, one) = open_channel(address, first, pin).await;
    let (_two, two) = open_channel(address, second, pin).await;
    assert_eq!([one.relay, two.relay], [id, id]);
    let (one_socket, two_socket) = (udp().await, udp().await);
    bind(&one_socket, address, &one, 1).await;
    bind(&two_socket, address, &two, 1).await;
    let sent = Frame::Data { peer: second_id, channel: one.channel, payload: b"ciphertext" };
    one_socket.send_to(&sent.encode(), address).await.unwrap();
    let expected = Frame::Data { peer: first_id, channel: two.channel, payload: b"ciphertext" };
    assert_eq!(Frame::decode(&read(&two_socket).await).unwrap(), expected);
}
