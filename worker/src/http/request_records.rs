//! The body of a produce request → records, all of them checked before any is written.
//!
//! Values and keys are stored as JSON text, or as bytes where a request gives bytes: `{"base64": …}` in
//! JSON, `bin` in MessagePack. The text of a value is stored as it came.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use common::error::{ErrorCode, Problem};
use common::ids::PartitionId;
use common::limits::{MAX_HEADERS_PER_RECORD, MAX_JSON_DEPTH};
use common::record::Header;
use common::time::Timestamp;

use super::json_text::{self, Pointer, elements, members, trim, unescape};
use super::msgpack_text::{MsgpackError, Reader, Token};

/// How deep the request itself nests around a record's value.
const ENVELOPE_DEPTH: usize = 3;

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFormat {
    Ndjson,
    Json,
    Msgpack,
}

/// A record of a request, borrowed from its body where it can be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestRecord<'a> {
    pub key: Option<Cow<'a, [u8]>>,
    pub value: Option<Cow<'a, [u8]>>,
    pub headers: Vec<Header>,
    pub timestamp: Option<Timestamp>,
    pub partition: Option<PartitionId>,
}

impl RequestRecord<'_> {
    /// The bytes that count against a topic's `max_message_bytes`.
    pub fn payload_bytes(&self) -> usize {
        let optional = |bytes: &Option<Cow<'_, [u8]>>| bytes.as_ref().map_or(0, |b| b.len());
        let headers: usize = self
            .headers
            .iter()
            .map(|header| header.key.len() + header.value.as_ref().map_or(0, Bytes::len))
            .sum();
        optional(&self.key) + optional(&self.value) + headers
    }
}

impl BodyFormat {
    /// The format of a content type, whatever its parameters.
    pub fn of(content_type: &str) -> Option<BodyFormat> {
        let media = content_type.split(';').next().unwrap_or_default().trim();
        match media.to_ascii_lowercase().as_str() {
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonlines" => Some(BodyFormat::Ndjson),
            "application/json" => Some(BodyFormat::Json),
            "application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack" => {
                Some(BodyFormat::Msgpack)
            }
            _ => None,
        }
    }
}

/// The records of a body. `key`: where in each value of ndjson its key is.
pub fn decode<'a>(
    format: BodyFormat,
    body: &'a [u8],
    key: Option<&Pointer>,
) -> Result<Vec<RequestRecord<'a>>, Problem> {
    match format {
        BodyFormat::Ndjson => decode_ndjson(body, key),
        BodyFormat::Json => decode_json(body),
        BodyFormat::Msgpack => decode_msgpack(body),
    }
}

fn decode_ndjson<'a>(
    body: &'a [u8],
    key: Option<&Pointer>,
) -> Result<Vec<RequestRecord<'a>>, Problem> {
    let mut records = Vec::with_capacity(body.len() / 128);
    for (number, line) in (1..).zip(body.split(|byte| *byte == b'\n')) {
        let value = trim(line);
        if value.is_empty() {
            continue;
        }
        if let Err(error) = json_text::check(value) {
            let index = records.len();
            let indent = line.len() - line.trim_ascii_start().len();
            let detail = format!("record {index} is not JSON: {error}");
            let place = format!("line {number}, column {}", indent + error.at + 1);
            return Err(Problem::new(ErrorCode::InvalidRecord, detail).at(place));
        }
        let key = key
            .and_then(|pointer| pointer.find(value))
            .and_then(key_text);
        records.push(RequestRecord {
            key,
            value: Some(Cow::Borrowed(value)),
            ..RequestRecord::default()
        });
    }
    Ok(records)
}

fn decode_json(body: &[u8]) -> Result<Vec<RequestRecord<'_>>, Problem> {
    let malformed = |error: json_text::JsonError| {
        let (line, column) = json_text::line_and_column(body, error.at);
        Problem::new(
            ErrorCode::InvalidRequest,
            format!("the body is not JSON: {error}"),
        )
        .at(format!("line {line}, column {column}"))
    };
    json_text::check_depth(body, MAX_JSON_DEPTH + ENVELOPE_DEPTH).map_err(malformed)?;
    let body = trim(body);
    if body.first() != Some(&b'{') {
        return Err(no_records());
    }
    let mut list = None;
    for (name, value) in members(body) {
        match &*name {
            "records" if value.first() == Some(&b'[') => list = Some(value),
            "records" => return Err(no_records()),
            other => return Err(unknown_member("the body", other).at(format!("/{other}"))),
        }
    }
    let list = list.ok_or_else(no_records)?;
    elements(list)
        .enumerate()
        .map(|(index, record)| json_record(record).map_err(|mistake| mistake.of_record(index)))
        .collect()
}

fn json_record(record: &[u8]) -> Result<RequestRecord<'_>, Mistake> {
    if record.first() != Some(&b'{') {
        return Err(Mistake::new("", "it is not an object with a \"value\""));
    }
    let mut decoded = RequestRecord::default();
    let mut has_value = false;
    for (name, text) in members(record) {
        match &*name {
            "value" => {
                has_value = true;
                decoded.value = payload("/value", text)?;
            }
            "key" => {
                decoded.key = match bytes_of(text) {
                    Some(bytes) => Some(Cow::Owned(bytes?)),
                    None => key_text(checked("/key", text)?),
                }
            }
            "headers" => decoded.headers = json_headers(text)?,
            "timestamp" => decoded.timestamp = json_timestamp(text)?,
            "partition" => decoded.partition = json_partition(text)?,
            other => return Err(Mistake::unknown(other)),
        }
    }
    if has_value {
        Ok(decoded)
    } else {
        Err(Mistake::new("", "it has no \"value\""))
    }
}

/// A value's text as it came; null is no value.
fn payload<'a>(place: &'static str, text: &'a [u8]) -> Result<Option<Cow<'a, [u8]>>, Mistake> {
    if text == b"null" {
        return Ok(None);
    }
    match bytes_of(text) {
        Some(bytes) => Ok(Some(Cow::Owned(bytes?))),
        None => Ok(Some(Cow::Borrowed(checked(place, text)?))),
    }
}

/// The envelope allows its values to nest as deep as anything; a record's own limit is checked here.
fn checked<'a>(place: &'static str, text: &'a [u8]) -> Result<&'a [u8], Mistake> {
    match json_text::check(text) {
        Ok(()) => Ok(text),
        Err(error) => Err(Mistake::new(place, error.reason)),
    }
}

/// A key is stored in one way however it was written, since its bytes decide where it goes.
fn key_text(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    match text.first() {
        Some(b'n') => None,
        Some(b'"') if text.contains(&b'\\') => {
            let key = serde_json::to_vec(&*unescape(text)).expect("a string can be written");
            Some(Cow::Owned(key))
        }
        Some(_) | None => Some(Cow::Borrowed(text)),
    }
}

/// The bytes that `{"base64": …}` stands for; `None` if the text is something else.
fn bytes_of(text: &[u8]) -> Option<Result<Vec<u8>, Mistake>> {
    if text.first() != Some(&b'{') {
        return None;
    }
    let mut all = members(text);
    let (name, value) = all.next()?;
    if name != "base64" || value.first() != Some(&b'"') || all.next().is_some() {
        return None;
    }
    let decoded = BASE64.decode(unescape(value).as_bytes());
    Some(decoded.map_err(|error| Mistake::new("/base64", error.to_string())))
}

fn json_headers(text: &[u8]) -> Result<Vec<Header>, Mistake> {
    match text.first() {
        Some(b'n') => return Ok(Vec::new()),
        Some(b'{') => {}
        Some(_) | None => return Err(Mistake::new("/headers", "they are not an object")),
    }
    let mut headers = Vec::new();
    for (name, value) in members(text) {
        // A name with several values stands for a header that repeats.
        if value.first() == Some(&b'[') {
            for value in elements(value) {
                push_header(&mut headers, json_header(&name, value)?)?;
            }
        } else {
            push_header(&mut headers, json_header(&name, value)?)?;
        }
    }
    Ok(headers)
}

fn json_header(name: &str, value: &[u8]) -> Result<Header, Mistake> {
    let value = match (value.first(), bytes_of(value)) {
        (_, Some(bytes)) => Some(Bytes::from(bytes?)),
        (Some(b'n'), None) => None,
        (Some(b'"'), None) => Some(Bytes::from(unescape(value).into_owned())),
        _ => {
            let reason = format!("header \"{name}\" is neither a string, nor null, nor base64");
            return Err(Mistake::new("/headers", reason));
        }
    };
    Ok(Header {
        key: name.to_owned(),
        value,
    })
}

fn push_header(headers: &mut Vec<Header>, header: Header) -> Result<(), Mistake> {
    if headers.len() == MAX_HEADERS_PER_RECORD {
        let reason = format!("there are more than {MAX_HEADERS_PER_RECORD}");
        return Err(Mistake::new("/headers", reason));
    }
    if header.key == crate::log::idempotency::HEADER {
        return Err(Mistake::new("/headers", "one of the names is reserved"));
    }
    headers.push(header);
    Ok(())
}

fn json_timestamp(text: &[u8]) -> Result<Option<Timestamp>, Mistake> {
    let text = match text.first() {
        Some(b'n') => return Ok(None),
        Some(b'"') => unescape(text),
        Some(_) | None => String::from_utf8_lossy(text),
    };
    parse_time(&text).map(Some).ok_or_else(not_a_time)
}

fn json_partition(text: &[u8]) -> Result<Option<PartitionId>, Mistake> {
    if text == b"null" {
        return Ok(None);
    }
    std::str::from_utf8(text)
        .ok()
        .and_then(|number| number.parse().ok())
        .map(|number| Some(PartitionId(number)))
        .ok_or_else(not_a_partition)
}

/// Milliseconds since 1970, or an ISO 8601 time; without a zone it is UTC.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

fn decode_msgpack(body: &[u8]) -> Result<Vec<RequestRecord<'_>>, Problem> {
    let mut reader = Reader::new(body);
    let malformed = |error: MsgpackError| {
        Problem::new(
            ErrorCode::InvalidRequest,
            format!("the body is not MessagePack: {error}"),
        )
        .at(format!("byte {}", error.at))
    };
    let Token::Map(names) = reader.token().map_err(malformed)? else {
        return Err(no_records());
    };
    let mut records = None;
    for _ in 0..names {
        match reader.token().map_err(malformed)? {
            Token::Str("records") => {}
            Token::Str(other) => return Err(unknown_member("the body", other)),
            _ => return Err(no_records()),
        }
        let Token::Array(length) = reader.token().map_err(malformed)? else {
            return Err(no_records());
        };
        // A record takes at least one byte, whatever length is claimed.
        let mut list = Vec::with_capacity(length.min(body.len() / 16));
        for index in 0..length {
            let record = msgpack_record(&mut reader);
            list.push(record.map_err(|mistake| mistake.of_record(index))?);
        }
        records = Some(list);
    }
    if !reader.is_at_end() {
        return Err(malformed(MsgpackError {
            at: reader.at(),
            reason: "something follows its end",
        }));
    }
    records.ok_or_else(no_records)
}

fn msgpack_record<'a>(reader: &mut Reader<'a>) -> Result<RequestRecord<'a>, Mistake> {
    let Token::Map(names) = reader.token()? else {
        return Err(Mistake::new("", "it is not a map with a \"value\""));
    };
    let mut decoded = RequestRecord::default();
    let mut has_value = false;
    for _ in 0..names {
        let Token::Str(name) = reader.token()? else {
            return Err(Mistake::new("", "one of its keys is not a string"));
        };
        match name {
            "value" => {
                has_value = true;
                decoded.value = msgpack_payload(reader)?;
            }
            "key" => decoded.key = msgpack_payload(reader)?,
            "headers" => decoded.headers = msgpack_headers(reader)?,
            "timestamp" => decoded.timestamp = msgpack_timestamp(reader.token()?)?,
            "partition" => decoded.partition = msgpack_partition(reader.token()?)?,
            other => return Err(Mistake::unknown(other)),
        }
    }
    if has_value {
        Ok(decoded)
    } else {
        Err(Mistake::new("", "it has no \"value\""))
    }
}

fn msgpack_timestamp(token: Token<'_>) -> Result<Option<Timestamp>, Mistake> {
    let time = match token {
        Token::Nil => return Ok(None),
        Token::Unsigned(milliseconds) => i64::try_from(milliseconds).ok().map(Timestamp),
        Token::Signed(milliseconds) => Some(Timestamp(milliseconds)),
        Token::Str(text) => parse_time(text),
        _ => None,
    };
    time.map(Some).ok_or_else(not_a_time)
}

fn msgpack_partition(token: Token<'_>) -> Result<Option<PartitionId>, Mistake> {
    let number = match token {
        Token::Nil => return Ok(None),
        Token::Unsigned(number) => u32::try_from(number).ok(),
        _ => None,
    };
    let number = number.ok_or_else(not_a_partition)?;
    Ok(Some(PartitionId(number)))
}

/// `bin` stands for its bytes, nil for nothing, everything else for its JSON text.
fn msgpack_payload<'a>(reader: &mut Reader<'a>) -> Result<Option<Cow<'a, [u8]>>, Mistake> {
    match reader.clone().token()? {
        Token::Nil => {
            reader.token()?;
            Ok(None)
        }
        Token::Bin(bytes) => {
            reader.token()?;
            Ok(Some(Cow::Borrowed(bytes)))
        }
        _ => {
            let mut text = Vec::new();
            reader.json(0, &mut text)?;
            Ok(Some(Cow::Owned(text)))
        }
    }
}

fn msgpack_headers(reader: &mut Reader<'_>) -> Result<Vec<Header>, Mistake> {
    let names = match reader.token()? {
        Token::Nil => 0,
        Token::Map(names) => names,
        _ => return Err(Mistake::new("/headers", "they are not a map")),
    };
    let mut headers = Vec::new();
    for _ in 0..names {
        let Token::Str(name) = reader.token()? else {
            return Err(Mistake::new("/headers", "a name is not a string"));
        };
        let key = name.to_owned();
        match reader.token()? {
            Token::Array(values) => {
                for _ in 0..values {
                    let value = msgpack_header(reader.token()?)?;
                    let key = key.clone();
                    push_header(&mut headers, Header { key, value })?;
                }
            }
            token => {
                let value = msgpack_header(token)?;
                push_header(&mut headers, Header { key, value })?;
            }
        }
    }
    Ok(headers)
}

fn msgpack_header(token: Token<'_>) -> Result<Option<Bytes>, Mistake> {
    match token {
        Token::Nil => Ok(None),
        Token::Str(text) => Ok(Some(Bytes::copy_from_slice(text.as_bytes()))),
        Token::Bin(bytes) => Ok(Some(Bytes::copy_from_slice(bytes))),
        _ => Err(Mistake::new(
            "/headers",
            "a value is neither str, nor bin, nor nil",
        )),
    }
}

/// What is wrong with a record, and where in it.
#[derive(Debug)]
struct Mistake {
    place: String,
    reason: String,
}

impl Mistake {
    fn new(place: &str, reason: impl Into<String>) -> Mistake {
        Mistake {
            place: place.to_owned(),
            reason: reason.into(),
        }
    }

    fn unknown(name: &str) -> Mistake {
        Mistake::new("", format!("it has an unknown member \"{name}\""))
    }

    fn of_record(self, index: usize) -> Problem {
        Problem::new(
            ErrorCode::InvalidRecord,
            format!("record {index} is not valid: {}", self.reason),
        )
        .at(format!("/records/{index}{}", self.place))
    }
}

impl From<MsgpackError> for Mistake {
    fn from(error: MsgpackError) -> Mistake {
        Mistake::new("", format!("byte {}: {}", error.at, error.reason))
    }
}

fn not_a_time() -> Mistake {
    let reason = "it is neither milliseconds since 1970 nor an ISO 8601 time";
    Mistake::new("/timestamp", reason)
}

fn not_a_partition() -> Mistake {
    Mistake::new("/partition", "it is not the number of a partition")
}

fn no_records() -> Problem {
    Problem::new(
        ErrorCode::InvalidRequest,
        "the body is not an object with a list of \"records\"",
    )
    .hint("Send {\"records\": [{\"value\": …}]}, or one value per line as application/x-ndjson.")
}

fn unknown_member(place: &str, name: &str) -> Problem {
    Problem::new(
        ErrorCode::InvalidRequest,
        format!("{place} has an unknown member \"{name}\""),
    )
    .hint("Send {\"records\": [{\"value\": …}]}.")
}
