//! Typed expressions → the SQL text a job graph and its tasks carry.
//!
//! The text is what a user reads and what a worker evaluates, so it must mean the same when it is read
//! back: each text is read, typed and compared before it is used. The plainest text that passes is
//! taken: without conversions the reader would add by itself, then with them, then with every literal's
//! type spelled out.

use common::error::{ErrorCode, Problem};
use common::plan::expression::Expression;
use common::plan::operator::AggregateCall;
use common::schema::ColumnType;
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchemaRef, ScalarValue};
use datafusion::logical_expr::expr::{
    AggregateFunctionParams, Between, BinaryExpr, Case, Cast, InList, Like, ScalarFunction,
};
use datafusion::logical_expr::{Expr, Operator};

use super::expressions::Functions;
use super::problems::plan_problem;

/// Writes an expression over these columns as text that reads back as the same expression.
pub(super) fn write(
    functions: &Functions,
    expr: &Expr,
    columns: &DFSchemaRef,
) -> Result<Expression, Problem> {
    if let Expr::Column(column) = expr {
        return Ok(Expression::column(&column.name));
    }
    let wanted = functions
        .canonical(expr.clone(), columns)
        .map_err(|error| plan_problem(&error, &[]))?;
    let same = like_a_reader(&wanted);
    let mut refused = None;
    for (source, style) in [
        (expr, Style::Bare),
        (expr, Style::Casts),
        (&wanted, Style::Exact),
    ] {
        let text = match (Writer { style }).top(source) {
            Ok(text) => Expression(text),
            Err(Unwritable(what)) => {
                refused = Some(what);
                continue;
            }
        };
        match functions.compile(&text, columns) {
            Ok(typed) if like_a_reader(&typed.expr) == same => return Ok(text),
            Ok(_) => {}
            // A call the functions themselves refuse stays refused however it is written.
            Err(problem) if problem.code == ErrorCode::UnsupportedFeature => return Err(problem),
            Err(_) => {}
        }
    }
    let what = refused.unwrap_or_else(|| wanted.to_string());
    Err(Problem::new(
        ErrorCode::UnsupportedFeature,
        format!("the expression {what} has no form that a job graph can carry"),
    )
    .hint("Write it in another way, for example with explicit casts."))
}

/// Writes an aggregate function's call. `name` is the column its result becomes.
pub(super) fn write_aggregate(
    functions: &Functions,
    function: &str,
    params: &AggregateFunctionParams,
    name: String,
    columns: &DFSchemaRef,
) -> Result<AggregateCall, Problem> {
    let is_count_of_rows = function == "count"
        && !params.distinct
        && matches!(params.args.as_slice(), [Expr::Literal(value, _)] if !value.is_null());
    let args = match is_count_of_rows {
        true => &[],
        false => params.args.as_slice(),
    };
    let filter = match &params.filter {
        Some(filter) => Some(write(functions, filter, columns)?),
        None => None,
    };
    let call = |args: Vec<Expression>| AggregateCall {
        function: function.to_owned(),
        args,
        distinct: params.distinct,
        filter: filter.clone(),
        name: name.clone(),
    };
    let exact = args
        .iter()
        .map(|arg| write(functions, arg, columns))
        .collect::<Result<Vec<_>, _>>()?;
    let exact = call(exact);
    let wanted = functions.compile_aggregate(&exact, columns, false)?;
    // The function converts its arguments itself where it can: `sum(quantity)` needs no cast.
    let bare = args
        .iter()
        .map(|arg| write(functions, without_cast(arg), columns))
        .collect::<Result<Vec<_>, _>>()?;
    let bare = call(bare);
    match functions.compile_aggregate(&bare, columns, false) {
        Ok(typed) if like_a_reader(&typed.expr) == like_a_reader(&wanted.expr) => Ok(bare),
        _ => Ok(exact),
    }
}

fn without_cast(expr: &Expr) -> &Expr {
    match expr {
        Expr::Cast(Cast { expr, .. }) => expr,
        other => other,
    }
}

/// The expression with differences taken away that no reader could keep: names of casts' results, and
/// text as views, which edges do not carry.
fn like_a_reader(expr: &Expr) -> Expr {
    let plain = |data_type: &DataType| match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        other => other.clone(),
    };
    let transformed = expr.clone().transform_up(|node| {
        Ok(match node {
            Expr::Alias(alias) => Transformed::yes(*alias.expr),
            Expr::Column(column) => {
                Transformed::yes(Expr::Column(Column::new_unqualified(column.name)))
            }
            Expr::Literal(value, _) => {
                let kind = plain(&value.data_type());
                let value = value.cast_to(&kind).unwrap_or(value);
                Transformed::yes(Expr::Literal(value, None))
            }
            Expr::Cast(cast) => {
                let kind = plain(cast.field.data_type());
                Transformed::yes(Expr::Cast(Cast::new(cast.expr, kind)))
            }
            other => Transformed::no(other),
        })
    });
    transformed.expect("nothing in the rewriting fails").data
}

/// How much is spelled out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Conversions inside are left to the reader.
    Bare,
    /// Conversions are written, literals are plain.
    Casts,
    /// Literals have their types.
    Exact,
}

struct Writer {
    style: Style,
}

/// What cannot be written.
struct Unwritable(String);

/// A text and how tightly it holds together.
struct Piece {
    text: String,
    rank: Rank,
}

/// From loose to tight. An operand that is looser than its operator needs brackets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Takes in all that follows it.
    Open,
    Or,
    And,
    Not,
    Comparison,
    Sum,
    Product,
    Atom,
}

impl Piece {
    fn atom(text: impl Into<String>) -> Piece {
        Piece {
            text: text.into(),
            rank: Rank::Atom,
        }
    }

    fn new(rank: Rank, text: String) -> Piece {
        Piece { text, rank }
    }

    /// The text, in brackets if it is looser than `rank`.
    fn at_least(self, rank: Rank) -> String {
        match self.rank < rank {
            true => format!("({})", self.text),
            false => self.text,
        }
    }
}

impl Writer {
    /// The whole expression. A cast that is outermost says what type the column has, so it stays.
    fn top(&self, expr: &Expr) -> Result<String, Unwritable> {
        match expr {
            Expr::Alias(alias) => self.top(&alias.expr),
            Expr::Cast(Cast { expr, field }) => Ok(cast(
                "CAST",
                "arrow_cast",
                &self.top(expr)?,
                field.data_type(),
            )),
            _ => Ok(self.piece(expr)?.text),
        }
    }

    fn piece(&self, expr: &Expr) -> Result<Piece, Unwritable> {
        Ok(match expr {
            Expr::Alias(alias) => self.piece(&alias.expr)?,
            Expr::Column(column) => Piece::atom(Expression::column(&column.name).0),
            Expr::Literal(value, _) => Piece::atom(self.literal(value)?),
            Expr::Cast(Cast { expr, .. }) if self.style == Style::Bare => self.piece(expr)?,
            Expr::Cast(Cast { expr, field }) => Piece::atom(cast(
                "CAST",
                "arrow_cast",
                &self.piece(expr)?.text,
                field.data_type(),
            )),
            Expr::TryCast(inner) => Piece::atom(cast(
                "TRY_CAST",
                "arrow_try_cast",
                &self.piece(&inner.expr)?.text,
                inner.field.data_type(),
            )),
            Expr::BinaryExpr(binary) => self.binary(binary)?,
            Expr::Not(inner) => Piece::new(Rank::Not, format!("NOT {}", self.tight(inner)?)),
            Expr::Negative(inner) => {
                let operand = self.tight(inner)?;
                let operand = match operand.starts_with('-') {
                    true => format!("({operand})"),
                    false => operand,
                };
                Piece::new(Rank::Comparison, format!("-{operand}"))
            }
            Expr::IsNull(inner) => self.is(inner, "NULL")?,
            Expr::IsNotNull(inner) => self.is(inner, "NOT NULL")?,
            Expr::IsTrue(inner) => self.is(inner, "TRUE")?,
            Expr::IsNotTrue(inner) => self.is(inner, "NOT TRUE")?,
            Expr::IsFalse(inner) => self.is(inner, "FALSE")?,
            Expr::IsNotFalse(inner) => self.is(inner, "NOT FALSE")?,
            Expr::IsUnknown(inner) => self.is(inner, "UNKNOWN")?,
            Expr::IsNotUnknown(inner) => self.is(inner, "NOT UNKNOWN")?,
            Expr::Like(like) => {
                let word = match like.case_insensitive {
                    true => "ILIKE",
                    false => "LIKE",
                };
                self.like(like, word)?
            }
            Expr::SimilarTo(like) => self.like(like, "SIMILAR TO")?,
            Expr::Between(Between {
                expr,
                negated,
                low,
                high,
            }) => Piece::new(
                Rank::Comparison,
                format!(
                    "{} {}BETWEEN {} AND {}",
                    self.tight(expr)?,
                    not(*negated),
                    self.tight(low)?,
                    self.tight(high)?
                ),
            ),
            Expr::InList(InList {
                expr,
                list,
                negated,
            }) => Piece::new(
                Rank::Comparison,
                format!(
                    "{} {}IN ({})",
                    self.tight(expr)?,
                    not(*negated),
                    self.list(list)?
                ),
            ),
            Expr::Case(case) => Piece::atom(self.case(case)?),
            Expr::ScalarFunction(call) => Piece::atom(self.call(call)?),
            other => return Err(Unwritable(other.to_string())),
        })
    }

    fn tight(&self, expr: &Expr) -> Result<String, Unwritable> {
        Ok(self.piece(expr)?.at_least(Rank::Atom))
    }

    fn is(&self, inner: &Expr, what: &str) -> Result<Piece, Unwritable> {
        let text = format!("{} IS {what}", self.tight(inner)?);
        Ok(Piece::new(Rank::Comparison, text))
    }

    fn like(&self, like: &Like, word: &str) -> Result<Piece, Unwritable> {
        let mut text = format!(
            "{} {}{word} {}",
            self.tight(&like.expr)?,
            not(like.negated),
            self.tight(&like.pattern)?
        );
        if let Some(escape) = like.escape_char {
            text.push_str(&format!(" ESCAPE {}", quoted(&escape.to_string())));
        }
        Ok(Piece::new(Rank::Comparison, text))
    }

    fn list(&self, items: &[Expr]) -> Result<String, Unwritable> {
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            texts.push(self.piece(item)?.text);
        }
        Ok(texts.join(", "))
    }

    fn case(&self, case: &Case) -> Result<String, Unwritable> {
        let mut text = "CASE".to_owned();
        if let Some(operand) = &case.expr {
            text.push_str(&format!(" {}", self.tight(operand)?));
        }
        for (when, then) in &case.when_then_expr {
            text.push_str(&format!(
                " WHEN {} THEN {}",
                self.piece(when)?.text,
                self.piece(then)?.text
            ));
        }
        if let Some(otherwise) = &case.else_expr {
            text.push_str(&format!(" ELSE {}", self.piece(otherwise)?.text));
        }
        text.push_str(" END");
        Ok(text)
    }

    fn call(&self, call: &ScalarFunction) -> Result<String, Unwritable> {
        if call.name() == "get_field"
            && let Some((Expr::Column(column), fields)) = call.args.split_first()
            && let Some(path) = field_path(fields)
        {
            return Ok(format!("{}{path}", Expression::column(&column.name)));
        }
        Ok(format!("{}({})", call.name(), self.list(&call.args)?))
    }

    fn binary(&self, binary: &BinaryExpr) -> Result<Piece, Unwritable> {
        let BinaryExpr { left, op, right } = binary;
        let word = match op {
            Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::Plus
            | Operator::Minus
            | Operator::Multiply
            | Operator::Divide
            | Operator::Modulo
            | Operator::And
            | Operator::Or
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
            | Operator::RegexMatch
            | Operator::RegexIMatch
            | Operator::RegexNotMatch
            | Operator::RegexNotIMatch
            | Operator::BitwiseAnd
            | Operator::BitwiseOr
            | Operator::BitwiseShiftLeft
            | Operator::BitwiseShiftRight
            | Operator::StringConcat => op.to_string(),
            Operator::BitwiseXor => "#".to_owned(),
            other => return Err(Unwritable(format!("with the operator {other}"))),
        };
        let (left, right) = (self.piece(left)?, self.piece(right)?);
        // Left operands of the same rank need no brackets: operators group from the left.
        let (rank, left, right) = match op {
            Operator::Or => (Rank::Or, bracket_mixed(left), right.at_least(Rank::Not)),
            Operator::And => (
                Rank::And,
                left.at_least(Rank::And),
                right.at_least(Rank::Not),
            ),
            Operator::Plus | Operator::Minus => (
                Rank::Sum,
                left.at_least(Rank::Sum),
                right.at_least(Rank::Product),
            ),
            Operator::Multiply | Operator::Divide | Operator::Modulo => (
                Rank::Product,
                left.at_least(Rank::Product),
                right.at_least(Rank::Atom),
            ),
            Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq => (
                Rank::Comparison,
                left.at_least(Rank::Sum),
                right.at_least(Rank::Sum),
            ),
            // `a IS DISTINCT FROM b OR c` is read as `a IS DISTINCT FROM (b OR c)`.
            Operator::IsDistinctFrom | Operator::IsNotDistinctFrom => (
                Rank::Open,
                left.at_least(Rank::Atom),
                right.at_least(Rank::Atom),
            ),
            _ => (
                Rank::Comparison,
                left.at_least(Rank::Atom),
                right.at_least(Rank::Atom),
            ),
        };
        Ok(Piece::new(rank, format!("{left} {word} {right}")))
    }

    fn literal(&self, value: &ScalarValue) -> Result<String, Unwritable> {
        let kind = value.data_type();
        if value.is_null() {
            return Ok(match (self.style, &kind) {
                (Style::Exact, DataType::Null) | (Style::Bare | Style::Casts, _) => {
                    "NULL".to_owned()
                }
                (Style::Exact, _) => cast("CAST", "arrow_cast", "NULL", &kind),
            });
        }
        let plain = match value {
            ScalarValue::Boolean(Some(true)) => return Ok("TRUE".to_owned()),
            ScalarValue::Boolean(Some(false)) => return Ok("FALSE".to_owned()),
            ScalarValue::Utf8(Some(text)) => return Ok(quoted(text)),
            ScalarValue::Int64(Some(number)) if *number != i64::MIN => {
                return Ok(number.to_string());
            }
            ScalarValue::Float64(Some(number)) if number.is_finite() => {
                return Ok(format!("{number:?}"));
            }
            ScalarValue::Binary(Some(bytes)) => {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                return Ok(format!("X'{hex}'"));
            }
            ScalarValue::IntervalMonthDayNano(Some(interval)) => {
                return Ok(format!(
                    "INTERVAL '{}'",
                    interval_words(interval.months, interval.days, interval.nanoseconds)
                ));
            }
            ScalarValue::List(_) | ScalarValue::Struct(_) | ScalarValue::LargeList(_) => {
                return self.nested_literal(value);
            }
            ScalarValue::Int8(_)
            | ScalarValue::Int16(_)
            | ScalarValue::Int32(_)
            | ScalarValue::UInt8(_)
            | ScalarValue::UInt16(_)
            | ScalarValue::UInt32(_)
            | ScalarValue::UInt64(_) => value.to_string(),
            ScalarValue::Utf8View(Some(text)) | ScalarValue::LargeUtf8(Some(text)) => quoted(text),
            other => {
                let text = other
                    .cast_to(&DataType::Utf8)
                    .map_err(|_| Unwritable(format!("with the constant {other}")))?;
                let ScalarValue::Utf8(Some(text)) = text else {
                    return Err(Unwritable(format!("with the constant {other}")));
                };
                return Ok(cast("CAST", "arrow_cast", &quoted(&text), &kind));
            }
        };
        match self.style {
            Style::Bare | Style::Casts => Ok(plain),
            Style::Exact => Ok(cast("CAST", "arrow_cast", &plain, &kind)),
        }
    }

    fn nested_literal(&self, value: &ScalarValue) -> Result<String, Unwritable> {
        let item_of = |array: &dyn datafusion::arrow::array::Array, i: usize| {
            let item = ScalarValue::try_from_array(array, i)
                .map_err(|error| Unwritable(error.to_string()))?;
            self.literal(&item)
        };
        match value {
            ScalarValue::List(list) => {
                let items = list.value(0);
                let texts = (0..items.len())
                    .map(|i| item_of(&items, i))
                    .collect::<Result<Vec<_>, _>>()?;
                Ok(format!("make_array({})", texts.join(", ")))
            }
            ScalarValue::Struct(fields) => {
                let mut texts = Vec::new();
                for (field, column) in fields.fields().iter().zip(fields.columns()) {
                    texts.push(quoted(field.name()));
                    texts.push(item_of(column, 0)?);
                }
                Ok(format!("named_struct({})", texts.join(", ")))
            }
            other => Err(Unwritable(format!("with the constant {other}"))),
        }
    }
}

/// AND inside OR is put in brackets, though it needs none, because people misread it; what is open needs them.
fn bracket_mixed(piece: Piece) -> String {
    match piece.rank {
        Rank::And | Rank::Open => format!("({})", piece.text),
        _ => piece.text,
    }
}

fn not(negated: bool) -> &'static str {
    if negated { "NOT " } else { "" }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// `.a.b` for constant field names.
fn field_path(fields: &[Expr]) -> Option<String> {
    let mut path = String::new();
    for field in fields {
        let Expr::Literal(ScalarValue::Utf8(Some(name)), _) = field else {
            return None;
        };
        path.push('.');
        path.push_str(&Expression::column(name).0);
    }
    (!path.is_empty()).then_some(path)
}

fn cast(word: &str, function: &str, inner: &str, kind: &DataType) -> String {
    match sql_type(kind) {
        Some(name) => format!("{word}({inner} AS {name})"),
        None => format!("{function}({inner}, {})", quoted(&kind.to_string())),
    }
}

/// What the SQL reader calls an Arrow type, where it has a name for exactly that one.
fn sql_type(kind: &DataType) -> Option<String> {
    let name = match kind {
        DataType::Timestamp(TimeUnit::Millisecond, None) => "TIMESTAMP(3)",
        DataType::Timestamp(TimeUnit::Microsecond, None) => "TIMESTAMP(6)",
        DataType::Timestamp(TimeUnit::Nanosecond, None) => "TIMESTAMP(9)",
        DataType::Binary => "BYTEA",
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float32
        | DataType::Float64
        | DataType::Decimal128(..)
        | DataType::Utf8
        | DataType::Date32
        | DataType::Time64(TimeUnit::Nanosecond) => {
            return ColumnType::from_arrow(kind)
                .ok()
                .map(|kind| kind.to_string());
        }
        _ => return None,
    };
    Some(name.to_owned())
}

/// An interval's parts in the largest units that divide them.
fn interval_words(months: i32, days: i32, nanoseconds: i64) -> String {
    let mut words = Vec::new();
    if months != 0 {
        words.push(format!("{months} months"));
    }
    if days != 0 {
        words.push(format!("{days} days"));
    }
    if nanoseconds != 0 || words.is_empty() {
        let (size, unit) = [
            (3_600_000_000_000, "hours"),
            (60_000_000_000, "minutes"),
            (1_000_000_000, "seconds"),
            (1_000_000, "milliseconds"),
            (1_000, "microseconds"),
        ]
        .into_iter()
        .find(|(size, _)| nanoseconds % size == 0)
        .unwrap_or((1, "nanoseconds"));
        words.push(format!("{} {unit}", nanoseconds / size));
    }
    words.join(" ")
}
