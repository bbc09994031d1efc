//! The targets of `fuzz/` for a moment: seeds and damaged seeds, the same at every run.
//!
//! `NP_FUZZ_SEED` chooses other damage, `NP_FUZZ_SIZE` how much of it. An input that fails is
//! left in a file, for `make fuzz TARGET=name INPUT=file`.

use std::panic::catch_unwind;
use std::path::Path;
use std::{env, fs};

#[allow(dead_code, reason = "some of it is for the programs of libFuzzer")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

use targets::mutation::Xorshift;
use targets::{TARGETS, Target, keep};

const SEED: u64 = 0x6e70;
/// Damaged input for each target (bytes): targets take some seconds for it, whatever its pieces.
const SIZE: u64 = 1_000_000;

fn number_of(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// Runs `target` on `input`; what makes it fail is told with the seed and kept.
fn run(target: &Target, input: &[u8], seed: u64) -> bool {
    catch_unwind(|| (target.run)(input)).unwrap_or_else(|_| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let file = keep(folder, input).unwrap();
        let file = folder.join(file);
        panic!(
            "NP_FUZZ_SEED={seed}, TARGET={} INPUT={}",
            target.name,
            file.display()
        );
    })
}

/// Runs a target on its seeds, each of which it has to take, and on damaged ones, of which it has
/// to take some and to refuse some: else they would say nothing.
fn smoke(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let seed = number_of("NP_FUZZ_SEED").unwrap_or(SEED);
    let seeds = (target.seeds)();
    for (index, input) in seeds.iter().enumerate() {
        assert!(run(target, input, seed), "{name}: seed {index} is refused");
    }
    let mut random = Xorshift::new(seed);
    let (mut taken_count, mut refused_count) = (0, 0);
    let size_max = number_of("NP_FUZZ_SIZE").unwrap_or(SIZE);
    let mut size = 0;
    while size < size_max {
        let seed_index = random.below(seeds.len());
        let mut input = random.damage(&seeds[seed_index]);
        if random.below(4) == 0 {
            input = random.damage(&input);
        }
        size += u64::try_from(input.len()).unwrap() + 1;
        match run(target, &input, seed) {
            true => taken_count += 1,
            false => refused_count += 1,
        }
    }
    println!("{name}: NP_FUZZ_SEED={seed}, {taken_count} taken, {refused_count} refused");
    assert!(taken_count > 0 && refused_count > 0);
}

macro_rules! smoke_tests {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            smoke(stringify!($name));
        })*

        #[test]
        fn every_target_is_run() {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

smoke_tests! {
    datagram dns first_bytes gob h2_connection h2_exchange handshake_answer handshake_request hpack
    http1_answer http1_chunks http1_request instance_output signal state url web_socket
}

/// Each target has the program that libFuzzer runs, named after it.
#[test]
fn every_target_has_its_program() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/src/bin");
    let mut programs: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    programs.sort();
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(programs, names);
}
