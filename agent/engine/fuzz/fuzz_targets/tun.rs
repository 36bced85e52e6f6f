//! Runs [`mesh_engine::fuzz::tun`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_engine::fuzz::tun(data));
