//! Zigzag varints, as records encode every length and difference.

/// Appends a number; small ones of either sign take one byte.
pub(super) fn put(buffer: &mut Vec<u8>, value: i64) {
    let mut zigzag = (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned();
    while zigzag >= 0x80 {
        buffer.push((zigzag & 0x7f) as u8 | 0x80);
        zigzag >>= 7;
    }
    buffer.push(zigzag as u8);
}

/// How many bytes `put` appends.
pub(super) fn length(value: i64) -> usize {
    let zigzag = (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned();
    // A byte carries seven bits; zero still takes one.
    let bits = 64 - (zigzag | 1).leading_zeros();
    usize::try_from(bits.div_ceil(7)).expect("at most ten")
}

/// Takes a number off the front; `None` if it is cut off or has more than 64 bits.
pub(super) fn take(bytes: &mut &[u8]) -> Option<i64> {
    let mut zigzag = 0_u64;
    for (position, byte) in bytes.iter().enumerate().take(10) {
        let low = u64::from(byte & 0x7f);
        if position == 9 && low > 1 {
            return None;
        }
        zigzag |= low << (7 * position);
        if byte & 0x80 == 0 {
            *bytes = &bytes[position + 1..];
            return Some((zigzag >> 1).cast_signed() ^ -((zigzag & 1).cast_signed()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_encoded_as_kafka_does() {
        for (value, bytes) in [
            (0_i64, &[0x00][..]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
            (-8193, &[0x81, 0x80, 0x01]),
            (i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i64::from(i32::MIN), &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        ] {
            let mut buffer = Vec::new();
            put(&mut buffer, value);
            assert_eq!(buffer, bytes, "{value}");
        }
        assert_eq!(take(&mut &[0x80_u8; 9][..]), None);
        assert_eq!(take(&mut &[0xff_u8; 11][..]), None);
        assert_eq!(take(&mut &[][..]), None);
    }

    proptest! {
        #[test]
        fn numbers_read_back(value in any::<i64>(), small in -300_i64..300) {
            for value in [value, small, i64::MAX, i64::MIN] {
                let mut buffer = Vec::new();
                put(&mut buffer, value);
                prop_assert_eq!(buffer.len(), length(value));
                let mut rest = &buffer[..];
                prop_assert_eq!(take(&mut rest), Some(value));
                prop_assert!(rest.is_empty());
            }
        }
    }
}
