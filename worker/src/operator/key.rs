//! The keys of an operator: from expressions to the bytes its tables have, and back to what users wrote.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray, TimestampMillisecondArray, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::DataType;
use base64::Engine;
use common::error::{ErrorCode, Problem};
use common::plan::expression::NamedExpression;
use common::schema::Column;
use serde_json::{Map, Value};

use super::OperatorError;
use super::expression::{CompiledExpression, Expressions};
use super::row_json::object;
use crate::keyed_state::codec::{EncodedKeys, KeyCodec};

/// The key columns of one operator; there may be none.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    expressions: Vec<CompiledExpression>,
    columns: Vec<Column>,
    codec: KeyCodec,
}

impl Keys {
    /// `output`: the columns the keys become.
    pub(super) fn compile(
        expressions: &Expressions,
        keys: &[NamedExpression],
        output: &[Column],
    ) -> Result<Keys, Problem> {
        assert_eq!(keys.len(), output.len(), "every key becomes a column");
        let compiled = keys
            .iter()
            .zip(output)
            .map(|(key, column)| expressions.compile_as(&key.expr, &column.kind))
            .collect::<Result<Vec<_>, _>>()?;
        let types = compiled.iter().map(|key| key.data_type().clone()).collect();
        let codec = KeyCodec::new(types)
            .map_err(|error| Problem::new(ErrorCode::SqlPlan, error.to_string()))?;
        Ok(Keys {
            expressions: compiled,
            columns: output.to_vec(),
            codec,
        })
    }

    pub(super) fn expressions(&self) -> &[CompiledExpression] {
        &self.expressions
    }

    pub(super) fn codec(&self) -> &KeyCodec {
        &self.codec
    }

    /// Keys of a table as columns.
    pub(super) fn decode<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k [u8]>,
    ) -> Result<Vec<ArrayRef>, OperatorError> {
        self.codec.decode(keys).map_err(|error| OperatorError {
            reason: format!("a key in a table: {error}"),
            fatal: true,
        })
    }

    /// A key of a table by its columns' names.
    pub(super) fn describe(&self, key: &[u8]) -> Option<Map<String, Value>> {
        let columns = self.codec.decode([key]).ok()?;
        let names = self.columns.iter().map(|column| column.name.as_str());
        Some(object(
            names.zip(columns.iter().map(|column| column.as_ref())),
            0,
        ))
    }

    /// The bytes of a key written as JSON: a bare value for one column, else an array of their values.
    pub(super) fn encode_json(&self, key: &Value) -> Option<Vec<u8>> {
        let values = match key {
            Value::Array(values) => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        if values.len() != self.columns.len() {
            return None;
        }
        let columns = values
            .iter()
            .zip(self.codec.types())
            .map(|(value, kind)| key_column(value, kind))
            .collect::<Option<Vec<_>>>()?;
        let mut keys = EncodedKeys::default();
        self.codec.encode(&columns, 1, &mut keys);
        Some(keys.key(0).to_vec())
    }
}

/// A JSON value as a column of one row, read as a source would read it.
fn key_column(value: &Value, kind: &DataType) -> Option<ArrayRef> {
    let text = match (value, kind) {
        (Value::Null, _) => return Some(new_null_array(kind, 1)),
        (Value::Array(_) | Value::Object(_), _) => return None,
        (Value::String(text), DataType::Binary) => {
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(text)
                .ok()?;
            return Some(Arc::new(arrow::array::BinaryArray::from_vec(vec![&bytes])));
        }
        (Value::Number(milliseconds), DataType::Timestamp(..)) => {
            let times = TimestampMillisecondArray::from(vec![milliseconds.as_i64()?]);
            return exactly(&times, kind);
        }
        (Value::String(text), _) => text.clone(),
        // A number or a truth value does not name a key of another sort.
        (Value::Bool(value), DataType::Boolean) => value.to_string(),
        (Value::Number(number), _) if kind.is_numeric() => number.to_string(),
        (Value::Bool(_) | Value::Number(_), _) => return None,
    };
    exactly(&StringArray::from(vec![text]), kind)
}

fn exactly(values: &dyn arrow::array::Array, kind: &DataType) -> Option<ArrayRef> {
    let strict = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    cast_with_options(values, kind, &strict).ok()
}
