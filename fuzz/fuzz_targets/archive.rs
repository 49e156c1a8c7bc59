//! Feeds libFuzzer's bytes to `halsup_fuzz::archive`, which says what is checked.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| halsup_fuzz::archive(data));
