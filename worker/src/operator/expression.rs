//! SQL expression text becomes a DataFusion expression over Arrow rows.
//!
//! The same text over the same columns is the same expression in every process: read in DataFusion's
//! default dialect (unquoted names in lower case), its types coerced, its constants folded. A row on
//! which an expression fails is one that failed alone; it never takes other rows of its batch with it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, new_empty_array, new_null_array};
use arrow::compute::{CastOptions, can_cast_types, cast_with_options, concat};
use arrow::datatypes::{DataType, SchemaRef};
use common::error::{ErrorCode, Problem};
use common::limits::MAX_PARSER_DEPTH;
use common::plan::expression::Expression;
use common::schema::{Column, ColumnType, to_arrow_schema};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, DataFusionError};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, Operator as SqlOperator, Volatility};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::{AggregateFunctionExpr, LoweredAggregateBuilder};
use datafusion::physical_expr::expressions::BinaryExpr;
use datafusion::prelude::SessionConfig;

use super::OperatorError;
use super::correlation::corr;

/// Compiles expressions over the columns of one input.
pub struct Expressions {
    session: SessionState,
    columns: DFSchema,
    schema: SchemaRef,
}

/// An expression ready to be evaluated over batches of the columns it was compiled for.
#[derive(Clone, Debug)]
pub struct CompiledExpression {
    /// As a user reads it.
    text: String,
    physical: Arc<dyn PhysicalExpr>,
    /// What DataFusion computes.
    computed: DataType,
    /// What `evaluate` gives.
    wanted: DataType,
    nullable: bool,
}

/// An aggregate function with what it is called on.
pub(super) struct CompiledAggregate {
    pub(super) function: Arc<AggregateFunctionExpr>,
    pub(super) arguments: Vec<CompiledExpression>,
    pub(super) filter: Option<CompiledExpression>,
}

/// An expression's values over a batch.
#[derive(Debug)]
pub struct Evaluated {
    /// One per row; null where the expression failed.
    pub values: ArrayRef,
    /// The rows it failed on, in order.
    pub failures: Vec<Failure>,
}

/// A row that an expression failed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub row: usize,
    pub detail: String,
}

impl std::fmt::Debug for Expressions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Expressions")
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

impl Expressions {
    pub fn new(columns: &[Column]) -> Result<Expressions, Problem> {
        let schema = to_arrow_schema(columns);
        let columns = DFSchema::try_from(Arc::clone(&schema))
            .map_err(|error| Problem::new(ErrorCode::InvalidGraph, said(&error)))?;
        // Text has one Arrow type here; DataFusion would make views of it when it casts to VARCHAR.
        let config = SessionConfig::new()
            .with_target_partitions(1)
            .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false)
            // What the planner has read must be read here too.
            .set_usize("datafusion.sql_parser.recursion_limit", MAX_PARSER_DEPTH);
        let mut session = SessionStateBuilder::new()
            .with_config(config)
            .with_default_features();
        // The last of a name counts.
        let functions = session.aggregate_functions().get_or_insert_default();
        functions.push(Arc::new(corr()));
        let session = session.build();
        Ok(Expressions {
            session,
            columns,
            schema,
        })
    }

    /// Types and compiles a text. What it gives has a type users have a name for.
    pub fn compile(&self, expression: &Expression) -> Result<CompiledExpression, Problem> {
        let text = &expression.0;
        let coerced = self.coerced(text)?;
        let simplified = self
            .simplifier()
            .simplify(coerced)
            .map_err(|error| not_planned(text, &error))?;
        let compiled = self.lower(text, &simplified)?;
        let wanted = named_type(&compiled.computed).ok_or_else(|| {
            let detail = format!("\"{text}\" has the type {}", compiled.computed);
            Problem::new(ErrorCode::SqlPlan, detail)
                .hint("No column can have this type: cast it to one that a column can have.")
        })?;
        Ok(CompiledExpression { wanted, ..compiled })
    }

    /// Compiles a text that a plan says is of this type.
    pub fn compile_as(
        &self,
        expression: &Expression,
        kind: &ColumnType,
    ) -> Result<CompiledExpression, Problem> {
        let compiled = self.compile(expression)?;
        let wanted = kind.to_arrow();
        let same = compiled.wanted.equals_datatype(&wanted) || compiled.wanted == DataType::Null;
        if !same || !can_cast_types(&compiled.computed, &wanted) {
            let detail = format!(
                "the plan has {kind} for \"{}\", which gives {}",
                expression.0, compiled.computed
            );
            return Err(Problem::new(ErrorCode::SqlPlan, detail));
        }
        Ok(CompiledExpression { wanted, ..compiled })
    }

    /// Compiles a condition: what it gives is true, false or null.
    pub fn compile_predicate(
        &self,
        expression: &Expression,
    ) -> Result<CompiledExpression, Problem> {
        condition(self.compile(expression)?)
    }

    /// Types and compiles a call of an aggregate function, with its filter.
    pub(super) fn compile_aggregate(&self, text: &str) -> Result<CompiledAggregate, Problem> {
        let failed = |error: DataFusionError| not_planned(text, &error);
        let coerced = self.coerced(text)?;
        let lowered = LoweredAggregateBuilder::new(
            &coerced,
            &self.columns,
            &self.schema,
            self.session.execution_props(),
            &PhysicalPlanningContext::default(),
        )
        .build()
        .map_err(failed)?;
        let arguments = lowered
            .aggregate
            .expressions()
            .into_iter()
            .map(|argument| self.checked(text, argument))
            .collect::<Result<_, _>>()?;
        let filter = match lowered.filter {
            Some(filter) => Some(condition(self.checked(text, filter)?)?),
            None => None,
        };
        Ok(CompiledAggregate {
            function: lowered.aggregate,
            arguments,
            filter,
        })
    }

    /// A text as a logical expression whose types fit, also an aggregate's.
    fn coerced(&self, text: &str) -> Result<Expr, Problem> {
        let parsed = self
            .session
            .create_logical_expr(text, &self.columns)
            .map_err(|error| not_planned(text, &error))?;
        refuse_moment_of_start(text, &parsed)?;
        self.simplifier()
            .coerce(parsed, &self.columns)
            .map_err(|error| not_planned(text, &error))
    }

    /// A logical expression as DataFusion evaluates it, without the type conversion of a column.
    fn lower(&self, text: &str, expr: &Expr) -> Result<CompiledExpression, Problem> {
        let failed = |error: DataFusionError| not_planned(text, &error);
        let physical = self
            .session
            .create_physical_expr(expr.clone(), &self.columns)
            .map_err(failed)?;
        self.checked(text, physical)
    }

    fn checked(
        &self,
        text: &str,
        physical: Arc<dyn PhysicalExpr>,
    ) -> Result<CompiledExpression, Problem> {
        let failed = |error: DataFusionError| not_planned(text, &error);
        let physical = refusing_overflow(physical).map_err(failed)?;
        let computed = physical.data_type(&self.schema).map_err(failed)?;
        Ok(CompiledExpression {
            text: text.to_owned(),
            nullable: physical.nullable(&self.schema).map_err(failed)?,
            wanted: computed.clone(),
            computed,
            physical,
        })
    }

    fn simplifier(&self) -> ExprSimplifier {
        let context = SimplifyContext::builder()
            .with_schema(Arc::new(self.columns.clone()))
            .with_config_options(Arc::clone(self.session.config_options()))
            .build();
        ExprSimplifier::new(context)
    }
}

impl CompiledExpression {
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn data_type(&self) -> &DataType {
        &self.wanted
    }

    pub fn nullable(&self) -> bool {
        self.nullable
    }

    /// The values over all rows. Finds the rows that fail, if some do; fails itself only if the
    /// expression could not be evaluated on any row.
    pub fn evaluate(&self, batch: &RecordBatch) -> Result<Evaluated, OperatorError> {
        let error = match self.evaluate_all(batch) {
            Ok(values) => {
                return Ok(Evaluated {
                    values,
                    failures: Vec::new(),
                });
            }
            Err(error) => error,
        };
        let mut search = Search {
            expression: self,
            batch,
            pieces: vec![new_empty_array(&self.wanted)],
            failures: Vec::new(),
        };
        search.narrow(0, batch.num_rows(), error)?;
        let pieces: Vec<&dyn Array> = search.pieces.iter().map(|piece| piece.as_ref()).collect();
        let values = concat(&pieces).map_err(|error| broken(&self.text, &error.to_string()))?;
        Ok(Evaluated {
            values,
            failures: search.failures,
        })
    }

    fn evaluate_all(&self, batch: &RecordBatch) -> Result<ArrayRef, DataFusionError> {
        let values = self
            .physical
            .evaluate(batch)?
            .into_array(batch.num_rows())?;
        if values.data_type() == &self.wanted {
            return Ok(values);
        }
        let strict = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        Ok(cast_with_options(&values, &self.wanted, &strict)?)
    }
}

/// Looks for the rows that fail, by halves.
///
/// A batch can fail where none of its rows does alone: in `b <> 0 AND a / b > 1` the left side saves a
/// row from the right one only if it is false for the whole batch. So what counts is the smallest run
/// that succeeds, and the values are put together from such runs.
struct Search<'a> {
    expression: &'a CompiledExpression,
    batch: &'a RecordBatch,
    pieces: Vec<ArrayRef>,
    failures: Vec<Failure>,
}

impl Search<'_> {
    /// The run of rows from `start` failed as a whole, with this error.
    fn narrow(
        &mut self,
        start: usize,
        rows: usize,
        error: DataFusionError,
    ) -> Result<(), OperatorError> {
        if !is_of_the_data(&error) || rows == 0 {
            return Err(broken(&self.expression.text, &said(&error)));
        }
        if rows == 1 {
            self.pieces.push(new_null_array(&self.expression.wanted, 1));
            self.failures.push(Failure {
                row: start,
                detail: format!("\"{}\" failed: {}", self.expression.text, said(&error)),
            });
            return Ok(());
        }
        let half = rows / 2;
        self.evaluate(start, half)?;
        self.evaluate(start + half, rows - half)
    }

    fn evaluate(&mut self, start: usize, rows: usize) -> Result<(), OperatorError> {
        match self.expression.evaluate_all(&self.batch.slice(start, rows)) {
            Ok(values) => {
                self.pieces.push(values);
                Ok(())
            }
            Err(error) => self.narrow(start, rows, error),
        }
    }
}

fn condition(compiled: CompiledExpression) -> Result<CompiledExpression, Problem> {
    match compiled.wanted {
        DataType::Boolean => Ok(compiled),
        DataType::Null => Ok(CompiledExpression {
            wanted: DataType::Boolean,
            ..compiled
        }),
        other => {
            let detail = format!("\"{}\" is no condition: it gives {other}", compiled.text);
            Err(Problem::new(ErrorCode::SqlPlan, detail))
        }
    }
}

/// The type that a column of these values has, if there is one.
fn named_type(computed: &DataType) -> Option<DataType> {
    let kind = ColumnType::from_arrow(computed).ok()?;
    Some(kind.to_arrow())
}

/// Arithmetic that leaves its type's range fails on the row instead of going on with a wrong number.
fn refusing_overflow(
    physical: Arc<dyn PhysicalExpr>,
) -> Result<Arc<dyn PhysicalExpr>, DataFusionError> {
    let rewritten = physical.transform_up(|node| match node.downcast_ref::<BinaryExpr>() {
        Some(binary)
            if matches!(
                binary.op(),
                SqlOperator::Plus | SqlOperator::Minus | SqlOperator::Multiply
            ) =>
        {
            let refusing = binary.clone().with_fail_on_overflow(true);
            Ok(Transformed::yes(Arc::new(refusing)))
        }
        _ => Ok(Transformed::no(node)),
    })?;
    Ok(rewritten.data)
}

/// `now()` and its like are the start of a query to DataFusion. A job has no such moment: after a
/// failure the same rows would be given another.
fn refuse_moment_of_start(text: &str, expr: &Expr) -> Result<(), Problem> {
    let uses_start = expr
        .exists(|node| {
            Ok(matches!(node, Expr::ScalarFunction(call)
                if call.func.signature().volatility == Volatility::Stable))
        })
        .map_err(|error| not_planned(text, &error))?;
    if !uses_start {
        return Ok(());
    }
    let detail = format!("\"{text}\" asks for the current time, which a job's rows do not have");
    Err(Problem::new(ErrorCode::UnsupportedFeature, detail)
        .hint("Use a column that carries the time, such as the event time."))
}

/// Whether other values might not have failed.
fn is_of_the_data(error: &DataFusionError) -> bool {
    matches!(
        error.find_root(),
        DataFusionError::ArrowError(..)
            | DataFusionError::Execution(_)
            | DataFusionError::External(_)
    )
}

fn not_planned(text: &str, error: &DataFusionError) -> Problem {
    let code = match error.find_root() {
        DataFusionError::SQL(..) => ErrorCode::SqlSyntax,
        _ => ErrorCode::SqlPlan,
    };
    Problem::new(code, format!("\"{text}\": {}", said(error)))
}

fn broken(text: &str, reason: &str) -> OperatorError {
    OperatorError {
        reason: format!("\"{text}\" cannot be evaluated: {reason}"),
        fatal: true,
    }
}

/// What an error says, without where in DataFusion it arose.
pub(super) fn said(error: &DataFusionError) -> String {
    let root = error.find_root();
    let text = match root {
        DataFusionError::ArrowError(inner, _) => inner.to_string(),
        DataFusionError::SQL(inner, _) => inner.to_string(),
        _ => root.message().into_owned(),
    };
    let first_line = text.lines().next().unwrap_or_default();
    first_line.trim_end_matches('.').to_owned()
}
