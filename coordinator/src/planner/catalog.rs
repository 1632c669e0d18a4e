//! The tables of one SQL text, and their options as sources and sinks.

use std::collections::BTreeMap;

use common::error::{ErrorCode, Problem};
use common::plan::connector::{GeneratorKind, SinkSpec, SourceSpec, WatermarkSpec};
use common::schema::{Column, ColumnType};
use common::time::{Span, Timestamp};
use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr as SqlExpr, Ident};
use serde_json::{Map, Value};

use super::expressions::Functions;
use super::parse::{Name, Table, TableOption};
use super::problems::nearest;
use super::tokens::{Place, syntax};
use super::windows::constant_span;

/// A declared table.
#[derive(Debug)]
pub(super) struct Declared {
    pub(super) table: Table,
    /// All columns: the declared ones, or the generator's own.
    pub(super) columns: Vec<Column>,
    pub(super) watermark: Option<WatermarkSpec>,
    /// How late a row of it may be, counted by windows over it.
    pub(super) allowed_lateness: Span,
}

impl Declared {
    pub(super) fn new(table: Table, functions: &Functions) -> Result<Declared, Problem> {
        let mut columns = table.columns.clone();
        if columns.is_empty()
            && let Some(kind) = generator_kind(&table)
        {
            columns = kind.columns();
        }
        for name in &table.primary_key {
            check_column(&columns, name)?;
        }
        let watermark = watermark(&table, &columns, functions)?;
        let allowed_lateness = match option(&table, "allowed_lateness") {
            Some(option) => span(option)?,
            None => Span::default(),
        };
        Ok(Declared {
            table,
            columns,
            watermark,
            allowed_lateness,
        })
    }

    /// Where in the text that stands of which a path into the table's source or sink speaks: the option, else
    /// the table's name.
    pub(super) fn place_of(&self, path: &str) -> Place {
        let header = path.strip_prefix("headers/");
        let name = match header {
            Some(header) => format!("headers.{}", unescaped(header)),
            None => path.split('/').next().unwrap_or_default().to_owned(),
        };
        option(&self.table, &name).map_or(self.table.name.at, |option| option.name.at)
    }

    /// A problem at a path into the table's source or sink, at its place in the text.
    pub(super) fn placed(&self, mut problem: Problem) -> Problem {
        if let Some(path) = problem.at.as_deref().and_then(|at| at.strip_prefix('/')) {
            problem.at = Some(self.place_of(path).to_string());
        }
        problem
    }

    /// Why the table cannot be read, if it says it is a sink; the other way round for `sink`.
    fn check_type(&self, wanted: &str) -> Result<(), Problem> {
        match option(&self.table, "type") {
            Some(option) if option.value != wanted => {
                let verb = if wanted == "source" {
                    "read"
                } else {
                    "written"
                };
                let detail = format!(
                    "\"{}\" is {verb} here, but says type = '{}'",
                    self.table.name.value, option.value
                );
                Err(Problem::new(ErrorCode::SqlPlan, detail).at(option.name.at.to_string()))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn source(&self) -> Result<SourceSpec, Problem> {
        self.check_type("source")?;
        if self.columns.is_empty() {
            return Err(Problem::new(
                ErrorCode::SqlPlan,
                format!(
                    "\"{}\" is read, but declares no columns",
                    self.table.name.value
                ),
            )
            .at(self.table.name.at.to_string())
            .hint("List its columns and their types after its name."));
        }
        let mut fields = fields(&self.table, SOURCES, "source")?;
        fields.insert("schema".to_owned(), json(&self.columns));
        if let Some(watermark) = &self.watermark {
            fields.insert("watermark".to_owned(), json(watermark));
        }
        read_spec(&self.table, fields)
    }

    /// `input` names what the sink reads.
    pub(super) fn sink(&self, input: &str) -> Result<SinkSpec, Problem> {
        self.check_type("sink")?;
        let mut fields = fields(&self.table, SINKS, "sink")?;
        fields.insert("input".to_owned(), input.into());
        let key: Vec<&str> = self
            .table
            .primary_key
            .iter()
            .map(|name| name.value.as_str())
            .collect();
        if !key.is_empty() && fields.get("connector") == Some(&"topic".into()) {
            fields.entry("key").or_insert_with(|| key.into());
        }
        read_spec(&self.table, fields)
    }
}

/// A part of a JSON pointer as a name.
pub(super) fn unescaped(part: &str) -> String {
    part.replace("~1", "/").replace("~0", "~")
}

fn json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("specs are plain data")
}

fn read_spec<T: serde::de::DeserializeOwned>(
    table: &Table,
    fields: Map<String, Value>,
) -> Result<T, Problem> {
    serde_json::from_value(Value::Object(fields)).map_err(|error| {
        let text = error.to_string();
        // The reader names the value or the field it stopped at.
        let missing = text.starts_with("missing field");
        let culprit = table.options.iter().filter(|_| !missing).find(|option| {
            text.contains(&format!("`{}`", option.value))
                || text.contains(&format!("\"{}\"", option.value))
                || text.contains(&format!("`{}`", option.name.value))
        });
        let (name, at) = match culprit {
            Some(option) => (
                format!("the option \"{}\"", option.name.value),
                option.name.at,
            ),
            None => (
                format!("the options of \"{}\"", table.name.value),
                table.name.at,
            ),
        };
        let problem =
            Problem::new(ErrorCode::SqlPlan, format!("{name}: {text}")).at(at.to_string());
        let mut words = text.split('`').skip(1).step_by(2);
        let first = words.next().unwrap_or_default();
        if missing {
            return problem.hint(format!("Add {first} = '…' to WITH (…)."));
        }
        let known: Vec<&str> = words.collect();
        match nearest(first, known.iter().copied()) {
            Some(near) => problem.hint(format!("Did you mean '{near}'?")),
            None if known.is_empty() => problem,
            None => problem.hint(format!("There are: {}.", known.join(", "))),
        }
    })
}

/// How an option's text becomes a value of its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    /// Milliseconds since 1970, or ISO 8601.
    Time,
    Span,
    /// `a, b`
    Names,
    /// `partition:0,offset:42;partition:1,offset:7`
    Offsets,
    /// `headers.Name = value`
    Header,
    /// Understood elsewhere.
    Consumed,
}

type Options = &'static [(&'static str, Kind)];

/// Options every table may have, whatever its connector; `connector` picks the rest.
const COMMON: Options = &[("connector", Kind::Text), ("type", Kind::Consumed)];

const SOURCES: &[(&str, Options)] = &[
    (
        "topic",
        &[
            ("topic", Kind::Text),
            ("format", Kind::Text),
            ("event_time_field", Kind::Consumed),
            ("allowed_lateness", Kind::Consumed),
            ("scan.startup.mode", Kind::Text),
            ("scan.startup.timestamp", Kind::Time),
            ("scan.startup.offsets", Kind::Offsets),
            ("scan.bounded.mode", Kind::Text),
            ("isolation", Kind::Text),
            ("idle_timeout", Kind::Span),
            ("bad_records", Kind::Text),
        ],
    ),
    (
        "files",
        &[
            ("path", Kind::Text),
            ("format", Kind::Text),
            ("event_time_field", Kind::Consumed),
            ("allowed_lateness", Kind::Consumed),
            ("scan.watch", Kind::Span),
            ("idle_timeout", Kind::Span),
            ("bad_records", Kind::Text),
        ],
    ),
    (
        "generator",
        &[
            ("generator", Kind::Text),
            ("event_time_field", Kind::Consumed),
            ("allowed_lateness", Kind::Consumed),
            ("rows", Kind::Number),
            ("rate", Kind::Number),
            ("seed", Kind::Number),
            ("splits", Kind::Number),
            ("idle_timeout", Kind::Span),
        ],
    ),
];

const SINKS: &[(&str, Options)] = &[
    (
        "topic",
        &[
            ("topic", Kind::Text),
            ("format", Kind::Text),
            ("key", Kind::Names),
            ("partitioner", Kind::Text),
            ("delivery", Kind::Text),
        ],
    ),
    ("files", &[("path", Kind::Text), ("format", Kind::Text)]),
    (
        "webhook",
        &[
            ("url", Kind::Text),
            ("headers.", Kind::Header),
            ("max_rows", Kind::Number),
        ],
    ),
    ("blackhole", &[]),
    ("console", &[]),
];

/// The options of a table as fields of its spec.
fn fields(
    table: &Table,
    connectors: &[(&str, Options)],
    role: &str,
) -> Result<Map<String, Value>, Problem> {
    let Some(connector) = option(table, "connector") else {
        return Err(Problem::new(
            ErrorCode::SqlPlan,
            format!("\"{}\" does not say its connector", table.name.value),
        )
        .at(table.name.at.to_string())
        .hint("Write WITH (connector = 'topic', …)."));
    };
    // One file is a path that names a file.
    let name = match connector.value.as_str() {
        "single_file" => "files",
        other => other,
    };
    let Some((_, options)) = connectors.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = connectors.iter().map(|(name, _)| *name).collect();
        let problem = Problem::new(
            ErrorCode::SqlPlan,
            format!("there is no {role} connector '{}'", connector.value),
        )
        .at(connector.name.at.to_string());
        return Err(match nearest(name, names.iter().copied()) {
            Some(near) => problem.hint(format!("Did you mean '{near}'?")),
            None => problem.hint(format!("There are: {}.", names.join(", "))),
        });
    };
    let mut fields = Map::new();
    let mut headers = Map::new();
    for given in &table.options {
        let known = options
            .iter()
            .chain(COMMON)
            .find(|(known, _)| *known == given.name.value)
            .or_else(|| {
                options
                    .iter()
                    .find(|(known, _)| known.ends_with('.') && given.name.value.starts_with(known))
            });
        let Some((known, kind)) = known else {
            return Err(unknown_option(given, name, role, options));
        };
        match kind {
            Kind::Consumed => {}
            Kind::Header => {
                let header = given.name.value[known.len()..].to_owned();
                headers.insert(header, given.value.clone().into());
            }
            _ => {
                fields.insert(given.name.value.clone(), value(given, *kind)?);
            }
        }
    }
    if !headers.is_empty() {
        fields.insert("headers".to_owned(), headers.into());
    }
    fields.insert("connector".to_owned(), name.into());
    Ok(fields)
}

fn unknown_option(given: &TableOption, connector: &str, role: &str, options: Options) -> Problem {
    let names: Vec<&str> = options
        .iter()
        .chain(COMMON)
        .map(|(name, _)| *name)
        .collect();
    let problem = Problem::new(
        ErrorCode::SqlPlan,
        format!(
            "a {connector} {role} has no option \"{}\"",
            given.name.value
        ),
    )
    .at(given.name.at.to_string());
    match nearest(&given.name.value, names.iter().copied()) {
        Some(near) => problem.hint(format!("Did you mean \"{near}\"?")),
        None => problem.hint(format!("There are: {}.", names.join(", "))),
    }
}

fn value(given: &TableOption, kind: Kind) -> Result<Value, Problem> {
    let wrong = |what: &str| {
        let detail = format!(
            "the option \"{}\" is {what}, not '{}'",
            given.name.value, given.value
        );
        Problem::new(ErrorCode::SqlPlan, detail).at(given.name.at.to_string())
    };
    Ok(match kind {
        Kind::Text | Kind::Header | Kind::Consumed => given.value.clone().into(),
        Kind::Number => match (given.value.parse::<u64>(), given.value.parse::<i64>()) {
            (Ok(number), _) => number.into(),
            (_, Ok(number)) => number.into(),
            _ => return Err(wrong("a number")),
        },
        Kind::Time => {
            let time: Result<Timestamp, _> = given.value.parse();
            time.map_err(|_| {
                wrong("a time")
                    .hint("Write milliseconds since 1970, or for example '2026-01-31T12:00:00Z'.")
            })?
            .0
            .into()
        }
        Kind::Span => span(given)?.to_string().into(),
        Kind::Names => given
            .value
            .split(',')
            .map(|name| Value::from(name.trim()))
            .collect(),
        Kind::Offsets => {
            let offsets = offsets(&given.value)
                .ok_or_else(|| wrong("of the form 'partition:0,offset:42;partition:1,offset:7'"))?;
            json(&offsets)
        }
    })
}

fn offsets(text: &str) -> Option<BTreeMap<u32, i64>> {
    text.split(';')
        .map(|part| {
            let (partition, offset) = part.trim().split_once(',')?;
            let partition = partition.trim().strip_prefix("partition:")?;
            let offset = offset.trim().strip_prefix("offset:")?;
            Some((partition.parse().ok()?, offset.parse().ok()?))
        })
        .collect()
}

fn span(given: &TableOption) -> Result<Span, Problem> {
    given
        .value
        .parse()
        .map_err(|error: common::time::SpanError| {
            let detail = format!("the option \"{}\": {error}", given.name.value);
            Problem::new(ErrorCode::SqlPlan, detail).at(given.name.at.to_string())
        })
}

fn option<'a>(table: &'a Table, name: &str) -> Option<&'a TableOption> {
    table
        .options
        .iter()
        .find(|option| option.name.value == name)
}

fn generator_kind(table: &Table) -> Option<GeneratorKind> {
    if option(table, "connector")?.value != "generator" {
        return None;
    }
    let name = option(table, "generator")?.value.clone();
    serde_json::from_value(Value::String(name)).ok()
}

/// The watermark a table declares: `WATERMARK FOR ts AS ts - INTERVAL '5' SECOND`, `WATERMARK FOR ts`, or
/// `event_time_field = 'ts'`.
fn watermark(
    table: &Table,
    columns: &[Column],
    functions: &Functions,
) -> Result<Option<WatermarkSpec>, Problem> {
    let (name, delay) = match (&table.watermark, option(table, "event_time_field")) {
        (Some(watermark), _) => {
            let delay = match &watermark.expression {
                Some(expression) => delay(&watermark.column, expression, functions)?,
                None => Span::default(),
            };
            (watermark.column.clone(), delay)
        }
        (None, Some(option)) => {
            let name = Name {
                value: option.value.clone(),
                at: option.name.at,
            };
            (name, Span::default())
        }
        (None, None) => return Ok(None),
    };
    check_column(columns, &name)?;
    let column = columns
        .iter()
        .find(|column| column.name == name.value)
        .expect("the column was just found");
    if !matches!(column.kind, ColumnType::Timestamp(_)) {
        return Err(Problem::new(
            ErrorCode::SqlPlan,
            format!(
                "the watermark column \"{}\" is of type {}; event time is a TIMESTAMP",
                name.value, column.kind
            ),
        )
        .at(name.at.to_string())
        .hint("Declare the column as TIMESTAMP(3)."));
    }
    Ok(Some(WatermarkSpec {
        column: name.value,
        delay,
    }))
}

/// How far `ts - INTERVAL '5' SECOND` stays behind `ts`.
fn delay(column: &Name, expression: &SqlExpr, functions: &Functions) -> Result<Span, Problem> {
    let is_column = |expr: &SqlExpr| match expr {
        SqlExpr::Identifier(Ident {
            value, quote_style, ..
        }) => match quote_style {
            Some(_) => *value == column.value,
            None => value.eq_ignore_ascii_case(&column.value),
        },
        _ => false,
    };
    match expression {
        expr if is_column(expr) => Ok(Span::default()),
        SqlExpr::BinaryOp {
            left,
            op: BinaryOperator::Minus,
            right,
        } if is_column(left) => {
            let interval = functions.constant(right)?;
            constant_span(functions, interval).map_err(|detail| syntax(column.at, detail))
        }
        other => Err(syntax(
            column.at,
            format!(
                "the watermark of \"{}\" is {other}; it must be the column less a constant interval",
                column.value
            ),
        )
        .hint(format!(
            "Write WATERMARK FOR {0} AS {0} - INTERVAL '5' SECOND.",
            column.value
        ))),
    }
}

fn check_column(columns: &[Column], name: &Name) -> Result<(), Problem> {
    if columns.iter().any(|column| column.name == name.value) {
        return Ok(());
    }
    let problem = Problem::new(
        ErrorCode::SqlPlan,
        format!("there is no column \"{}\"", name.value),
    )
    .at(name.at.to_string());
    let names = || columns.iter().map(|column| column.name.as_str());
    Err(match nearest(&name.value, names()) {
        Some(near) => problem.hint(format!("Did you mean \"{near}\"?")),
        None => problem.hint(format!(
            "There are: {}.",
            names().collect::<Vec<_>>().join(", ")
        )),
    })
}
