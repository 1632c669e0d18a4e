//! JSON objects, one per record, into rows.
//!
//! A record is read once, left to right. Of a field that no column needs only the form is checked; of one
//! that is needed the place is remembered, and once the whole record has proved to be JSON, its values go
//! into their columns. Records of one source have mostly the same fields in the same order, so each
//! field's name is first compared with the one that stood there in the record before.

use std::collections::BTreeMap;

use common::schema::Column;

use super::BadRecord;
use super::columns::ColumnBuilder;
use super::json_scan::{JsonError, Scanner, Token, TokenKind, string_value};
use super::row_builder::RowBuilder;
use super::value::Misfit;

/// Decodes one JSON object per record.
#[derive(Debug)]
pub(crate) struct JsonDecoder {
    fields: JsonFields,
}

impl JsonDecoder {
    pub(crate) fn new(columns: &[Column]) -> JsonDecoder {
        JsonDecoder {
            fields: JsonFields::new(columns),
        }
    }

    /// Appends the record's row.
    #[inline]
    pub(crate) fn push(&mut self, record: &[u8], rows: &mut RowBuilder) -> Result<(), BadRecord> {
        let text = utf8(record)?;
        let mut scanner = Scanner::new(text);
        scanner.skip_whitespace();
        let scanned = self.fields.scan(&mut scanner).and_then(|()| scanner.end());
        scanned.map_err(|error| no_object(text).unwrap_or_else(|| error.into()))?;
        rows.push_row(|columns| self.fields.push_into(text, columns))
    }
}

/// What is said of a text that is JSON, but no object.
#[cold]
fn no_object(text: &str) -> Option<BadRecord> {
    let mut scanner = Scanner::new(text);
    scanner.skip_whitespace();
    let value = scanner.value().ok()?;
    scanner.end().ok()?;
    let found = match value.kind {
        TokenKind::Null => "null",
        TokenKind::True | TokenKind::False => "true or false",
        TokenKind::Number => "a number",
        TokenKind::PlainString | TokenKind::EscapedString => "a text",
        TokenKind::Array => "an array",
        TokenKind::Object => return None,
    };
    Some(BadRecord::new(format!(
        "a row is a JSON object, and this is {found}"
    )))
}

pub(crate) fn utf8(record: &[u8]) -> Result<&str, BadRecord> {
    std::str::from_utf8(record)
        .map_err(|error| BadRecord::new(format!("not UTF-8 at byte {}", error.valid_up_to())))
}

/// The fields of an object that columns need, found in one scan.
#[derive(Debug)]
pub(crate) struct JsonFields {
    columns: BTreeMap<String, usize>,
    /// Per column, where its value lies in the object scanned last.
    values: Vec<Option<Token>>,
    /// The names in the object scanned last, as they were written, and whose they are.
    shape: Vec<Guess>,
}

#[derive(Debug)]
struct Guess {
    /// With its quotes.
    raw_name: Box<[u8]>,
    column: Option<usize>,
}

impl JsonFields {
    /// Objects with more fields than this are searched by name.
    const MAX_GUESSES: usize = 256;
    const MAX_GUESSED_NAME: usize = 128;

    pub(crate) fn new(columns: &[Column]) -> JsonFields {
        let names = columns.iter().enumerate();
        JsonFields {
            columns: names.map(|(i, column)| (column.name.clone(), i)).collect(),
            values: vec![None; columns.len()],
            shape: Vec::new(),
        }
    }

    /// Reads an object to its end. Of several fields of one name the last counts.
    #[inline]
    pub(crate) fn scan(&mut self, scanner: &mut Scanner<'_>) -> Result<(), JsonError> {
        self.values.fill(None);
        scanner.open(b'{')?;
        let mut more = scanner.first(b'}');
        let mut position = 0;
        while more {
            let column = match self.shape.get(position) {
                Some(guess) if scanner.take_all(&guess.raw_name) => guess.column,
                _ => self.find(scanner, position)?,
            };
            scanner.colon()?;
            let value = scanner.value()?;
            if let Some(column) = column {
                self.values[column] = Some(value);
            }
            more = scanner.more(b'}')?;
            position += 1;
        }
        Ok(())
    }

    /// Reads a name that was not guessed, and guesses it the next time.
    #[cold]
    fn find(
        &mut self,
        scanner: &mut Scanner<'_>,
        position: usize,
    ) -> Result<Option<usize>, JsonError> {
        let token = scanner.string()?;
        let raw = scanner.text(token);
        let name = string_value(
            raw,
            Token {
                start: 0,
                end: raw.len(),
                ..token
            },
        );
        let column = name.and_then(|name| self.columns.get(&*name).copied());
        let guess = Guess {
            raw_name: raw.as_bytes().into(),
            column,
        };
        if raw.len() <= Self::MAX_GUESSED_NAME {
            if let Some(wrong) = self.shape.get_mut(position) {
                *wrong = guess;
            } else if position == self.shape.len() && position < Self::MAX_GUESSES {
                self.shape.push(guess);
            }
        }
        Ok(column)
    }

    /// Appends the values found by `scan` in this text, one per column.
    #[inline]
    pub(crate) fn push_into(
        &self,
        text: &str,
        columns: &mut [ColumnBuilder],
    ) -> Result<(), Misfit> {
        for (column, value) in columns.iter_mut().zip(&self.values) {
            column.push_json(text, *value)?;
        }
        Ok(())
    }

    /// Where the value of a column lies in the object scanned last.
    pub(crate) fn value(&self, column: usize) -> Option<Token> {
        self.values[column]
    }
}
