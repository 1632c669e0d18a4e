//! The seeded generator that is handed down; nobody uses the thread's own.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// A small fast generator whose sequence is the same on every machine.
pub type Random = Pcg64Mcg;

/// The generator of this seed. Streams of one seed are told apart by `stream`, so that adding a use of
/// randomness in one place does not change what another place draws.
pub fn seeded(seed: u64, stream: u64) -> Random {
    let mixed = xxhash_rust::xxh3::xxh3_64_with_seed(&stream.to_le_bytes(), seed);
    Pcg64Mcg::seed_from_u64(mixed)
}

/// A number from 0 to before `bound`.
pub fn below(random: &mut Random, bound: u64) -> u64 {
    random.random_range(0..bound)
}

/// Every order is as likely as any other.
pub fn shuffle<T>(random: &mut Random, items: &mut [T]) {
    items.shuffle(random);
}

pub fn coin(random: &mut Random) -> bool {
    random.random()
}
