//! MessagePack ↔ JSON text: records come and go in either, and are stored as JSON.
//!
//! `bin` at the top stands for bytes as they are. What JSON has no words for is refused: extensions,
//! keys that are not strings, numbers that are not finite.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use common::limits::MAX_JSON_DEPTH;

use super::json_text::{elements, members, trim, unescape};

/// Why bytes are not MessagePack that can be a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct MsgpackError {
    pub at: usize,
    pub reason: &'static str,
}

/// Reads MessagePack from the front of what it is given. Never takes memory for a length that is only
/// claimed.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// What stands at the front: a whole scalar, or how many values follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'a> {
    Nil,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float32(f32),
    Float64(f64),
    Str(&'a str),
    Bin(&'a [u8]),
    Array(usize),
    Map(usize),
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    pub fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub fn token(&mut self) -> Result<Token<'a>, MsgpackError> {
        let start = self.at;
        let [marker] = self.array()?;
        Ok(match marker {
            0x00..=0x7f => Token::Unsigned(u64::from(marker)),
            0x80..=0x8f => Token::Map(usize::from(marker & 0x0f)),
            0x90..=0x9f => Token::Array(usize::from(marker & 0x0f)),
            0xa0..=0xbf => Token::Str(self.text(usize::from(marker & 0x1f))?),
            0xc0 => Token::Nil,
            0xc2 => Token::Bool(false),
            0xc3 => Token::Bool(true),
            0xc4..=0xc6 => {
                let length = self.length(marker - 0xc4)?;
                Token::Bin(self.take(length)?)
            }
            0xca => Token::Float32(f32::from_be_bytes(self.array()?)),
            0xcb => Token::Float64(f64::from_be_bytes(self.array()?)),
            0xcc => Token::Unsigned(u64::from(u8::from_be_bytes(self.array()?))),
            0xcd => Token::Unsigned(u64::from(u16::from_be_bytes(self.array()?))),
            0xce => Token::Unsigned(u64::from(u32::from_be_bytes(self.array()?))),
            0xcf => Token::Unsigned(u64::from_be_bytes(self.array()?)),
            0xd0 => Token::Signed(i64::from(i8::from_be_bytes(self.array()?))),
            0xd1 => Token::Signed(i64::from(i16::from_be_bytes(self.array()?))),
            0xd2 => Token::Signed(i64::from(i32::from_be_bytes(self.array()?))),
            0xd3 => Token::Signed(i64::from_be_bytes(self.array()?)),
            0xd9..=0xdb => {
                let length = self.length(marker - 0xd9)?;
                Token::Str(self.text(length)?)
            }
            0xdc => Token::Array(self.length(1)?),
            0xdd => Token::Array(self.length(2)?),
            0xde => Token::Map(self.length(1)?),
            0xdf => Token::Map(self.length(2)?),
            0xe0..=0xff => Token::Signed(i64::from(marker.cast_signed())),
            0xc1 => {
                return Err(MsgpackError {
                    at: start,
                    reason: "there is no such type",
                });
            }
            0xc7..=0xc9 | 0xd4..=0xd8 => {
                return Err(MsgpackError {
                    at: start,
                    reason: "an extension has no counterpart in JSON",
                });
            }
        })
    }

    /// The next value as JSON text. Bytes inside of it become `{"base64": …}`.
    pub fn json(&mut self, depth: usize, text: &mut Vec<u8>) -> Result<(), MsgpackError> {
        let start = self.at;
        let error = |reason| MsgpackError { at: start, reason };
        match self.token()? {
            Token::Nil => text.extend_from_slice(b"null"),
            Token::Bool(true) => text.extend_from_slice(b"true"),
            Token::Bool(false) => text.extend_from_slice(b"false"),
            Token::Unsigned(number) => text.extend_from_slice(number.to_string().as_bytes()),
            Token::Signed(number) => text.extend_from_slice(number.to_string().as_bytes()),
            Token::Float32(number) if number.is_finite() => put_json(text, &f64::from(number)),
            Token::Float64(number) if number.is_finite() => put_json(text, &number),
            Token::Float32(_) | Token::Float64(_) => {
                return Err(error(
                    "a number that is not finite has no counterpart in JSON",
                ));
            }
            Token::Str(string) => put_json(text, string),
            Token::Bin(bytes) => put_base64(text, bytes),
            Token::Array(_) | Token::Map(_) if depth == MAX_JSON_DEPTH => {
                return Err(error("it nests deeper than 128 levels"));
            }
            Token::Array(length) => {
                text.push(b'[');
                for index in 0..length {
                    if index > 0 {
                        text.push(b',');
                    }
                    self.json(depth + 1, text)?;
                }
                text.push(b']');
            }
            Token::Map(length) => {
                text.push(b'{');
                for index in 0..length {
                    if index > 0 {
                        text.push(b',');
                    }
                    let at = self.at;
                    let Token::Str(name) = self.token()? else {
                        return Err(MsgpackError {
                            at,
                            reason: "a key that is not a string has no counterpart in JSON",
                        });
                    };
                    put_json(text, name);
                    text.push(b':');
                    self.json(depth + 1, text)?;
                }
                text.push(b'}');
            }
        }
        Ok(())
    }

    fn length(&mut self, size: u8) -> Result<usize, MsgpackError> {
        let length = match size {
            0 => u32::from(u8::from_be_bytes(self.array()?)),
            1 => u32::from(u16::from_be_bytes(self.array()?)),
            _ => u32::from_be_bytes(self.array()?),
        };
        Ok(usize::try_from(length).expect("a usize has at least 32 bits"))
    }

    fn text(&mut self, length: usize) -> Result<&'a str, MsgpackError> {
        let at = self.at;
        std::str::from_utf8(self.take(length)?).map_err(|_| MsgpackError {
            at,
            reason: "a string is not UTF-8",
        })
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], MsgpackError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..length).ok_or(MsgpackError {
            at: self.bytes.len(),
            reason: "it is cut off",
        })?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MsgpackError> {
        let bytes = self.take(N)?;
        Ok(*bytes.first_chunk::<N>().expect("so many were taken"))
    }
}

/// Appends what well-formed JSON text says, as MessagePack. `depth` is bounded because the text was
/// checked to be.
pub fn put_value(out: &mut Vec<u8>, text: &[u8]) {
    let text = trim(text);
    match text.first() {
        Some(b'{') => {
            put_length(out, members(text).count(), 0x80, 0xdf);
            for (name, value) in members(text) {
                put_str(out, &name);
                put_value(out, value);
            }
        }
        Some(b'[') => {
            put_length(out, elements(text).count(), 0x90, 0xdd);
            for value in elements(text) {
                put_value(out, value);
            }
        }
        Some(b'"') => put_str(out, &unescape(text)),
        Some(b't') => out.push(0xc3),
        Some(b'f') => out.push(0xc2),
        Some(b'n') | None => out.push(0xc0),
        Some(_) => put_number(out, text),
    }
}

pub fn put_map(out: &mut Vec<u8>, members: usize) {
    put_length(out, members, 0x80, 0xdf);
}

pub fn put_array(out: &mut Vec<u8>, elements: usize) {
    put_length(out, elements, 0x90, 0xdd);
}

pub fn put_str(out: &mut Vec<u8>, text: &str) {
    match u8::try_from(text.len()) {
        Ok(length) if length < 32 => out.push(0xa0 | length),
        _ => {
            out.push(0xdb);
            out.extend_from_slice(&length32(text.len()));
        }
    }
    out.extend_from_slice(text.as_bytes());
}

pub fn put_bin(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(0xc6);
    out.extend_from_slice(&length32(bytes.len()));
    out.extend_from_slice(bytes);
}

pub fn put_i64(out: &mut Vec<u8>, number: i64) {
    match u8::try_from(number) {
        Ok(small) if small < 0x80 => out.push(small),
        _ => {
            out.push(0xd3);
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
}

fn put_number(out: &mut Vec<u8>, text: &[u8]) {
    let text = std::str::from_utf8(text).unwrap_or_default();
    if let Ok(number) = text.parse::<i64>() {
        put_i64(out, number);
    } else if let Ok(number) = text.parse::<u64>() {
        out.push(0xcf);
        out.extend_from_slice(&number.to_be_bytes());
    } else {
        // What no 64-bit integer holds is as near as a float comes to it.
        let number: f64 = text.parse().unwrap_or(f64::NAN);
        out.push(0xcb);
        out.extend_from_slice(&number.to_be_bytes());
    }
}

fn put_length(out: &mut Vec<u8>, length: usize, short: u8, long: u8) {
    match u8::try_from(length) {
        Ok(length) if length < 16 => out.push(short | length),
        _ => {
            out.push(long);
            out.extend_from_slice(&length32(length));
        }
    }
}

fn length32(length: usize) -> [u8; 4] {
    u32::try_from(length)
        .expect("an answer is far below 4 GiB")
        .to_be_bytes()
}

/// Appends a string or number as JSON.
pub fn put_json<T: serde::Serialize + ?Sized>(text: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(text, value)
        .expect("strings and finite numbers can be written to memory");
}

/// Appends bytes that are not JSON, as JSON.
pub fn put_base64(text: &mut Vec<u8>, bytes: &[u8]) {
    text.extend_from_slice(b"{\"base64\":\"");
    text.extend_from_slice(BASE64.encode(bytes).as_bytes());
    text.extend_from_slice(b"\"}");
}
