//! The seeded generator that is handed down; nobody uses the thread's own.

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

/// A small fast generator whose sequence is the same on every machine.
pub type Random = Pcg64Mcg;

/// The generator of this seed. Streams of one seed are told apart by `stream`, so that adding a use of
/// randomness in one place does not change what another place draws.
pub fn seeded(seed: u64, stream: u64) -> Random {
    let mixed = xxhash_rust::xxh3::xxh3_64_with_seed(&stream.to_le_bytes(), seed);
    Pcg64Mcg::seed_from_u64(mixed)
}
