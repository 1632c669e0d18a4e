//! Reads JSON text strictly and once: RFC 8259, nothing more.
//!
//! The scanner walks a text from left to right and refuses it at the first byte that is not JSON. It
//! builds no tree: what a caller wants of a value is a `Token`, the place of its text. Nesting is counted
//! in the bits of one word, so depth costs no stack.

use std::borrow::Cow;

use common::limits::MAX_JSON_DEPTH;

/// A value's kind and where its text lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Null,
    True,
    False,
    Number,
    /// Its quotes included, no escapes inside.
    PlainString,
    /// Its quotes included, at least one escape inside.
    EscapedString,
    Array,
    Object,
}

/// The text is not JSON, from this byte on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not JSON at byte {at}: {what}")]
pub(crate) struct JsonError {
    pub(crate) at: usize,
    pub(crate) what: &'static str,
}

/// Where the reading of one text stands.
#[derive(Clone, Debug)]
pub(crate) struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// How many more containers may open.
    depth_left: usize,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a str) -> Scanner<'a> {
        Scanner {
            text,
            bytes: text.as_bytes(),
            at: 0,
            depth_left: MAX_JSON_DEPTH,
        }
    }

    /// The text a token stands for.
    pub(crate) fn text(&self, token: Token) -> &'a str {
        &self.text[token.start..token.end]
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The byte to read next; 0, which no JSON has outside of strings or in them, at the end.
    #[inline]
    fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    #[inline]
    pub(crate) fn error<T>(&self, what: &'static str) -> Result<T, JsonError> {
        Err(JsonError { at: self.at, what })
    }

    #[inline]
    pub(crate) fn skip_whitespace(&mut self) {
        while matches!(self.peek(), b' ' | b'\n' | b'\r' | b'\t') {
            self.at += 1;
        }
    }

    /// Takes this byte if it is the next.
    #[inline]
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == byte;
        self.at += usize::from(found);
        found
    }

    /// Takes these bytes if they are the next.
    #[inline]
    pub(crate) fn take_all(&mut self, expected: &[u8]) -> bool {
        let found = self
            .bytes
            .get(self.at..self.at + expected.len())
            .is_some_and(|next| next == expected);
        if found {
            self.at += expected.len();
        }
        found
    }

    /// Nothing but white space may follow.
    pub(crate) fn end(&mut self) -> Result<(), JsonError> {
        self.skip_whitespace();
        if self.at == self.bytes.len() {
            Ok(())
        } else {
            self.error("something follows the value")
        }
    }

    /// Opens an object or array whose members the caller reads.
    pub(crate) fn open(&mut self, bracket: u8) -> Result<(), JsonError> {
        self.depth_left = match self.depth_left.checked_sub(1) {
            Some(left) => left,
            None => return self.error("it is nested too deeply"),
        };
        if self.take(bracket) {
            Ok(())
        } else if bracket == b'{' {
            self.error("an object is expected")
        } else {
            self.error("an array is expected")
        }
    }

    /// After a member: whether another follows. Closes the container if none does.
    #[inline]
    pub(crate) fn more(&mut self, close: u8) -> Result<bool, JsonError> {
        self.skip_whitespace();
        if self.take(b',') {
            self.skip_whitespace();
            return Ok(true);
        }
        if self.take(close) {
            self.depth_left += 1;
            return Ok(false);
        }
        self.error("a comma or the end of the container is expected")
    }

    /// Before the first member: whether there is one. Closes the container if not.
    #[inline]
    pub(crate) fn first(&mut self, close: u8) -> bool {
        self.skip_whitespace();
        if self.take(close) {
            self.depth_left += 1;
            return false;
        }
        true
    }

    /// The colon between a name and its value, and the space around it.
    #[inline]
    pub(crate) fn colon(&mut self) -> Result<(), JsonError> {
        self.skip_whitespace();
        if !self.take(b':') {
            return self.error("a colon is expected");
        }
        self.skip_whitespace();
        Ok(())
    }

    /// Reads one value of any kind.
    #[inline]
    pub(crate) fn value(&mut self) -> Result<Token, JsonError> {
        let start = self.at;
        let kind = match self.peek() {
            b'{' => TokenKind::Object,
            b'[' => TokenKind::Array,
            _ => return self.scalar(),
        };
        self.container()?;
        Ok(Token {
            kind,
            start,
            end: self.at,
        })
    }

    /// Reads a value that is neither an object nor an array.
    #[inline]
    fn scalar(&mut self) -> Result<Token, JsonError> {
        let start = self.at;
        let kind = match self.peek() {
            b'"' => return self.string(),
            b'-' | b'0'..=b'9' => self.number()?,
            b't' => self.literal(b"true", TokenKind::True)?,
            b'f' => self.literal(b"false", TokenKind::False)?,
            b'n' => self.literal(b"null", TokenKind::Null)?,
            _ => return self.error("a value is expected"),
        };
        Ok(Token {
            kind,
            start,
            end: self.at,
        })
    }

    /// Reads a string; the token includes its quotes.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<Token, JsonError> {
        let start = self.at;
        if !self.take(b'"') {
            return self.error("a string is expected");
        }
        let mut kind = TokenKind::PlainString;
        loop {
            self.at = plain_run_end(self.bytes, self.at);
            match self.bytes.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    kind = TokenKind::EscapedString;
                    self.escape()?;
                }
                Some(_) => return self.error("a control character stands in a string"),
                None => return self.error("a string does not end"),
            }
        }
        self.at += 1;
        Ok(Token {
            kind,
            start,
            end: self.at,
        })
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        self.at += 1;
        match self.peek() {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {
                self.at += 1;
                Ok(())
            }
            b'u' => {
                let digits = self.bytes.get(self.at + 1..self.at + 5);
                if digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit)) {
                    self.at += 5;
                    Ok(())
                } else {
                    self.error("four hexadecimal digits are expected")
                }
            }
            _ => self.error("there is no such escape"),
        }
    }

    #[inline]
    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        self.at - start
    }

    #[inline]
    fn number(&mut self) -> Result<TokenKind, JsonError> {
        self.take(b'-');
        let leading_zero = self.peek() == b'0';
        let digits = self.digits();
        if digits == 0 {
            return self.error("a digit is expected");
        }
        if leading_zero && digits > 1 {
            return self.error("a number must not start with 0");
        }
        if self.take(b'.') && self.digits() == 0 {
            return self.error("a digit is expected");
        }
        if matches!(self.peek(), b'e' | b'E') {
            self.at += 1;
            if matches!(self.peek(), b'+' | b'-') {
                self.at += 1;
            }
            if self.digits() == 0 {
                return self.error("a digit is expected");
            }
        }
        Ok(TokenKind::Number)
    }

    #[inline]
    fn literal(&mut self, word: &[u8], kind: TokenKind) -> Result<TokenKind, JsonError> {
        if self.take_all(word) {
            Ok(kind)
        } else {
            self.error("a value is expected")
        }
    }

    /// Reads an object or array to its end, whatever is in it.
    fn container(&mut self) -> Result<(), JsonError> {
        const { assert!(MAX_JSON_DEPTH <= u128::BITS as usize) };
        // One bit per open container, the innermost last: 1 is an object.
        let mut objects: u128 = 0;
        let mut open = 0_usize;
        'value: loop {
            let bracket = self.peek();
            if bracket == b'{' || bracket == b'[' {
                if open == self.depth_left {
                    return self.error("it is nested too deeply");
                }
                self.at += 1;
                open += 1;
                objects = (objects << 1) | u128::from(bracket == b'{');
                self.skip_whitespace();
                let close = if bracket == b'{' { b'}' } else { b']' };
                if self.peek() != close {
                    if bracket == b'{' {
                        self.name()?;
                    }
                    continue 'value;
                }
            } else {
                self.scalar()?;
            }
            loop {
                self.skip_whitespace();
                let in_object = objects & 1 == 1;
                match self.peek() {
                    b',' => {
                        self.at += 1;
                        self.skip_whitespace();
                        if in_object {
                            self.name()?;
                        }
                        continue 'value;
                    }
                    b'}' if in_object => {}
                    b']' if !in_object => {}
                    _ => return self.error("a comma or the end of the container is expected"),
                }
                self.at += 1;
                objects >>= 1;
                open -= 1;
                if open == 0 {
                    return Ok(());
                }
            }
        }
    }

    fn name(&mut self) -> Result<(), JsonError> {
        self.string()?;
        self.colon()
    }
}

/// The first quote, backslash or control character at or after `at`; the length if there is none.
#[inline]
pub(crate) fn plain_run_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some((word, _)) = bytes.get(at..).and_then(<[u8]>::split_first_chunk::<8>) {
        let special = special_bytes(u64::from_le_bytes(*word));
        if special != 0 {
            return at + special.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(|byte| !is_special(*byte)) {
        at += 1;
    }
    at
}

#[inline]
fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Eight bytes at once: the high bit of each byte that is special. Bits above the lowest one set may be
/// wrong (a borrow runs upwards), the lowest never is.
#[inline]
fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGH_BITS: u64 = ONES * 0x80;
    let below_space = word.wrapping_sub(ONES * 0x20) & !word;
    let quotes = word ^ (ONES * b'"' as u64);
    let quotes = quotes.wrapping_sub(ONES) & !quotes;
    let backslashes = word ^ (ONES * b'\\' as u64);
    let backslashes = backslashes.wrapping_sub(ONES) & !backslashes;
    (below_space | quotes | backslashes) & HIGH_BITS
}

/// What a scanned string says. `None`: it has half of a surrogate pair, which is no character.
pub(crate) fn string_value(text: &str, token: Token) -> Option<Cow<'_, str>> {
    let inside = &text[token.start + 1..token.end - 1];
    match token.kind {
        TokenKind::PlainString => Some(Cow::Borrowed(inside)),
        _ => unescape(inside).map(Cow::Owned),
    }
}

/// Replaces the escapes of a string whose form was checked.
fn unescape(inside: &str) -> Option<String> {
    let mut text = String::with_capacity(inside.len());
    let mut rest = inside;
    while let Some(backslash) = rest.find('\\') {
        text.push_str(&rest[..backslash]);
        let escape = rest.as_bytes()[backslash + 1];
        rest = &rest[backslash + 2..];
        text.push(match escape {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let mut unit = hex4(rest);
                rest = &rest[4..];
                if (0xd800..0xdc00).contains(&unit) {
                    let low = rest.strip_prefix("\\u").map(hex4);
                    let low = low.filter(|low| (0xdc00..0xe000).contains(low))?;
                    unit = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                    rest = &rest[6..];
                }
                char::from_u32(unit)?
            }
            other => char::from(other),
        });
    }
    text.push_str(rest);
    Some(text)
}

fn hex4(text: &str) -> u32 {
    u32::from_str_radix(&text[..4], 16).expect("the scanner saw four hexadecimal digits")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(text: &str) -> Result<Token, JsonError> {
        let mut scanner = Scanner::new(text);
        scanner.skip_whitespace();
        let token = scanner.value()?;
        scanner.end()?;
        Ok(token)
    }

    #[test]
    fn depth_is_bounded_and_costs_no_stack() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(scan(&nested(MAX_JSON_DEPTH)).is_ok());
        assert!(scan(&nested(MAX_JSON_DEPTH + 1)).is_err());
        assert!(scan(&"[".repeat(1_000_000)).is_err());
        assert!(scan(&"{\"a\":".repeat(1_000_000)).is_err());
    }

    #[test]
    fn a_special_byte_is_found_wherever_it_stands_in_a_word() {
        for special in [b'"', b'\\', 0, 0x1f] {
            for length in 0..40 {
                for position in 0..length {
                    let mut bytes = vec![b' '; length];
                    bytes[position] = special;
                    assert_eq!(plain_run_end(&bytes, 0), position);
                }
            }
        }
        let harmless: Vec<u8> = (0x20..=0xff).filter(|b| !is_special(*b)).collect();
        assert_eq!(plain_run_end(&harmless, 0), harmless.len());
    }

    proptest! {
        #[test]
        fn it_accepts_what_another_strict_parser_accepts(text in "[\\[\\]{}:,\"\\\\ntu0-9a-fE.+\\- \n\u{1}é]{0,24}") {
            let reference = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(scan(&text).is_ok(), reference, "{}", text);
        }

        #[test]
        fn a_string_reads_back_as_it_was(text: String) {
            let json = serde_json::to_string(&text).unwrap();
            let token = scan(&json).unwrap();
            let value = string_value(&json, token).unwrap();
            prop_assert_eq!(&*value, text.as_str());
        }
    }
}
