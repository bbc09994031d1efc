#![no_main]

const NAME: &str = env!("CARGO_BIN_NAME");

libfuzzer_sys::fuzz_target!(
    init: nodepass_fuzz::start(NAME),
    |input: &[u8]| nodepass_fuzz::run(NAME, input)
);
