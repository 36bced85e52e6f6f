//! Runs [`mesh_proto::fuzz::stun`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_proto::fuzz::stun(data));
