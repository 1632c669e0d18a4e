//! Windows in SQL: `TUMBLE` and `HOP` in FROM and in GROUP BY, as one node of the logical plan.
//!
//! `FROM TUMBLE(bids, ts, INTERVAL '10' SECOND)` gives the rows of `bids` with `window_start` and
//! `window_end`. `GROUP BY tumble(INTERVAL '10' SECOND)` is turned into the same, with the window as a
//! ROW of `start` and `end`. Neither is ever computed as such: the aggregate over it is one operator.

use std::fmt;
use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::plan::window::WindowSpec;
use common::time::Span;
use datafusion::arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use datafusion::common::{Column, DFSchema, DFSchemaRef, DataFusionError, ExprSchema, ScalarValue};
use datafusion::logical_expr::planner::{
    PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning,
};
use datafusion::logical_expr::{
    ColumnarValue, Expr, Extension, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, TypeSignature, UserDefinedLogicalNodeCore, Volatility,
};
use datafusion::sql::sqlparser::ast::Spanned;
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, FunctionArg, FunctionArgExpr, ObjectName, TableFactor,
};

use super::expressions::Functions;
use super::tokens::{Place, unsupported};

pub(super) const WINDOW_START: &str = "window_start";
pub(super) const WINDOW_END: &str = "window_end";

/// A window function, by the words users know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd)]
enum Kind {
    Tumble,
    Hop,
    Session,
    Cumulate,
}

impl Kind {
    const ALL: [(&'static str, Kind); 4] = [
        ("tumble", Kind::Tumble),
        ("hop", Kind::Hop),
        ("session", Kind::Session),
        ("cumulate", Kind::Cumulate),
    ];

    fn named(name: &str) -> Option<Kind> {
        Kind::ALL
            .into_iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(name))
            .map(|(_, kind)| kind)
    }

    fn word(self) -> &'static str {
        match self {
            Kind::Tumble => "TUMBLE",
            Kind::Hop => "HOP",
            Kind::Session => "SESSION",
            Kind::Cumulate => "CUMULATE",
        }
    }

    /// What its intervals mean, in order; the last may be left out.
    fn intervals(self) -> &'static [&'static str] {
        match self {
            Kind::Tumble => &["size", "offset"],
            Kind::Hop => &["slide", "size", "offset"],
            Kind::Session | Kind::Cumulate => &[],
        }
    }

    fn refuse_unplanned(self, at: Option<Place>) -> Result<(), Problem> {
        match self {
            Kind::Tumble | Kind::Hop => Ok(()),
            Kind::Session | Kind::Cumulate => Err(unsupported(
                at,
                format!("{} windows are not supported yet", self.word()),
            )
            .hint("There are TUMBLE and HOP.")),
        }
    }

    fn spec(self, intervals: &[Span]) -> WindowSpec {
        match (self, intervals) {
            (Kind::Hop, [slide, size, rest @ ..]) => WindowSpec::Hopping {
                size: *size,
                slide: *slide,
                offset: rest.first().copied().unwrap_or_default(),
            },
            (_, [size, rest @ ..]) => WindowSpec::Tumbling {
                size: *size,
                offset: rest.first().copied().unwrap_or_default(),
            },
            (_, []) => unreachable!("the number of intervals was checked"),
        }
    }
}

pub(super) fn is_window_function(name: &str) -> bool {
    Kind::named(name).is_some()
}

/// The rows of its input, each with the bounds of its windows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct WindowNode {
    pub(super) input: LogicalPlan,
    pub(super) time: Column,
    pub(super) size: Span,
    pub(super) slide: Option<Span>,
    pub(super) offset: Span,
    schema: DFSchemaRef,
}

impl WindowNode {
    /// Fails if the input has no such column, or already has columns of the bounds' names.
    pub(super) fn new(
        input: LogicalPlan,
        time: Column,
        spec: &WindowSpec,
    ) -> Result<WindowNode, DataFusionError> {
        let slide = match spec {
            WindowSpec::Tumbling { .. } => None,
            WindowSpec::Hopping { slide, .. } => Some(*slide),
        };
        let (size, offset) = (spec.size(), spec.offset());
        let schema = Self::schema_over(input.schema(), &time)?;
        Ok(WindowNode {
            input,
            time,
            size,
            slide,
            offset,
            schema,
        })
    }

    fn schema_over(input: &DFSchema, time: &Column) -> Result<DFSchemaRef, DataFusionError> {
        let kind = input.field_from_column(time)?.data_type().clone();
        let mut fields: Vec<_> = input
            .iter()
            .map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field)))
            .collect();
        for name in [WINDOW_START, WINDOW_END] {
            if fields.iter().any(|(_, field)| field.name() == name) {
                let detail =
                    format!("a window adds a column \"{name}\", and its rows already have one");
                let hint = format!("Give that one another name before: SELECT {name} AS ….");
                return Err(external(
                    Problem::new(ErrorCode::SqlPlan, detail).hint(hint),
                ));
            }
            fields.push((None, Arc::new(Field::new(name, kind.clone(), false))));
        }
        let schema = DFSchema::new_with_metadata(fields, input.metadata().clone())?;
        Ok(Arc::new(schema))
    }

    pub(super) fn spec(&self) -> WindowSpec {
        match self.slide {
            None => WindowSpec::Tumbling {
                size: self.size,
                offset: self.offset,
            },
            Some(slide) => WindowSpec::Hopping {
                size: self.size,
                slide,
                offset: self.offset,
            },
        }
    }

    pub(super) fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension {
            node: Arc::new(self),
        })
    }
}

impl PartialOrd for WindowNode {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        let key = |node: &WindowNode| (node.size, node.slide, node.offset);
        match key(self).partial_cmp(&key(other)) {
            Some(std::cmp::Ordering::Equal) => self.input.partial_cmp(&other.input),
            different => different,
        }
    }
}

impl UserDefinedLogicalNodeCore for WindowNode {
    fn name(&self) -> &str {
        "Window"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![Expr::Column(self.time.clone())]
    }

    /// A condition on a window's bounds is one on windows, not on rows.
    fn prevent_predicate_push_down_columns(&self) -> std::collections::HashSet<String> {
        [WINDOW_START, WINDOW_END].map(str::to_owned).into()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window: {} by {:?}", self.time, self.spec())
    }

    fn with_exprs_and_inputs(
        &self,
        exprs: Vec<Expr>,
        inputs: Vec<LogicalPlan>,
    ) -> Result<Self, DataFusionError> {
        let (Ok([Expr::Column(time)]), Ok([input])) = (
            <[Expr; 1]>::try_from(exprs),
            <[LogicalPlan; 1]>::try_from(inputs),
        ) else {
            return Err(DataFusionError::Internal(
                "a window has one input and one time column".to_owned(),
            ));
        };
        WindowNode::new(input, time, &self.spec())
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let time = self.input.schema().index_of_column(&self.time).ok()?;
        let inputs = self.input.schema().fields().len();
        let mut needed: Vec<usize> = output_columns
            .iter()
            .copied()
            .filter(|index| *index < inputs)
            .chain([time])
            .collect();
        needed.sort_unstable();
        needed.dedup();
        Some(vec![needed])
    }
}

/// Plans `TUMBLE(…)` and `HOP(…)` in FROM.
#[derive(Debug)]
pub(super) struct WindowsInFrom {
    pub(super) functions: Arc<Functions>,
}

impl RelationPlanner for WindowsInFrom {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning, DataFusionError> {
        let place = span_start(&relation);
        let (name, args, alias) = match relation {
            TableFactor::Table {
                name,
                args: Some(args),
                alias,
                ..
            } => (name, args.args, alias),
            other => return Ok(RelationPlanning::Original(Box::new(other))),
        };
        let Some(kind) = window_named(&name) else {
            let detail = format!("the table function {name} is not supported");
            let problem = unsupported(place, detail).hint("There are TUMBLE and HOP.");
            return Err(external(problem));
        };
        kind.refuse_unplanned(place).map_err(external)?;
        let call = Call { kind, place };
        let mut args = call.in_order(args).map_err(external)?.into_iter();
        let (Some(data), Some(time)) = (args.next(), args.next()) else {
            return Err(external(call.wrong_arguments()));
        };
        let input = context.plan(call.table(data).map_err(external)?)?;
        let Expr::Column(time) = context.sql_to_expr(time, input.schema())? else {
            let detail = "the second argument of a window is a time column";
            return Err(external(call.problem(detail)));
        };
        let mut intervals = Vec::new();
        for interval in args {
            intervals.push(context.sql_to_expr(interval, &DFSchema::empty())?);
        }
        let spec = call.spec(&self.functions, intervals).map_err(external)?;
        call.check_time(&time, input.schema())?;
        let plan = WindowNode::new(input, time, &spec)?.into_plan();
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(
            plan, alias,
        ))))
    }
}

/// One use of a window function.
struct Call {
    kind: Kind,
    place: Option<Place>,
}

impl Call {
    fn problem(&self, detail: impl Into<String>) -> Problem {
        let problem = Problem::new(ErrorCode::SqlPlan, detail);
        match self.place {
            Some(place) => problem.at(place.to_string()),
            None => problem,
        }
    }

    fn wrong_arguments(&self) -> Problem {
        let intervals = self.kind.intervals().join(", ");
        let detail = format!(
            "{} takes a table, a time column and the intervals {intervals}",
            self.kind.word()
        );
        self.problem(detail)
            .hint("For example TUMBLE(bids, ts, INTERVAL '10' SECOND); the offset may be left out.")
    }

    /// The arguments by position; Flink's names (`DATA => …`) are put in place.
    fn in_order(&self, args: Vec<FunctionArg>) -> Result<Vec<SqlExpr>, Problem> {
        let mut ordered: Vec<Option<SqlExpr>> = Vec::new();
        for (i, arg) in args.into_iter().enumerate() {
            let (position, arg) = match arg {
                FunctionArg::Unnamed(arg) => (i, arg),
                FunctionArg::Named { name, arg, .. } => (self.position(&name.value)?, arg),
                FunctionArg::ExprNamed { name, arg, .. } => {
                    (self.position(&name.to_string())?, arg)
                }
            };
            let FunctionArgExpr::Expr(expr) = arg else {
                return Err(self.wrong_arguments());
            };
            if ordered.len() <= position {
                ordered.resize(position + 1, None);
            }
            if ordered[position].replace(expr).is_some() {
                return Err(self.wrong_arguments());
            }
        }
        let given: Option<Vec<SqlExpr>> = ordered.into_iter().collect();
        given.ok_or_else(|| self.wrong_arguments())
    }

    fn position(&self, name: &str) -> Result<usize, Problem> {
        let names = ["data", "timecol"].iter().chain(self.kind.intervals());
        names
            .into_iter()
            .position(|known| known.eq_ignore_ascii_case(name))
            .ok_or_else(|| self.wrong_arguments())
    }

    /// The first argument: the name of a table, or a query in brackets.
    fn table(&self, data: SqlExpr) -> Result<TableFactor, Problem> {
        let name = match data {
            SqlExpr::Identifier(name) => ObjectName::from(vec![name]),
            SqlExpr::CompoundIdentifier(names) => ObjectName::from(names),
            SqlExpr::Subquery(subquery) => {
                return Ok(TableFactor::Derived {
                    lateral: false,
                    subquery,
                    alias: None,
                    sample: None,
                });
            }
            _ => return Err(self.wrong_arguments()),
        };
        Ok(TableFactor::Table {
            name,
            alias: None,
            args: None,
            with_hints: Vec::new(),
            version: None,
            with_ordinality: false,
            partitions: Vec::new(),
            json_path: None,
            sample: None,
            index_hints: Vec::new(),
        })
    }

    fn spec(&self, functions: &Functions, intervals: Vec<Expr>) -> Result<WindowSpec, Problem> {
        let most = self.kind.intervals().len();
        if intervals.len() + 1 < most || intervals.len() > most {
            return Err(self.wrong_arguments());
        }
        let mut spans = Vec::with_capacity(intervals.len());
        for interval in intervals {
            spans.push(constant_span(functions, interval).map_err(|detail| self.problem(detail))?);
        }
        Ok(self.kind.spec(&spans))
    }

    fn check_time(&self, time: &Column, schema: &DFSchema) -> Result<(), DataFusionError> {
        let kind = schema.field_from_column(time)?.data_type();
        if matches!(kind, DataType::Timestamp(_, None)) {
            return Ok(());
        }
        let detail = format!("\"{}\" is no timestamp, its type is {kind}", time.name);
        Err(external(self.problem(detail).hint(
            "Windows are over the event-time column: declare one with WATERMARK FOR.",
        )))
    }
}

/// A constant interval of fixed length, in milliseconds.
pub(super) fn constant_span(functions: &Functions, interval: Expr) -> Result<Span, String> {
    let empty = Arc::new(DFSchema::empty());
    let shown = interval.to_string();
    let folded = functions
        .canonical(interval, &empty)
        .map_err(|error| error.strip_backtrace())?;
    let Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(parts)), _) = folded else {
        return Err(format!(
            "{shown} is no constant interval; write for example INTERVAL '10' SECOND"
        ));
    };
    if parts.months != 0 {
        return Err("months have no fixed length; write the interval in days".to_owned());
    }
    let milliseconds = i64::from(parts.days) * 86_400_000 + parts.nanoseconds / 1_000_000;
    if parts.nanoseconds % 1_000_000 != 0 {
        return Err("an interval of event time has whole milliseconds".to_owned());
    }
    u64::try_from(milliseconds)
        .map(Span)
        .map_err(|_| "an interval of event time is not negative".to_owned())
}

/// A window that an expression in GROUP BY stands for.
pub(super) fn grouped_window(
    functions: &Functions,
    expr: &Expr,
    place: Option<Place>,
) -> Option<Result<WindowSpec, Problem>> {
    let Expr::ScalarFunction(function) = expr else {
        return None;
    };
    let kind = Kind::named(function.name())?;
    let planned = kind.refuse_unplanned(place);
    Some(planned.and_then(|()| Call { kind, place }.spec(functions, function.args.clone())))
}

/// The window functions as GROUP BY knows them. They are replaced before anything computes them.
pub(super) fn group_functions() -> Vec<ScalarUDF> {
    Kind::ALL
        .into_iter()
        .map(|(name, _)| ScalarUDF::new_from_impl(GroupWindow::new(name)))
        .collect()
}

/// `tumble(INTERVAL …)` and its kin: a ROW of `start` and `end`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct GroupWindow {
    name: &'static str,
    signature: Signature,
}

impl GroupWindow {
    fn new(name: &'static str) -> GroupWindow {
        // Volatile, so that nothing takes a call without columns for a constant.
        let signature = Signature::one_of(
            vec![TypeSignature::VariadicAny, TypeSignature::Nullary],
            Volatility::Volatile,
        );
        GroupWindow { name, signature }
    }
}

impl ScalarUDFImpl for GroupWindow {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The bounds take the time column's type once it is known.
    fn return_type(&self, _args: &[DataType]) -> Result<DataType, DataFusionError> {
        let bound = DataType::Timestamp(TimeUnit::Nanosecond, None);
        Ok(DataType::Struct(Fields::from(vec![
            Field::new("start", bound.clone(), false),
            Field::new("end", bound, false),
        ])))
    }

    fn invoke_with_args(
        &self,
        _args: ScalarFunctionArgs,
    ) -> Result<ColumnarValue, DataFusionError> {
        Err(DataFusionError::Internal(format!(
            "{} is never computed",
            self.name
        )))
    }
}

fn window_named(name: &ObjectName) -> Option<Kind> {
    match name.0.as_slice() {
        [part] => Kind::named(&part.as_ident()?.value),
        _ => None,
    }
}

fn span_start(relation: &TableFactor) -> Option<Place> {
    let start = relation.span().start;
    (start.line > 0).then(|| start.into())
}

fn external(problem: Problem) -> DataFusionError {
    DataFusionError::External(Box::new(problem))
}
