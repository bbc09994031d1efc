//! Targets for fuzzing: for each decoder, what must hold whatever the bytes are.
//!
//! A target is a module with two functions. `run` gives an input to the decoder, panics where
//! something does not hold, and returns whether the decoder took the input for what it reads.
//! `seeds` returns inputs that it takes, from `tests/vectors` or made by the encoders.
//!
//! The programs in `bin` have libFuzzer run them (`make fuzz`); `tests/fuzz.rs` includes this file
//! and runs them over seeds and damaged seeds (`make fuzz-smoke`).
//!
//! Where a target needs to know more than the bytes, such as how the input is cut, the first byte
//! of the input says it.

use std::path::Path;
use std::{fs, io};

pub mod datagram;
pub mod dns;
pub mod first_bytes;
pub mod gob;
pub mod h2_connection;
pub mod h2_exchange;
pub mod handshake_answer;
pub mod handshake_request;
pub mod hpack;
pub mod http1_answer;
pub mod http1_chunks;
pub mod http1_request;
pub mod instance_output;
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../../src/wire/mutation.rs"]
pub mod mutation;
mod recordings;
pub mod signal;
pub mod state;
pub mod url;
pub mod web_socket;

/// A target by its name.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]) -> bool,
    pub seeds: fn() -> Vec<Vec<u8>>,
}

macro_rules! targets {
    ($($name:ident)*) => {
        &[$(Target { name: stringify!($name), run: $name::run, seeds: $name::seeds }),*]
    };
}

/// All of them.
pub const TARGETS: &[Target] = targets! {
    datagram dns first_bytes gob h2_connection h2_exchange handshake_answer handshake_request hpack
    http1_answer http1_chunks http1_request instance_output signal state url web_socket
};

/// Runs the target `name`: what libFuzzer calls.
pub fn run(name: &str, input: &[u8]) {
    (find(name).run)(input);
}

/// Writes the seeds of the target `name` into the folder that `NP_FUZZ_CORPUS` names, if it does:
/// libFuzzer, which calls this before anything else, finds them there.
pub fn start(name: &str) {
    if let Some(folder) = std::env::var_os("NP_FUZZ_CORPUS") {
        for seed in (find(name).seeds)() {
            keep(Path::new(&folder), &seed).expect("the folder for seeds is there");
        }
    }
}

/// Writes an input into a folder, under a name of its own; returns the name.
pub fn keep(folder: &Path, input: &[u8]) -> io::Result<String> {
    // FNV-1a, 64 bits.
    let hash = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let name = format!("{hash:016x}");
    fs::write(folder.join(&name), input)?;
    Ok(name)
}

fn find(name: &str) -> &'static Target {
    let found = TARGETS.iter().find(|target| target.name == name);
    found.expect("the programs are named after their targets")
}

/// Takes off the front of an input the byte that says how it is used; 0 where there is none.
fn take_byte(input: &mut &[u8]) -> u8 {
    input.split_off_first().copied().unwrap_or(0)
}

/// Returns an input with the byte in front that says how it is used.
fn with_byte(byte: u8, input: &[u8]) -> Vec<u8> {
    [&[byte], input].concat()
}
