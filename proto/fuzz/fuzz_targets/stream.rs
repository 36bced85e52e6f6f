//! Runs [`mesh_proto::fuzz::stream`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_proto::fuzz::stream(data));
