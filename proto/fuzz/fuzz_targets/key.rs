//! Runs [`mesh_proto::fuzz::key`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_proto::fuzz::key(data));
