//! Where records begin and end in the bytes of a file: at line ends, except inside a CSV field's quotes.

use crate::format::is_csv_open;

/// How many bytes the first record has, its line end included.
pub(super) fn record_length(bytes: &[u8], is_csv: bool) -> usize {
    let mut length = 0;
    let mut open = false;
    loop {
        let rest = &bytes[length..];
        let line = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
        if is_csv {
            open ^= is_csv_open(&rest[..line]);
        }
        length += line;
        if !open || length == bytes.len() {
            return length;
        }
    }
}

/// Where the last record that has a line end ends; 0 if there is none.
pub(super) fn last_record_end(bytes: &[u8], is_csv: bool) -> usize {
    if !is_csv {
        return memchr::memrchr(b'\n', bytes).map_or(0, |end| end + 1);
    }
    let (mut end, mut open) = (0, false);
    for found in memchr::memchr2_iter(b'\n', b'"', bytes) {
        match bytes[found] {
            b'"' => open = !open,
            _ if !open => end = found + 1,
            _ => {}
        }
    }
    end
}
