//! The codecs a record batch may use, as Kafka's clients frame them.
//!
//! Decompression promises never to allocate more than the limit it is given, whatever the bytes claim.

use std::io::{self, Read, Write};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// How the records of a batch are compressed. The numbers are those of the batch's attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    #[default]
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    #[error("the {codec:?} bytes hold more than {limit} bytes")]
    TooLarge { codec: Compression, limit: usize },
    #[error("the {codec:?} bytes cannot be decompressed: {reason}")]
    Malformed { codec: Compression, reason: String },
}

/// Frames snappy blocks as snappy-java does, which every Kafka client reads: this, two versions, then
/// `length, block` pairs, all numbers big-endian.
const XERIAL_MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
const XERIAL_HEADER_BYTES: usize = 16;
const XERIAL_BLOCK_BYTES: usize = 32 << 10;

/// A snappy element of three bytes copies at most 64, so no honest block grows by more than this.
const SNAPPY_MAX_RATIO: usize = 24;

/// 64 MiB: above what any Kafka client's level uses, and a bound on what one decoder holds.
const ZSTD_MAX_WINDOW_LOG: u32 = 26;
const ZSTD_LEVEL: i32 = 3;

impl Compression {
    pub fn from_code(code: u8) -> Option<Compression> {
        match code {
            0 => Some(Compression::None),
            1 => Some(Compression::Gzip),
            2 => Some(Compression::Snappy),
            3 => Some(Compression::Lz4),
            4 => Some(Compression::Zstd),
            _ => None,
        }
    }

    pub fn code(self) -> u8 {
        match self {
            Compression::None => 0,
            Compression::Gzip => 1,
            Compression::Snappy => 2,
            Compression::Lz4 => 3,
            Compression::Zstd => 4,
        }
    }

    pub fn compress(self, plain: &[u8]) -> Vec<u8> {
        let compressed = match self {
            Compression::None => Ok(plain.to_vec()),
            Compression::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(plain).and_then(|()| encoder.finish())
            }
            Compression::Snappy => compress_xerial(plain),
            Compression::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
                encoder
                    .write_all(plain)
                    .and_then(|()| encoder.finish().map_err(io::Error::from))
            }
            Compression::Zstd => zstd::stream::encode_all(plain, ZSTD_LEVEL),
        };
        compressed.expect("compressing into memory meets no device that could fail")
    }

    /// The plain bytes; at most `limit` of them.
    pub fn decompress(self, compressed: &Bytes, limit: usize) -> Result<Bytes, CompressionError> {
        match self {
            Compression::None if compressed.len() > limit => {
                Err(CompressionError::TooLarge { codec: self, limit })
            }
            Compression::None => Ok(compressed.clone()),
            Compression::Gzip => {
                self.read_all(flate2::read::MultiGzDecoder::new(&compressed[..]), limit)
            }
            Compression::Snappy => self.decompress_snappy(compressed, limit),
            Compression::Lz4 => {
                self.read_all(lz4_flex::frame::FrameDecoder::new(&compressed[..]), limit)
            }
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(&compressed[..])
                    .map_err(|error| self.malformed(error))?;
                decoder
                    .window_log_max(ZSTD_MAX_WINDOW_LOG)
                    .map_err(|error| self.malformed(error))?;
                self.read_all(decoder, limit)
            }
        }
    }

    fn read_all(self, decoder: impl Read, limit: usize) -> Result<Bytes, CompressionError> {
        let one_too_many = u64::try_from(limit).expect("a limit fits in 64 bits") + 1;
        let mut plain = Vec::new();
        decoder
            .take(one_too_many)
            .read_to_end(&mut plain)
            .map_err(|error| self.malformed(error))?;
        if plain.len() > limit {
            return Err(CompressionError::TooLarge { codec: self, limit });
        }
        Ok(Bytes::from(plain))
    }

    fn decompress_snappy(self, compressed: &[u8], limit: usize) -> Result<Bytes, CompressionError> {
        let mut plain = Vec::new();
        if !compressed.starts_with(&XERIAL_MAGIC) {
            self.append_snappy_block(compressed, limit, &mut plain)?;
            return Ok(Bytes::from(plain));
        }
        let mut rest = compressed
            .get(XERIAL_HEADER_BYTES..)
            .ok_or_else(|| self.malformed("the header is cut off"))?;
        while !rest.is_empty() {
            let (length, after) = rest
                .split_first_chunk::<4>()
                .ok_or_else(|| self.malformed("a block's length is cut off"))?;
            let length = usize::try_from(u32::from_be_bytes(*length))
                .map_err(|error| self.malformed(error))?;
            let block = after
                .get(..length)
                .ok_or_else(|| self.malformed("a block is cut off"))?;
            self.append_snappy_block(block, limit, &mut plain)?;
            rest = &after[length..];
        }
        Ok(Bytes::from(plain))
    }

    fn append_snappy_block(
        self,
        block: &[u8],
        limit: usize,
        plain: &mut Vec<u8>,
    ) -> Result<(), CompressionError> {
        let claimed = snap::raw::decompress_len(block).map_err(|error| self.malformed(error))?;
        let start = plain.len();
        if claimed > limit - start {
            return Err(CompressionError::TooLarge { codec: self, limit });
        }
        if claimed > block.len().saturating_mul(SNAPPY_MAX_RATIO) {
            return Err(self.malformed("a block claims more than it can hold"));
        }
        plain.resize(start + claimed, 0);
        let written = snap::raw::Decoder::new()
            .decompress(block, &mut plain[start..])
            .map_err(|error| self.malformed(error))?;
        plain.truncate(start + written);
        Ok(())
    }

    fn malformed(self, reason: impl ToString) -> CompressionError {
        CompressionError::Malformed {
            codec: self,
            reason: reason.to_string(),
        }
    }
}

fn compress_xerial(plain: &[u8]) -> io::Result<Vec<u8>> {
    let mut framed = Vec::with_capacity(XERIAL_HEADER_BYTES + plain.len() / 2);
    framed.extend_from_slice(&XERIAL_MAGIC);
    // The version of the format, and the oldest version that can read it.
    framed.extend_from_slice(&1_i32.to_be_bytes());
    framed.extend_from_slice(&1_i32.to_be_bytes());
    let mut encoder = snap::raw::Encoder::new();
    for block in plain.chunks(XERIAL_BLOCK_BYTES) {
        let compressed = encoder.compress_vec(block).map_err(io::Error::other)?;
        let length = u32::try_from(compressed.len()).expect("a block is about 32 KiB");
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(&compressed);
    }
    Ok(framed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CODECS: [Compression; 5] = [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ];

    #[test]
    fn every_codec_gives_back_what_it_was_given() {
        let texts = [
            Vec::new(),
            b"a".to_vec(),
            b"abcabcabc".repeat(50_000),
            (0..200_000_u32).flat_map(u32::to_le_bytes).collect(),
        ];
        for codec in CODECS {
            assert_eq!(Compression::from_code(codec.code()), Some(codec));
            for text in &texts {
                let compressed = Bytes::from(codec.compress(text));
                let plain = codec.decompress(&compressed, text.len()).unwrap();
                assert_eq!(plain, text, "{codec:?}");
            }
        }
    }

    #[test]
    fn a_bomb_is_refused_at_the_limit() {
        let zeros = vec![0; 4 << 20];
        for codec in CODECS {
            let bomb = Bytes::from(codec.compress(&zeros));
            assert_eq!(
                codec.decompress(&bomb, zeros.len() - 1),
                Err(CompressionError::TooLarge {
                    codec,
                    limit: zeros.len() - 1
                })
            );
        }
    }

    #[test]
    fn snappy_without_a_frame_is_read_too() {
        let raw = snap::raw::Encoder::new()
            .compress_vec(b"hello hello hello")
            .unwrap();
        let plain = Compression::Snappy
            .decompress(&Bytes::from(raw), 100)
            .unwrap();
        assert_eq!(plain, "hello hello hello");
    }

    #[test]
    fn a_snappy_block_that_claims_more_than_it_can_hold_is_refused_before_memory_is_taken() {
        // The varint of 48 MiB, and nothing behind it.
        let lie = Bytes::from_static(&[0x80, 0x80, 0x80, 0x18]);
        assert!(matches!(
            Compression::Snappy.decompress(&lie, 64 << 20),
            Err(CompressionError::Malformed { .. })
        ));
    }

    proptest! {
        #[test]
        fn mutated_bytes_never_panic_and_never_pass_the_limit(
            text in proptest::collection::vec(any::<u8>(), 0..2_000),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            for codec in CODECS {
                let mut bytes = codec.compress(&text);
                if bytes.is_empty() { continue; }
                for (at, byte) in &changes {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
                bytes.truncate(cut.index(bytes.len()) + 1);
                if let Ok(plain) = codec.decompress(&Bytes::from(bytes), 3_000) {
                    prop_assert!(plain.len() <= 3_000);
                }
            }
        }
    }
}
