//! Column types as users write them, and their Arrow counterparts.
//!
//! A type is spelled as in SQL (`BIGINT`, `TIMESTAMP(3)`, `ARRAY<VARCHAR>`) in job graphs, in answers
//! and between nodes. The counterpart in Arrow is exact: a type read back from its Arrow type is itself.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, Type};
use utoipa::{PartialSchema, ToSchema};

/// The type of a column.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ColumnType {
    Boolean,
    TinyInt,
    SmallInt,
    Int,
    BigInt,
    UnsignedTinyInt,
    UnsignedSmallInt,
    UnsignedInt,
    UnsignedBigInt,
    Float,
    Double,
    Decimal {
        precision: u8,
        scale: i8,
    },
    Varchar,
    Bytes,
    Date,
    Time,
    /// Without zone, with this many digits of a second: 0 to 3 are kept as milliseconds, 4 to 6 as
    /// microseconds, 7 to 9 as nanoseconds.
    Timestamp(u8),
    /// A JSON text of any shape, kept as it is.
    Json,
    Array(Box<ColumnType>),
    Row(Vec<Column>),
    Null,
}

/// A named, typed column.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Column {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: ColumnType,
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub nullable: bool,
}

/// The text is not a column type this system has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypeError {
    #[error("\"{text}\" is not a column type; there are {TYPE_NAMES}")]
    Unknown { text: String },
    /// It has the form of a type, with a number no such type has.
    #[error("\"{text}\": {bound}")]
    OutOfBounds { text: String, bound: &'static str },
}

const DECIMAL_BOUND: &str =
    "a DECIMAL has a precision of 1 to 38 digits, and a scale of at most its precision";
const TIMESTAMP_BOUND: &str = "a TIMESTAMP has at most 9 digits of a second";

const TYPE_NAMES: &str = "BOOLEAN, TINYINT, SMALLINT, INT, BIGINT (each also UNSIGNED), FLOAT, DOUBLE, \
     DECIMAL(p, s), VARCHAR, BYTES, DATE, TIME, TIMESTAMP(p), JSON, ARRAY<type>, ROW<name type, …>";

/// Marks an Arrow text column that holds JSON.
const JSON_EXTENSION: &str = "arrow.json";
const EXTENSION_KEY: &str = "ARROW:extension:name";
/// Kept beside the Arrow type, whose unit does not say how many digits the user asked for.
const PRECISION_KEY: &str = "millstream.precision";

impl Column {
    pub fn new(name: impl Into<String>, kind: ColumnType, nullable: bool) -> Column {
        Column {
            name: name.into(),
            kind,
            nullable,
        }
    }

    pub fn to_field(&self) -> Field {
        let field = Field::new(&self.name, self.kind.to_arrow(), self.nullable);
        match &self.kind {
            ColumnType::Json => {
                field.with_metadata([(EXTENSION_KEY.into(), JSON_EXTENSION.into())].into())
            }
            ColumnType::Timestamp(digits) if !matches!(digits, 3 | 6 | 9) => {
                field.with_metadata([(PRECISION_KEY.into(), digits.to_string())].into())
            }
            _ => field,
        }
    }

    /// Fails with the Arrow type for which users have no name.
    pub fn from_field(field: &Field) -> Result<Column, DataType> {
        let mut kind = ColumnType::from_arrow(field.data_type())?;
        if field
            .metadata()
            .get(EXTENSION_KEY)
            .is_some_and(|name| name == JSON_EXTENSION)
        {
            kind = ColumnType::Json;
        }
        if let (ColumnType::Timestamp(digits), Some(asked)) =
            (&mut kind, field.metadata().get(PRECISION_KEY))
        {
            *digits = asked.parse().unwrap_or(*digits);
        }
        Ok(Column::new(field.name(), kind, field.is_nullable()))
    }
}

/// The Arrow schema of these columns.
pub fn to_arrow_schema(columns: &[Column]) -> SchemaRef {
    Arc::new(Schema::new(
        columns.iter().map(Column::to_field).collect::<Fields>(),
    ))
}

impl ColumnType {
    pub fn to_arrow(&self) -> DataType {
        match self {
            ColumnType::Boolean => DataType::Boolean,
            ColumnType::TinyInt => DataType::Int8,
            ColumnType::SmallInt => DataType::Int16,
            ColumnType::Int => DataType::Int32,
            ColumnType::BigInt => DataType::Int64,
            ColumnType::UnsignedTinyInt => DataType::UInt8,
            ColumnType::UnsignedSmallInt => DataType::UInt16,
            ColumnType::UnsignedInt => DataType::UInt32,
            ColumnType::UnsignedBigInt => DataType::UInt64,
            ColumnType::Float => DataType::Float32,
            ColumnType::Double => DataType::Float64,
            ColumnType::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale),
            ColumnType::Varchar | ColumnType::Json => DataType::Utf8,
            ColumnType::Bytes => DataType::Binary,
            ColumnType::Date => DataType::Date32,
            ColumnType::Time => DataType::Time64(TimeUnit::Nanosecond),
            ColumnType::Timestamp(0..=3) => DataType::Timestamp(TimeUnit::Millisecond, None),
            ColumnType::Timestamp(4..=6) => DataType::Timestamp(TimeUnit::Microsecond, None),
            ColumnType::Timestamp(_) => DataType::Timestamp(TimeUnit::Nanosecond, None),
            ColumnType::Array(item) => {
                DataType::List(Arc::new(Field::new("item", item.to_arrow(), true)))
            }
            ColumnType::Row(columns) => {
                DataType::Struct(columns.iter().map(Column::to_field).collect())
            }
            ColumnType::Null => DataType::Null,
        }
    }

    /// Fails with the Arrow type for which users have no name.
    pub fn from_arrow(arrow: &DataType) -> Result<ColumnType, DataType> {
        Ok(match arrow {
            DataType::Boolean => ColumnType::Boolean,
            DataType::Int8 => ColumnType::TinyInt,
            DataType::Int16 => ColumnType::SmallInt,
            DataType::Int32 => ColumnType::Int,
            DataType::Int64 => ColumnType::BigInt,
            DataType::UInt8 => ColumnType::UnsignedTinyInt,
            DataType::UInt16 => ColumnType::UnsignedSmallInt,
            DataType::UInt32 => ColumnType::UnsignedInt,
            DataType::UInt64 => ColumnType::UnsignedBigInt,
            DataType::Float32 => ColumnType::Float,
            DataType::Float64 => ColumnType::Double,
            DataType::Decimal128(precision, scale) => ColumnType::Decimal {
                precision: *precision,
                scale: *scale,
            },
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => ColumnType::Varchar,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => ColumnType::Bytes,
            DataType::Date32 => ColumnType::Date,
            DataType::Time64(TimeUnit::Nanosecond) => ColumnType::Time,
            DataType::Timestamp(TimeUnit::Second | TimeUnit::Millisecond, _) => {
                ColumnType::Timestamp(3)
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => ColumnType::Timestamp(6),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => ColumnType::Timestamp(9),
            DataType::List(item) | DataType::LargeList(item) => {
                ColumnType::Array(Box::new(ColumnType::from_arrow(item.data_type())?))
            }
            DataType::Struct(fields) => ColumnType::Row(
                fields
                    .iter()
                    .map(|f| Column::from_field(f))
                    .collect::<Result<_, _>>()?,
            ),
            DataType::Null => ColumnType::Null,
            other => return Err(other.clone()),
        })
    }
}

impl PartialSchema for ColumnType {
    fn schema() -> RefOr<utoipa::openapi::Schema> {
        let text = Object::builder().schema_type(Type::String);
        let description = format!("As in SQL: {TYPE_NAMES}.");
        text.description(Some(description)).build().into()
    }
}

impl ToSchema for ColumnType {}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            ColumnType::Boolean => "BOOLEAN",
            ColumnType::TinyInt => "TINYINT",
            ColumnType::SmallInt => "SMALLINT",
            ColumnType::Int => "INT",
            ColumnType::BigInt => "BIGINT",
            ColumnType::UnsignedTinyInt => "TINYINT UNSIGNED",
            ColumnType::UnsignedSmallInt => "SMALLINT UNSIGNED",
            ColumnType::UnsignedInt => "INT UNSIGNED",
            ColumnType::UnsignedBigInt => "BIGINT UNSIGNED",
            ColumnType::Float => "FLOAT",
            ColumnType::Double => "DOUBLE",
            ColumnType::Decimal { precision, scale } => {
                return write!(f, "DECIMAL({precision}, {scale})");
            }
            ColumnType::Varchar => "VARCHAR",
            ColumnType::Bytes => "BYTES",
            ColumnType::Date => "DATE",
            ColumnType::Time => "TIME",
            ColumnType::Timestamp(digits) => return write!(f, "TIMESTAMP({digits})"),
            ColumnType::Json => "JSON",
            ColumnType::Array(item) => return write!(f, "ARRAY<{item}>"),
            ColumnType::Row(columns) => {
                f.write_str("ROW<")?;
                for (i, column) in columns.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    let not_null = if column.nullable { "" } else { " NOT NULL" };
                    write!(
                        f,
                        "{comma}{} {}{not_null}",
                        quoted(&column.name),
                        column.kind
                    )?;
                }
                return f.write_str(">");
            }
            ColumnType::Null => "NULL",
        };
        f.write_str(name)
    }
}

/// A name as it may stand in a type: in double quotes unless it is a plain word.
fn quoted(name: &str) -> String {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit());
    if plain {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

impl FromStr for ColumnType {
    type Err = TypeError;

    fn from_str(text: &str) -> Result<ColumnType, TypeError> {
        let mut parser = TypeParser {
            rest: text,
            bound: None,
        };
        let parsed = parser.column_type(0);
        match (parsed, parser.bound) {
            (Some(parsed), _) if parser.rest.trim().is_empty() => Ok(parsed),
            (None, Some(bound)) => Err(TypeError::OutOfBounds {
                text: text.to_owned(),
                bound,
            }),
            (Some(_) | None, _) => Err(TypeError::Unknown {
                text: text.to_owned(),
            }),
        }
    }
}

/// Reads a type from the front of a text. `None` is any mistake: the caller names the whole text.
struct TypeParser<'a> {
    rest: &'a str,
    /// What a number is beyond, if that is the mistake.
    bound: Option<&'static str>,
}

impl<'a> TypeParser<'a> {
    /// Nesting beyond this is nobody's schema and would recurse without end.
    const MAX_DEPTH: usize = 16;

    fn column_type(&mut self, depth: usize) -> Option<ColumnType> {
        if depth > Self::MAX_DEPTH {
            return None;
        }
        let word = self.word()?.to_ascii_uppercase();
        let signed = match word.as_str() {
            "BOOLEAN" | "BOOL" => ColumnType::Boolean,
            "TINYINT" => return Some(self.integer(ColumnType::TinyInt)),
            "SMALLINT" => return Some(self.integer(ColumnType::SmallInt)),
            "INT" | "INTEGER" => return Some(self.integer(ColumnType::Int)),
            "BIGINT" => return Some(self.integer(ColumnType::BigInt)),
            "FLOAT" | "REAL" => ColumnType::Float,
            "DOUBLE" => {
                self.keyword("PRECISION");
                ColumnType::Double
            }
            "DECIMAL" | "NUMERIC" => return self.decimal(),
            "VARCHAR" | "CHAR" | "STRING" | "TEXT" => {
                self.argument();
                ColumnType::Varchar
            }
            "BYTES" | "BYTEA" | "BINARY" | "VARBINARY" | "BLOB" => {
                self.argument();
                ColumnType::Bytes
            }
            "DATE" => ColumnType::Date,
            "TIME" => ColumnType::Time,
            "TIMESTAMP" | "DATETIME" => {
                let digits = self.argument().unwrap_or(6);
                return self.within(digits <= 9, TIMESTAMP_BOUND, ColumnType::Timestamp(digits));
            }
            "JSON" => ColumnType::Json,
            "NULL" => ColumnType::Null,
            "ARRAY" => {
                self.symbol('<')?;
                let item = self.column_type(depth + 1)?;
                self.symbol('>')?;
                ColumnType::Array(Box::new(item))
            }
            "ROW" => return self.row(depth),
            _ => return None,
        };
        Some(signed)
    }

    fn integer(&mut self, signed: ColumnType) -> ColumnType {
        if !self.keyword("UNSIGNED") {
            return signed;
        }
        match signed {
            ColumnType::TinyInt => ColumnType::UnsignedTinyInt,
            ColumnType::SmallInt => ColumnType::UnsignedSmallInt,
            ColumnType::Int => ColumnType::UnsignedInt,
            _ => ColumnType::UnsignedBigInt,
        }
    }

    fn decimal(&mut self) -> Option<ColumnType> {
        let (mut precision, mut scale) = (38, 10);
        if self.symbol('(').is_some() {
            precision = self.number()?;
            scale = if self.symbol(',').is_some() {
                self.number()?
            } else {
                0
            };
            self.symbol(')')?;
        }
        let valid = (1..=38).contains(&precision) && scale <= precision;
        let scale = i8::try_from(scale).unwrap_or(i8::MAX);
        self.within(
            valid,
            DECIMAL_BOUND,
            ColumnType::Decimal { precision, scale },
        )
    }

    fn within(&mut self, valid: bool, bound: &'static str, kind: ColumnType) -> Option<ColumnType> {
        if !valid {
            self.bound = Some(bound);
        }
        valid.then_some(kind)
    }

    fn row(&mut self, depth: usize) -> Option<ColumnType> {
        self.symbol('<')?;
        let mut columns = Vec::new();
        loop {
            let name = self.name()?;
            let kind = self.column_type(depth + 1)?;
            let nullable = if self.keyword("NOT") {
                !self.keyword("NULL")
            } else {
                true
            };
            columns.push(Column {
                name,
                kind,
                nullable,
            });
            if self.symbol(',').is_none() {
                break;
            }
        }
        self.symbol('>')?;
        Some(ColumnType::Row(columns))
    }

    fn argument(&mut self) -> Option<u8> {
        let before = self.rest;
        let argument = self.symbol('(').and_then(|()| {
            let digits = self.number()?;
            self.symbol(')')?;
            Some(digits)
        });
        if argument.is_none() {
            self.rest = before;
        }
        argument
    }

    fn name(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start();
        let Some(mut quoted) = self.rest.strip_prefix('"') else {
            return self.word().map(str::to_owned);
        };
        let mut name = String::new();
        loop {
            let end = quoted.find('"')?;
            name.push_str(&quoted[..end]);
            quoted = &quoted[end + 1..];
            let Some(rest) = quoted.strip_prefix('"') else {
                break;
            };
            name.push('"');
            quoted = rest;
        }
        self.rest = quoted;
        Some(name)
    }

    fn word(&mut self) -> Option<&'a str> {
        self.take(|c| c.is_ascii_alphanumeric() || c == '_')
    }

    fn number(&mut self) -> Option<u8> {
        let digits = self.take(|c| c.is_ascii_digit())?;
        // Only how long a text may be is ever larger, and that is not kept.
        Some(digits.parse().unwrap_or(u8::MAX))
    }

    fn keyword(&mut self, keyword: &str) -> bool {
        let before = self.rest;
        let found = self
            .word()
            .is_some_and(|word| word.eq_ignore_ascii_case(keyword));
        if !found {
            self.rest = before;
        }
        found
    }

    fn symbol(&mut self, symbol: char) -> Option<()> {
        self.rest = self.rest.trim_start().strip_prefix(symbol)?;
        Some(())
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> Option<&'a str> {
        let text = self.rest.trim_start();
        let end = text.find(|c| !wanted(c)).unwrap_or(text.len());
        let (taken, rest) = text.split_at(end);
        if taken.is_empty() {
            return None;
        }
        self.rest = rest;
        Some(taken)
    }
}

impl Serialize for ColumnType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ColumnType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ColumnType, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_reads_back_as_it_is_written_and_from_its_arrow_counterpart() {
        for text in [
            "BOOLEAN",
            "TINYINT",
            "BIGINT",
            "BIGINT UNSIGNED",
            "DOUBLE",
            "DECIMAL(10, 2)",
            "VARCHAR",
            "BYTES",
            "DATE",
            "TIME",
            "TIMESTAMP(3)",
            "TIMESTAMP(9)",
            "ARRAY<ARRAY<INT>>",
            "ROW<start TIMESTAMP(3) NOT NULL, \"a \"\"b\"\" c\" VARCHAR>",
        ] {
            let kind: ColumnType = text.parse().unwrap();
            assert_eq!(kind.to_string(), text);
            let column = Column::new("c", kind, true);
            assert_eq!(Column::from_field(&column.to_field()), Ok(column));
        }
    }

    #[test]
    fn what_a_user_asked_for_survives_where_arrow_has_fewer_types() {
        for kind in [
            ColumnType::Json,
            ColumnType::Timestamp(0),
            ColumnType::Timestamp(5),
        ] {
            let column = Column::new("c", kind, false);
            assert_eq!(Column::from_field(&column.to_field()), Ok(column));
        }
    }

    #[test]
    fn other_engines_spellings_are_understood_and_nonsense_is_refused() {
        for (text, kind) in [
            ("integer", ColumnType::Int),
            ("bigint unsigned", ColumnType::UnsignedBigInt),
            ("varchar(20)", ColumnType::Varchar),
            ("double precision", ColumnType::Double),
            ("timestamp", ColumnType::Timestamp(6)),
            (
                "numeric(5)",
                ColumnType::Decimal {
                    precision: 5,
                    scale: 0,
                },
            ),
        ] {
            assert_eq!(text.parse::<ColumnType>(), Ok(kind));
        }
        let deep = format!("{}INT{}", "ARRAY<".repeat(1000), ">".repeat(1000));
        for bad in [
            "",
            "BIGINTT",
            "TIMESTAMP(10)",
            "DECIMAL(39)",
            "ARRAY<INT",
            "INT INT",
            &deep,
        ] {
            assert!(bad.parse::<ColumnType>().is_err(), "{bad:?} was accepted");
        }
    }
}
