//! Runs [`mesh_proto::fuzz::disco`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_proto::fuzz::disco(data));
