//! JSON as text: whether it is well-formed, and where a value lies in it, without building anything.
//!
//! Accepts what RFC 8259 says and nothing else, to a bounded depth and without recursion, so that no
//! input can exhaust a stack. Escaped surrogates must come in pairs: a text with half of one stands for
//! no string at all, and would break whoever reads it later.

use std::borrow::Cow;

use common::limits::MAX_JSON_DEPTH;

/// Why and where bytes are not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct JsonError {
    /// The byte where it went wrong.
    pub at: usize,
    pub reason: &'static str,
}

/// Checks that these bytes are one JSON text that nests at most as deep as a record may.
pub fn check(bytes: &[u8]) -> Result<(), JsonError> {
    check_depth(bytes, MAX_JSON_DEPTH)
}

/// Checks that these bytes are one JSON text that nests at most `depth` deep.
pub fn check_depth(bytes: &[u8], depth: usize) -> Result<(), JsonError> {
    if let Err(error) = std::str::from_utf8(bytes) {
        return Err(JsonError {
            at: error.valid_up_to(),
            reason: "it is not UTF-8",
        });
    }
    Scanner { bytes, at: 0 }.document(depth)
}

/// Line and column, from 1, of a byte.
pub fn line_and_column(text: &[u8], at: usize) -> (usize, usize) {
    let before = &text[..at.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |newline| newline + 1);
    (line, at.min(text.len()) - start + 1)
}

/// A JSON pointer (RFC 6901), taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    tokens: Vec<String>,
}

impl Pointer {
    pub fn parse(text: &str) -> Option<Pointer> {
        if text.is_empty() {
            return Some(Pointer { tokens: Vec::new() });
        }
        let rest = text.strip_prefix('/')?;
        let tokens = rest
            .split('/')
            .map(|token| token.replace("~1", "/").replace("~0", "~"))
            .collect();
        Some(Pointer { tokens })
    }

    /// The text of the value it points to in a well-formed JSON text. Of members of the same name the
    /// last counts.
    pub fn find<'a>(&self, text: &'a [u8]) -> Option<&'a [u8]> {
        let mut value = trim(text);
        for token in &self.tokens {
            value = match value.first()? {
                b'{' => members(value)
                    .filter(|(name, _)| *name == token.as_str())
                    .last()
                    .map(|(_, value)| value)?,
                b'[' => {
                    let index: usize = token.parse().ok()?;
                    elements(value).nth(index)?
                }
                _ => return None,
            };
        }
        Some(value)
    }
}

/// The string a well-formed JSON string stands for.
pub fn unescape(text: &[u8]) -> Cow<'_, str> {
    let inner = &text[1..text.len() - 1];
    if inner.contains(&b'\\') {
        let string: String =
            serde_json::from_slice(text).expect("the text was checked to be a JSON string");
        Cow::Owned(string)
    } else {
        Cow::Borrowed(std::str::from_utf8(inner).expect("the text was checked to be UTF-8"))
    }
}

/// The members of a well-formed object: names, and the texts of their values.
pub fn members(object: &[u8]) -> impl Iterator<Item = (Cow<'_, str>, &[u8])> {
    let mut scanner = Scanner {
        bytes: object,
        at: 1,
    };
    std::iter::from_fn(move || {
        scanner.skip_separators(b',');
        if scanner.peek()? == b'}' {
            return None;
        }
        let name = scanner.take_value();
        scanner.skip_separators(b':');
        Some((unescape(name), scanner.take_value()))
    })
}

/// The texts of the elements of a well-formed array.
pub fn elements(array: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut scanner = Scanner {
        bytes: array,
        at: 1,
    };
    std::iter::from_fn(move || {
        scanner.skip_separators(b',');
        if scanner.peek()? == b']' {
            return None;
        }
        Some(scanner.take_value())
    })
}

/// Without the white space around it.
pub fn trim(text: &[u8]) -> &[u8] {
    let is_text = |byte: &u8| !is_space(*byte);
    let start = text.iter().position(is_text).unwrap_or(text.len());
    let end = text
        .iter()
        .rposition(is_text)
        .map_or(start, |last| last + 1);
    &text[start..end]
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Which containers are open, the innermost last: a bit each, set for objects.
struct Nesting {
    objects: [u64; 4],
    depth: usize,
}

impl<'a> Scanner<'a> {
    fn document(&mut self, max_depth: usize) -> Result<(), JsonError> {
        let mut nesting = Nesting {
            objects: [0; 4],
            depth: 0,
        };
        assert!(max_depth <= 256, "a nesting has 256 bits");
        self.skip_space();
        'value: loop {
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    if nesting.depth == max_depth {
                        return Err(self.error("it nests deeper than 128 levels"));
                    }
                    nesting.open(open == b'{');
                    self.at += 1;
                    self.skip_space();
                    match (open, self.peek()) {
                        (b'{', Some(b'}')) | (b'[', Some(b']')) => {
                            self.at += 1;
                            nesting.close();
                        }
                        (b'{', _) => {
                            self.member_name()?;
                            continue 'value;
                        }
                        _ => continue 'value,
                    }
                }
                Some(b'"') => self.string()?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.word(b"true")?,
                Some(b'f') => self.word(b"false")?,
                Some(b'n') => self.word(b"null")?,
                Some(_) => return Err(self.error("a value should stand here")),
                None => return Err(self.error("it ends where a value should stand")),
            }
            // A value has ended: what may follow depends on what it is in.
            loop {
                self.skip_space();
                if nesting.depth == 0 {
                    return match self.peek() {
                        None => Ok(()),
                        Some(_) => Err(self.error("something follows its end")),
                    };
                }
                let object = nesting.in_object();
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        self.skip_space();
                        if object {
                            self.member_name()?;
                        }
                        continue 'value;
                    }
                    Some(b'}') if object => nesting.close(),
                    Some(b']') if !object => nesting.close(),
                    Some(_) if object => {
                        return Err(self.error("\",\" or \"}\" should stand here"));
                    }
                    Some(_) => return Err(self.error("\",\" or \"]\" should stand here")),
                    None => return Err(self.error("it ends inside of an object or array")),
                }
                self.at += 1;
            }
        }
    }

    fn member_name(&mut self) -> Result<(), JsonError> {
        if self.peek() != Some(b'"') {
            return Err(self.error("a member's name should stand here"));
        }
        self.string()?;
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.error("\":\" should stand here"));
        }
        self.at += 1;
        self.skip_space();
        Ok(())
    }

    fn string(&mut self) -> Result<(), JsonError> {
        self.at += 1;
        loop {
            let rest = &self.bytes[self.at..];
            let plain = rest
                .iter()
                .position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f));
            let Some(plain) = plain else {
                self.at = self.bytes.len();
                return Err(self.error("a string does not end"));
            };
            self.at += plain;
            match self.bytes[self.at] {
                b'"' => {
                    self.at += 1;
                    return Ok(());
                }
                b'\\' => self.escape()?,
                _ => return Err(self.error("a control character must be escaped in a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 2;
                Ok(())
            }
            Some(b'u') => match self.code_unit(self.at)? {
                0xd800..=0xdbff => {
                    let second = self.at + 6;
                    let follows = self.bytes.get(second..second + 2) == Some(b"\\u");
                    if !follows || !(0xdc00..=0xdfff).contains(&self.code_unit(second)?) {
                        return Err(self.error("half of a surrogate pair stands alone"));
                    }
                    self.at += 12;
                    Ok(())
                }
                0xdc00..=0xdfff => Err(self.error("half of a surrogate pair stands alone")),
                _ => {
                    self.at += 6;
                    Ok(())
                }
            },
            Some(_) | None => Err(self.error("there is no such escape")),
        }
    }

    /// The number of the `\uXXXX` at this place.
    fn code_unit(&self, at: usize) -> Result<u32, JsonError> {
        let digits = self.bytes.get(at + 2..at + 6);
        digits
            .and_then(|digits| {
                digits.iter().try_fold(0, |number, digit| {
                    Some(number * 16 + char::from(*digit).to_digit(16)?)
                })
            })
            .ok_or(JsonError {
                at,
                reason: "\\u needs four hexadecimal digits",
            })
    }

    fn number(&mut self) -> Result<(), JsonError> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            Some(_) | None => return Err(self.error("a digit should stand here")),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.error("a digit should stand here"));
        }
        Ok(())
    }

    fn word(&mut self, word: &[u8]) -> Result<(), JsonError> {
        if self.bytes[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(())
        } else {
            Err(self.error("a value should stand here"))
        }
    }

    /// Of well-formed text: the value that begins here, and past it.
    fn take_value(&mut self) -> &'a [u8] {
        self.skip_space();
        let start = self.at;
        let mut depth = 0_usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth == 0 => break,
                b'}' | b']' => depth -= 1,
                b'"' => {
                    self.skip_string();
                    if depth == 0 {
                        return &self.bytes[start..self.at];
                    }
                    continue;
                }
                b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => break,
                _ => {}
            }
            self.at += 1;
            if depth == 0 && matches!(byte, b'}' | b']') {
                break;
            }
        }
        &self.bytes[start..self.at]
    }

    fn skip_string(&mut self) {
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += match byte {
                b'\\' => 2,
                _ => 1,
            };
            if byte == b'"' {
                return;
            }
        }
    }

    fn skip_separators(&mut self, separator: u8) {
        self.skip_space();
        if self.peek() == Some(separator) {
            self.at += 1;
            self.skip_space();
        }
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(is_space) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn error(&self, reason: &'static str) -> JsonError {
        JsonError {
            at: self.at,
            reason,
        }
    }
}

impl Nesting {
    fn open(&mut self, object: bool) {
        let bit = 1 << (self.depth % 64);
        let word = &mut self.objects[self.depth / 64];
        *word = if object { *word | bit } else { *word & !bit };
        self.depth += 1;
    }

    fn close(&mut self) {
        self.depth -= 1;
    }

    fn in_object(&self) -> bool {
        let innermost = self.depth - 1;
        self.objects[innermost / 64] & (1 << (innermost % 64)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_are_accepted_exactly_if_they_are_json() {
        for good in [
            "0",
            "-0",
            "1.5e-3",
            "\"\"",
            "null",
            " true ",
            "[]",
            "{}",
            "[1,2]",
            "{\"a\":{\"b\":[]}}",
            "\"\\u00e9\\ud83d\\ude00\\/\"",
            "[[[]],{}]",
            "{\"a\":1,\"a\":2}",
            "\"\u{7f}é\"",
        ] {
            assert_eq!(check(good.as_bytes()), Ok(()), "{good}");
        }
        for bad in [
            "",
            " ",
            "01",
            "1.",
            ".5",
            "+1",
            "1e",
            "-",
            "tru",
            "nul",
            "NaN",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "{\"a\":1,}",
            "[",
            "]",
            "{",
            "\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\\ud800\"",
            "\"\\udc00\"",
            "\"\\ud800\\u0041\"",
            "\"\n\"",
            "1 2",
            "[1}",
            "{\"a\":1]",
            "\u{feff}1",
            "'a'",
            "\"\\u12",
        ] {
            assert!(check(bad.as_bytes()).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(check(b"\"\xff\"").unwrap_err().at, 1);
    }

    #[test]
    fn depth_has_a_limit_and_costs_no_stack() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(check(nested(MAX_JSON_DEPTH).as_bytes()), Ok(()));
        assert!(check(nested(MAX_JSON_DEPTH + 1).as_bytes()).is_err());
        assert!(check("[{\"\":".repeat(1_000_000).as_bytes()).is_err());
    }

    #[test]
    fn pointers_find_what_they_point_to() {
        let text =
            br#" {"a": {"b/c": [1, {"d~": "x\"y"}]}, "k": 1, "k": {"e": -2.5e1}, "": null} "#;
        for (pointer, expected) in [
            ("/a/b~1c/1/d~0", Some(&br#""x\"y""#[..])),
            ("/a/b~1c/0", Some(b"1")),
            ("/k/e", Some(b"-2.5e1")),
            ("/", Some(b"null")),
            ("/a/b", None),
            ("/a/b~1c/2", None),
            ("/k/e/f", None),
        ] {
            let found = Pointer::parse(pointer).unwrap().find(text);
            assert_eq!(found, expected, "{pointer}");
        }
        assert_eq!(Pointer::parse("a"), None);
        assert_eq!(Pointer::parse("").unwrap().find(b" 7 "), Some(&b"7"[..]));
    }

    #[test]
    fn a_place_is_told_by_line_and_column() {
        let text = b"ab\ncd\n";
        assert_eq!(line_and_column(text, 0), (1, 1));
        assert_eq!(line_and_column(text, 4), (2, 2));
        assert_eq!(line_and_column(text, 99), (3, 1));
    }

    proptest! {
        /// The reference is serde_json, which accepts the same texts apart from the depth.
        #[test]
        fn any_bytes_are_judged_as_a_parser_judges_them(
            pieces in proptest::collection::vec(
                prop::sample::select(vec![
                    "{", "}", "[", "]", ",", ":", "\"a\"", "\"", "\\", "u0041", "1", "-", ".", "e",
                    "0", "true", "null", " ", "\n", "é", "\\ud83d\\ude00", "\\ud83d", "\u{1}",
                ]),
                0..12,
            ),
        ) {
            let text = pieces.concat();
            let parsed = serde_json::from_str::<serde_json::Value>(&text);
            // Its numbers are limited to what a 64-bit float holds.
            if parsed.as_ref().is_err_and(|error| error.to_string().contains("out of range")) {
                return Ok(());
            }
            prop_assert_eq!(check(text.as_bytes()).is_ok(), parsed.is_ok(), "{}", text);
        }

        #[test]
        fn members_and_elements_are_those_a_parser_finds(
            keys in proptest::collection::vec("[a-z\"\\\\é/]{0,4}", 0..5),
            numbers in proptest::collection::vec(any::<i32>(), 0..5),
        ) {
            let mut object = serde_json::Map::new();
            for key in &keys {
                object.insert(key.clone(), serde_json::json!({ "n": numbers, "s": key }));
            }
            let text = serde_json::to_string_pretty(&object).unwrap();
            prop_assert_eq!(check(text.as_bytes()), Ok(()));
            let mut found = serde_json::Map::new();
            for (name, value) in members(text.as_bytes()) {
                let numbers = Pointer::parse("/n").unwrap().find(value).unwrap();
                prop_assert_eq!(elements(numbers).count(), serde_json::from_slice::<Vec<i32>>(numbers).unwrap().len());
                found.insert(name.into_owned(), serde_json::from_slice(value).unwrap());
            }
            prop_assert_eq!(found, object);
        }
    }
}
