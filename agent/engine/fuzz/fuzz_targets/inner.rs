//! Runs [`mesh_engine::fuzz::inner`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_engine::fuzz::inner(data));
