//! Where one record ends and the next begins, told by the bytes themselves.
//!
//! A log does not frame what it is given: a record is any run of bytes whose length and soundness its
//! [`Scanner`] can tell. Record batches bring their own header; for everything else there is the
//! standard frame:
//!
//! ```text
//!  ┌────────────┬──────────────────┬─────────┐
//!  │ length u32 │ CRC-32C u32      │ payload │      little endian
//!  └────────────┴──────────────────┴─────────┘
//!                 of length, payload
//! ```
//!
//! The checksum covers the length, so a run of zeros is never a frame.

/// What the first bytes of a slice are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameCheck {
    /// A sound record of this many bytes.
    Complete(usize),
    /// It takes at least this many bytes, more than there are, to tell.
    Incomplete(usize),
    Corrupt,
}

/// Tells what a slice, which is never empty, begins with. Must bound the length it asks for: a torn
/// header says anything.
pub type Scanner = fn(&[u8]) -> FrameCheck;

pub const FRAME_HEADER_BYTES: usize = 8;
/// No payload is larger: a length beyond it is damage, not a record.
pub const MAX_PAYLOAD_BYTES: usize = 256 << 20;

/// The header that belongs before this payload. Append both as one write:
/// `log.append_vectored(&[&frame_header(&[payload]), payload])`.
pub fn frame_header(payload: &[&[u8]]) -> [u8; FRAME_HEADER_BYTES] {
    let bytes: usize = payload.iter().map(|part| part.len()).sum();
    assert!(
        bytes <= MAX_PAYLOAD_BYTES,
        "a record of {bytes} bytes exceeds the {MAX_PAYLOAD_BYTES} a frame may have"
    );
    let length = u32::try_from(bytes)
        .expect("the bound fits into 32 bits")
        .to_le_bytes();
    let crc = payload
        .iter()
        .fold(crc32c::crc32c(&length), |crc, part| {
            crc32c::crc32c_append(crc, part)
        })
        .to_le_bytes();
    let mut header = [0; FRAME_HEADER_BYTES];
    header[..4].copy_from_slice(&length);
    header[4..].copy_from_slice(&crc);
    header
}

/// The scanner of the standard frame.
pub fn scan_frame(bytes: &[u8]) -> FrameCheck {
    let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return FrameCheck::Incomplete(FRAME_HEADER_BYTES);
    };
    let [l0, l1, l2, l3, c0, c1, c2, c3] = *header;
    let length = [l0, l1, l2, l3];
    let payload_bytes = u32::from_le_bytes(length) as usize;
    if payload_bytes > MAX_PAYLOAD_BYTES {
        return FrameCheck::Corrupt;
    }
    let Some(payload) = rest.get(..payload_bytes) else {
        return FrameCheck::Incomplete(FRAME_HEADER_BYTES + payload_bytes);
    };
    let crc = crc32c::crc32c_append(crc32c::crc32c(&length), payload);
    if crc == u32::from_le_bytes([c0, c1, c2, c3]) {
        FrameCheck::Complete(FRAME_HEADER_BYTES + payload_bytes)
    } else {
        FrameCheck::Corrupt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(payload: &[u8]) -> Vec<u8> {
        [&frame_header(&[payload])[..], payload].concat()
    }

    #[test]
    fn a_frame_is_complete_exactly_when_all_of_it_is_there() {
        let frame = framed(b"hello");
        for cut in 1..frame.len() {
            let needed = if cut < FRAME_HEADER_BYTES { 8 } else { 13 };
            assert_eq!(scan_frame(&frame[..cut]), FrameCheck::Incomplete(needed));
        }
        assert_eq!(scan_frame(&frame), FrameCheck::Complete(13));
        let followed = [frame, vec![7; 9]].concat();
        assert_eq!(scan_frame(&followed), FrameCheck::Complete(13));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let frame = framed(b"some payload");
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(scan_frame(&damaged), FrameCheck::Complete(frame.len()));
        }
    }

    #[test]
    fn zeros_are_not_a_frame_but_an_empty_payload_is() {
        assert_eq!(scan_frame(&[0; 4096]), FrameCheck::Corrupt);
        assert_eq!(scan_frame(&framed(b"")), FrameCheck::Complete(8));
    }

    #[test]
    fn a_header_over_several_parts_is_that_of_the_whole() {
        assert_eq!(frame_header(&[b"ab", b"", b"c"]), frame_header(&[b"abc"]));
    }
}
