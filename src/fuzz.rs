//! What the tests of hostile input share: the inputs that are kept in `tests/corpus`, how they change, how many there
//! are.
//!
//! Each target is replayed on its whole corpus first. `ONCEWARD_CASES` multiplies the cases, `ONCEWARD_SEED` takes a
//! run again; `scripts/fuzz` runs a target for long. An input that fails is saved, to be mended and put into the
//! corpus. Compiled for tests only, and knows nothing of what is tested.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

/// Longest input that is made.
const BYTES_MAX: usize = 8 * 1024;

/// So many cases, and more in a long run.
pub(crate) fn cases(usually: u32) -> u32 {
    let times = std::env::var("ONCEWARD_CASES").ok().and_then(|text| text.parse().ok());
    usually.saturating_mul(times.unwrap_or(1))
}

/// The seed of this run.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("ONCEWARD_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("ONCEWARD_SEED={seed}");
    seed
}

/// The inputs that are kept for a target, in the order of their names.
pub(crate) fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let entries = std::fs::read_dir(&directory).expect("the corpus is in the repository");
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("it can be read").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", directory.display());
    paths.iter().map(|path| std::fs::read(path).expect("it can be read")).collect()
}

/// Checks the corpus of a target, and then what grows out of it.
pub(crate) fn fuzz(target: &str, usually: u32, mut check: impl FnMut(&[u8])) {
    let corpus = corpus(target);
    let mut checked = |input: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(input))) {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz").join(target);
            let path = directory.join(blake3::hash(input).to_hex().as_str());
            let saved =
                std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&path, input));
            println!("{} bytes in {} ({saved:?})", input.len(), path.display());
            resume_unwind(panic);
        }
    };
    corpus.iter().for_each(|input| checked(input));
    let mut rng = fastrand::Rng::with_seed(seed());
    for _ in 0..cases(usually) {
        let input = match rng.u8(..8) {
            0 => {
                let bytes = rng.usize(..300);
                std::iter::repeat_with(|| rng.u8(..)).take(bytes).collect()
            }
            _ => mutated(&corpus[rng.usize(..corpus.len())], &mut rng),
        };
        checked(&input);
    }
}

/// The input with some bytes changed, put in, taken out or said twice.
pub(crate) fn mutated(input: &[u8], rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..1 + rng.usize(..6) {
        let at = rng.usize(..=bytes.len());
        let end = at + rng.usize(..=(bytes.len() - at).min(32));
        match rng.u8(..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
            1 if at < bytes.len() => bytes[at] = rng.u8(..),
            2 => bytes.insert(at, rng.u8(..)),
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..end)),
            5 => {
                let twice = bytes[at..end].to_vec();
                bytes.splice(at..at, twice.repeat(1 + rng.usize(..4)));
            }
            _ => bytes[at..end].fill([0, 0x7f, 0x80, 0xff][rng.usize(..4)]),
        }
    }
    bytes.truncate(BYTES_MAX);
    bytes
}
