//! Numbers as bytes of fixed width that sort like them (pure).

/// A value of fixed width as bytes that sort like it.
pub(super) trait Ordered: Copy {
    type Bytes: AsRef<[u8]> + for<'b> TryFrom<&'b [u8]>;

    fn ordered(self) -> Self::Bytes;
    fn from_ordered(bytes: Self::Bytes) -> Self;
}

impl Ordered for u8 {
    type Bytes = [u8; 1];

    fn ordered(self) -> [u8; 1] {
        [self]
    }

    fn from_ordered(bytes: [u8; 1]) -> u8 {
        bytes[0]
    }
}

impl Ordered for u16 {
    type Bytes = [u8; 2];

    fn ordered(self) -> [u8; 2] {
        self.to_be_bytes()
    }

    fn from_ordered(bytes: [u8; 2]) -> u16 {
        u16::from_be_bytes(bytes)
    }
}

impl Ordered for u32 {
    type Bytes = [u8; 4];

    fn ordered(self) -> [u8; 4] {
        self.to_be_bytes()
    }

    fn from_ordered(bytes: [u8; 4]) -> u32 {
        u32::from_be_bytes(bytes)
    }
}

impl Ordered for u64 {
    type Bytes = [u8; 8];

    fn ordered(self) -> [u8; 8] {
        self.to_be_bytes()
    }

    fn from_ordered(bytes: [u8; 8]) -> u64 {
        u64::from_be_bytes(bytes)
    }
}

impl Ordered for i8 {
    type Bytes = [u8; 1];

    fn ordered(self) -> [u8; 1] {
        (self.cast_unsigned() ^ (1 << 7)).ordered()
    }

    fn from_ordered(bytes: [u8; 1]) -> i8 {
        (u8::from_ordered(bytes) ^ (1 << 7)).cast_signed()
    }
}

impl Ordered for i16 {
    type Bytes = [u8; 2];

    fn ordered(self) -> [u8; 2] {
        (self.cast_unsigned() ^ (1 << 15)).ordered()
    }

    fn from_ordered(bytes: [u8; 2]) -> i16 {
        (u16::from_ordered(bytes) ^ (1 << 15)).cast_signed()
    }
}

impl Ordered for i32 {
    type Bytes = [u8; 4];

    fn ordered(self) -> [u8; 4] {
        (self.cast_unsigned() ^ (1 << 31)).ordered()
    }

    fn from_ordered(bytes: [u8; 4]) -> i32 {
        (u32::from_ordered(bytes) ^ (1 << 31)).cast_signed()
    }
}

impl Ordered for i64 {
    type Bytes = [u8; 8];

    #[inline]
    fn ordered(self) -> [u8; 8] {
        (self.cast_unsigned() ^ (1 << 63)).ordered()
    }

    fn from_ordered(bytes: [u8; 8]) -> i64 {
        (u64::from_ordered(bytes) ^ (1 << 63)).cast_signed()
    }
}

impl Ordered for i128 {
    type Bytes = [u8; 16];

    fn ordered(self) -> [u8; 16] {
        (self.cast_unsigned() ^ (1 << 127)).to_be_bytes()
    }

    fn from_ordered(bytes: [u8; 16]) -> i128 {
        (u128::from_be_bytes(bytes) ^ (1 << 127)).cast_signed()
    }
}

impl Ordered for f32 {
    type Bytes = [u8; 4];

    fn ordered(self) -> [u8; 4] {
        // Adding zero makes -0.0 the other zero and leaves everything else as it is.
        let one_of_equals = match self.is_nan() {
            true => f32::NAN.abs(),
            false => self + 0.0,
        };
        let bits = one_of_equals.to_bits();
        let flip = if bits >> 31 == 1 { u32::MAX } else { 1 << 31 };
        (bits ^ flip).ordered()
    }

    fn from_ordered(bytes: [u8; 4]) -> f32 {
        let bits = u32::from_ordered(bytes);
        let flip = if bits >> 31 == 1 { 1 << 31 } else { u32::MAX };
        f32::from_bits(bits ^ flip)
    }
}

impl Ordered for f64 {
    type Bytes = [u8; 8];

    fn ordered(self) -> [u8; 8] {
        // Adding zero makes -0.0 the other zero and leaves everything else as it is.
        let one_of_equals = match self.is_nan() {
            true => f64::NAN.abs(),
            false => self + 0.0,
        };
        let bits = one_of_equals.to_bits();
        let flip = if bits >> 63 == 1 { u64::MAX } else { 1 << 63 };
        (bits ^ flip).ordered()
    }

    fn from_ordered(bytes: [u8; 8]) -> f64 {
        let bits = u64::from_ordered(bytes);
        let flip = if bits >> 63 == 1 { 1 << 63 } else { u64::MAX };
        f64::from_bits(bits ^ flip)
    }
}
