//! The properties of everything that is read from outside, tried on the seeds of the fuzzer and on what is
//! like them. Without the compiler's help: that is `tests/run fuzz`.

#[path = "../fuzz/properties/mod.rs"]
mod properties;

use std::fs;
use std::path::{Path, PathBuf};

use properties::PROPERTIES;

/// How many inputs like the seeds are tried of each property; the same ones every time.
const LIKE_THEM: u32 = 1_000;

/// The longest input that is made of others, in bytes.
const BYTES_MAX: usize = 8 << 10;

/// Bytes that mean something to some parser.
const TELLING: &[u8] = b"0129-+./\\\"{}[]:,% *\n\0\x7f\xff";

#[test]
fn whatever_is_read_the_properties_hold() {
    let broken: Vec<(&str, String)> = PROPERTIES
        .into_iter()
        .filter_map(|(name, holds)| {
            let seeds = seeds(name);
            let mut random = Random(0x9E37_79B9_7F4A_7C15);
            let like_them: Vec<_> = (0..LIKE_THEM).map(|_| random.like(&seeds)).collect();
            let mut inputs = seeds.iter().chain(&like_them);
            let broken = inputs.find(|input| std::panic::catch_unwind(|| holds(input)).is_err())?;
            Some((name, broken.escape_ascii().to_string()))
        })
        .collect();
    assert_eq!(broken, [], "properties, each with an input of which it does not hold");
}

#[test]
fn every_property_has_seeds_and_every_seed_a_property() {
    let folders = fs::read_dir(corpus()).expect("the corpus is there");
    let names = folders.map(|entry| entry.expect("readable").file_name().into_string().expect("a name"));
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(names, PROPERTIES.map(|(name, _)| name));
    for name in names {
        assert!(!seeds(&name).is_empty(), "{name}");
    }
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(corpus().join(name)).expect("a folder of seeds");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).expect("readable")).collect()
}

/// Marsaglia's xorshift: enough to choose by, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// One of `seeds` with a few changes.
    fn like(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(input.len() + 1);
            let end = (at + self.below(16)).min(input.len());
            match self.below(5) {
                0 => drop(input.drain(at..end)),
                1 => input.extend_from_within(at..end),
                2 => input.insert(at, TELLING[self.below(TELLING.len())]),
                3 => {
                    let other = &seeds[self.below(seeds.len())];
                    input.truncate(at);
                    input.extend_from_slice(&other[self.below(other.len() + 1)..]);
                }
                _ if at < input.len() => input[at] ^= 1 << self.below(8),
                _ => {}
            }
        }
        input.truncate(BYTES_MAX);
        input
    }
}
