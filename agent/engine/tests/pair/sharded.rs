//! Nodes of several engines do all that nodes of one do, however badly the system steers what comes to them.

use proptest::{prelude::*, test_runner::Config};

use crate::{
    batches, hostile, introduced, is_direct, millis, mtu, rekey, restart, roaming, seconds,
    world::{SHARDS, World, packet},
};

/// Engines of a node, where it has several.
const COUNTS: [u32; 2] = [2, 3];
/// Cases of the property.
const CASES: u32 = 100;

macro_rules! suite {
    ($($test:path),* $(,)?) => { [$((stringify!($test), $test as fn())),*] };
}

/// Runs something with nodes of so many engines.
fn with_shards<T>(shards: u32, run: impl FnOnce() -> T) -> T {
    let before = SHARDS.replace(shards);
    let result = run();
    SHARDS.set(before);
    result
}

#[test]
fn nodes_of_several_engines_pass_the_tests_of_nodes_of_one() {
    let suite = suite![
        crate::the_first_packet_takes_one_and_a_half_relay_round_trips,
        crate::packets_that_wait_for_a_session_all_arrive_in_order,
        crate::a_pair_that_can_be_direct_is_direct_at_once_and_stays,
        crate::without_a_direct_path_data_goes_through_the_relay_and_the_reason_is_known,
        crate::a_direct_path_that_dies_is_left_within_three_seconds_and_taken_again,
        crate::a_session_is_renewed_while_data_flows,
        crate::both_sides_may_begin_at_once,
        crate::an_idle_peer_costs_nothing,
        crate::after_a_pause_packets_go_both_ways_until_the_direct_path_answers,
        crate::a_lost_relay_is_survived_by_a_direct_path,
        crate::without_a_relay_known_addresses_do,
        crate::a_restarted_node_is_reached_again,
        crate::a_restarted_node_that_says_nothing_is_found_by_its_silence,
        crate::observers_and_relays_show_the_reflexive_address,
        crate::a_ping_is_answered_on_the_primary_path,
        crate::packets_from_and_to_strangers_are_dropped,
        crate::a_peer_with_a_new_key_is_a_new_peer_at_the_same_place,
        crate::nothing_is_kept_of_a_peer_that_is_gone,
        mtu::every_path_carries_what_its_link_does,
        mtu::what_a_relay_carries_does_not_wait_for_the_direct_path_s_measure,
        mtu::the_largest_size_takes_one_probe_per_path,
        mtu::an_idle_pair_searches_nothing,
        mtu::a_packet_that_may_be_cut_arrives_in_fragments,
        mtu::a_superpacket_is_cut_smaller_until_the_mtu_is_known_and_answered_then,
        mtu::a_packet_that_may_not_be_cut_waits_until_it_is_known_what_passes,
        mtu::nobody_is_told_a_size_that_was_not_measured,
        mtu::a_path_that_becomes_narrower_is_found_out,
        mtu::large_packets_that_nobody_answers_bring_the_floor_back,
        mtu::a_change_to_a_narrower_path_just_works,
        mtu::while_a_path_is_doubted_the_narrower_one_counts,
        mtu::the_segment_size_of_a_syn_is_clamped_both_ways,
        rekey::streams_both_ways_lose_nothing_while_keys_change,
        rekey::what_is_sent_while_keys_end_arrives,
        restart::nothing_is_lost_on_the_way_to_a_node_that_is_restarted,
        restart::no_keys_are_agreed_on_with_a_process_that_is_about_to_end,
        restart::a_node_that_does_not_come_back_is_not_waited_for,
        restart::a_pause_that_was_held_back_until_the_next_process_is_there_does_nothing,
        roaming::a_node_that_moves_and_knows_it_loses_next_to_nothing,
        roaming::a_mapping_that_moves_unnoticed_costs_less_than_three_seconds,
        roaming::a_relayed_node_whose_mapping_moves_is_back_within_four_seconds,
        roaming::many_moves_leave_nothing_stuck,
        roaming::news_that_comes_right_after_a_call_is_told_a_little_later,
        roaming::a_node_with_nothing_to_tell_does_not_spin,
        roaming::packets_wait_for_a_relay_that_comes_up,
        roaming::a_wake_after_eight_hours_is_like_any_pause,
        hostile::garbage_is_counted_and_not_answered,
        hostile::replayed_initiations_are_not_answered_also_after_the_session_is_gone,
        hostile::old_initiations_cost_a_handshake_now_and_then_and_never_with_who_sent_them,
        hostile::replayed_data_is_dropped_and_moves_nothing,
        hostile::a_garbage_response_does_not_stop_a_handshake,
        hostile::a_flood_of_initiations_is_answered_by_cookies_and_leaves_sessions_alone,
        hostile::recorded_disco_messages_are_no_amplifier,
        hostile::forged_relay_frames_and_stun_answers_are_ignored,
        batches::batches_carry_what_single_packets_do,
        batches::what_is_damaged_in_a_train_is_counted_and_the_rest_is_delivered,
        batches::a_train_of_nothing_is_counted,
        batches::a_superpacket_of_absurdly_many_pieces_is_counted_and_what_follows_is_sent,
    ];
    for shards in COUNTS {
        for (name, test) in suite {
            println!("{name} with {shards} engines");
            with_shards(shards, test);
        }
    }
}

/// What happens in a world.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A node sends a packet of this length to the other one.
    Send { from: u32, len: usize },
    /// Time passes, in milliseconds.
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let send = (1..=2_u32, 1..1200_usize).prop_map(|(from, len)| Step::Send { from, len });
    let wait = prop_oneof![4 => 1..50_u64, 1 => 1000..200_000_u64].prop_map(Step::Wait);
    proptest::collection::vec(prop_oneof![5 => send, 1 => wait], 1..80)
}

/// Takes the steps, and returns what each node has received.
fn received(steps: &[Step], direct_up: bool) -> [Vec<Vec<u8>>; 2] {
    let mut world = introduced();
    world.direct_up = direct_up;
    for (number, step) in (0..).zip(steps) {
        match *step {
            Step::Send { from, len } => world.send(from, &packet(from, 3 - from, number, len)),
            Step::Wait(time) => world.run_for(millis(time)),
        }
    }
    world.run_for(seconds(5));
    [0, 1].map(|node: usize| {
        // Packets that change from one path to another may overtake each other: with one engine, too.
        let mut received = std::mem::take(&mut world.nodes[node].received);
        received.sort();
        received
    })
}

fn sent_by(node: u32, steps: &[Step]) -> usize {
    steps.iter().filter(|step| matches!(step, Step::Send { from, .. } if *from == node)).count()
}

proptest! {
    #![proptest_config(Config { cases: CASES, failure_persistence: None, ..Config::default() })]

    #[test]
    fn nodes_of_several_engines_deliver_exactly_what_nodes_of_one_do(
        steps in steps(),
        direct_up: bool,
        shards in 2..5_u32,
    ) {
        let expected = with_shards(1, || received(&steps, direct_up));
        prop_assert_eq!([expected[1].len(), expected[0].len()], [1, 2].map(|node| sent_by(node, &steps)));
        prop_assert_eq!(with_shards(shards, || received(&steps, direct_up)), expected);
    }
}

#[test]
fn what_comes_to_the_wrong_engine_is_handed_over_and_counted() {
    let mut world = with_shards(2, introduced);
    for number in 0..100 {
        world.send(1, &packet(1, 2, number, 100));
        world.run_for(millis(20));
    }
    assert!(is_direct(&world, 1) && is_direct(&world, 2));
    let handed_over = |world: &World, node: usize| world.nodes[node].engine.snapshot(world.now).handed_over;
    assert!(handed_over(&world, 0).frames > 20, "{:?}", handed_over(&world, 0));
    assert!(handed_over(&world, 1).datagrams > 20, "{:?}", handed_over(&world, 1));
    let mut alone = introduced();
    alone.send(1, &packet(1, 2, 1, 100));
    alone.run_for(seconds(10));
    assert_eq!(handed_over(&alone, 0), mesh_engine::snapshot::HandedOver::default());
}
