//! Logical plans made ready to be lowered: windows out of GROUP BY, types made to fit, columns pruned.
//!
//! Of DataFusion's optimizer only rules that keep a plan's shape a stream can run: conditions and
//! columns are pushed towards the sources, nested unions are flattened.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::time::Span;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchemaRef, DataFusionError};
use datafusion::functions::core::named_struct;
use datafusion::logical_expr::logical_plan::{Aggregate, Projection};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, SubqueryAlias, lit};
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::optimize_unions::OptimizeUnions;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::{Analyzer, Optimizer, OptimizerContext};
use datafusion::sql::sqlparser::tokenizer::TokenWithSpan;

use super::catalog::Declared;
use super::expressions::Functions;
use super::problems::{find_word, plan_problem};
use super::windows::{WINDOW_END, WINDOW_START, WindowNode, grouped_window, is_window_function};

/// Column pruning and push-down pass each other on; three rounds settle every plan seen.
const OPTIMIZER_PASSES: u8 = 3;
/// The name under which event time is carried through queries that do not select it.
const CARRIED_TIME: &str = "event_time";

/// Types every expression and prunes what is not needed.
pub(super) fn prepare(
    plan: LogicalPlan,
    functions: &Functions,
    _tables: &BTreeMap<String, Declared>,
    tokens: &[TokenWithSpan],
) -> Result<LogicalPlan, Problem> {
    let failed = |error: DataFusionError| plan_problem(&error, tokens);
    let analyzed = Analyzer::new()
        .execute_and_check(plan, functions.options(), |_, _| {})
        .map_err(failed)?;
    let optimizer = Optimizer::with_rules(vec![
        Arc::new(OptimizeUnions::new()),
        Arc::new(PushDownFilter::new()),
        Arc::new(OptimizeProjections::new()),
    ]);
    let context = OptimizerContext::new_with_config_options(Arc::clone(functions.options()))
        .with_max_passes(OPTIMIZER_PASSES)
        .with_skip_failing_rules(false);
    optimizer
        .optimize(analyzed, &context, |_, _| {})
        .map_err(failed)
}

/// Replaces `GROUP BY tumble(INTERVAL …)` by an aggregate over a window node, whose bounds a projection
/// puts together as the ROW the query sees.
pub(super) fn with_bare_windows(
    plan: LogicalPlan,
    functions: &Functions,
    tables: &BTreeMap<String, Declared>,
    tokens: &[TokenWithSpan],
) -> Result<LogicalPlan, Problem> {
    let mut problem = None;
    let transformed = plan.transform_up(|node| {
        // Below a replaced aggregate types have become known.
        let node = node.recompute_schema()?;
        let LogicalPlan::Aggregate(aggregate) = node else {
            return Ok(Transformed::no(node));
        };
        match replace_window(aggregate, functions, tables, tokens) {
            Ok(plan) => Ok(Transformed::yes(plan)),
            Err(found) => {
                problem = Some(found);
                Err(DataFusionError::Internal("a window was refused".to_owned()))
            }
        }
    });
    match (problem, transformed) {
        (Some(problem), _) => Err(problem),
        (None, Ok(transformed)) => Ok(transformed.data),
        (None, Err(error)) => Err(plan_problem(&error, tokens)),
    }
}

fn replace_window(
    aggregate: Aggregate,
    functions: &Functions,
    tables: &BTreeMap<String, Declared>,
    tokens: &[TokenWithSpan],
) -> Result<LogicalPlan, Problem> {
    let failed = |error: DataFusionError| plan_problem(&error, tokens);
    let mut window = None;
    for (i, expr) in aggregate.group_expr.iter().enumerate() {
        let Expr::ScalarFunction(function) = expr else {
            continue;
        };
        let place = find_word(function.name(), tokens);
        let Some(spec) = grouped_window(functions, expr, place) else {
            continue;
        };
        if window.is_some() {
            let problem = Problem::new(ErrorCode::SqlPlan, "a query is grouped by one window");
            return Err(at(problem, function.name(), tokens));
        }
        window = Some((i, function.name().to_owned(), spec?));
    }
    let Some((position, word, spec)) = window else {
        return Ok(LogicalPlan::Aggregate(aggregate));
    };
    let input = Arc::unwrap_or_clone(aggregate.input);
    let Some((input, time)) = expose_time(input, tables).map_err(failed)? else {
        let problem = Problem::new(
            ErrorCode::SqlPlan,
            format!("{word}() needs event time, but the rows it groups have none"),
        )
        .hint("Declare it on the source: WATERMARK FOR ts AS ts - INTERVAL '5' SECOND.");
        return Err(at(problem, &word, tokens));
    };
    let windowed = WindowNode::new(input, time, &spec)
        .map_err(failed)?
        .into_plan();
    let bound = |name| Expr::Column(Column::new_unqualified(name));
    let mut keys = aggregate.group_expr.clone();
    keys.splice(
        position..=position,
        [bound(WINDOW_START), bound(WINDOW_END)],
    );
    let names = aggregate.schema.columns();
    let grouped =
        Aggregate::try_new(Arc::new(windowed), keys, aggregate.aggr_expr).map_err(failed)?;
    let row = named_struct().call(vec![
        lit("start"),
        bound(WINDOW_START),
        lit("end"),
        bound(WINDOW_END),
    ]);
    let mut columns = Vec::with_capacity(names.len());
    for (i, name) in names.into_iter().enumerate() {
        columns.push(match i == position {
            true => row.clone().alias(name.name),
            false => Expr::Column(name),
        });
    }
    LogicalPlanBuilder::from(LogicalPlan::Aggregate(grouped))
        .project(columns)
        .and_then(LogicalPlanBuilder::build)
        .map_err(failed)
}

fn at(problem: Problem, word: &str, tokens: &[TokenWithSpan]) -> Problem {
    match find_word(word, tokens) {
        Some(place) => problem.at(place.to_string()),
        None => problem,
    }
}

/// The position of the event-time column among a plan's columns, if it has one, with the lateness that
/// its source allows.
pub(super) fn event_time(
    plan: &LogicalPlan,
    tables: &BTreeMap<String, Declared>,
) -> Option<(usize, Span)> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let table = tables.get(scan.table_name.table())?;
            let column = &table.watermark.as_ref()?.column;
            let position = scan
                .projected_schema
                .index_of_column_by_name(None, column)?;
            Some((position, table.allowed_lateness))
        }
        LogicalPlan::Filter(filter) => event_time(&filter.input, tables),
        LogicalPlan::SubqueryAlias(alias) => event_time(&alias.input, tables),
        LogicalPlan::Projection(projection) => {
            let (below, lateness) = event_time(&projection.input, tables)?;
            let position = projection
                .expr
                .iter()
                .position(|expr| position_of(expr, projection.input.schema()) == Some(below))?;
            Some((position, lateness))
        }
        LogicalPlan::Union(union) => {
            let mut inputs = union.inputs.iter().map(|input| event_time(input, tables));
            let first = inputs.next()??;
            inputs.try_fold(first, |(position, lateness), input| {
                let (other, also) = input?;
                (other == position).then_some((position, lateness.max(also)))
            })
        }
        LogicalPlan::Extension(extension) => {
            let node = extension.node.as_any().downcast_ref::<WindowNode>()?;
            let position = node.input.schema().index_of_column(&node.time).ok()?;
            let lateness = event_time(&node.input, tables).map_or(Span::default(), |(_, l)| l);
            Some((position, lateness))
        }
        LogicalPlan::Aggregate(_) => Some((window_end(plan)?, Span::default())),
        _ => None,
    }
}

/// The position of a window's end among the columns of rows that a window node placed, or that were aggregated
/// in its windows.
fn window_end(plan: &LogicalPlan) -> Option<usize> {
    match plan {
        LogicalPlan::Extension(extension) => {
            let node = extension.node.as_any().downcast_ref::<WindowNode>()?;
            Some(node.input.schema().fields().len() + 1)
        }
        LogicalPlan::Filter(filter) => window_end(&filter.input),
        LogicalPlan::SubqueryAlias(alias) => window_end(&alias.input),
        LogicalPlan::Aggregate(aggregate) => {
            let below = window_end(&aggregate.input)?;
            aggregate
                .group_expr
                .iter()
                .position(|expr| position_of(expr, aggregate.input.schema()) == Some(below))
        }
        LogicalPlan::Projection(projection) => {
            let below = window_end(&projection.input)?;
            projection
                .expr
                .iter()
                .position(|expr| position_of(expr, projection.input.schema()) == Some(below))
        }
        _ => None,
    }
}

/// The position of the column that an expression is, under whatever name.
fn position_of(expr: &Expr, schema: &DFSchemaRef) -> Option<usize> {
    match expr {
        Expr::Column(column) => schema.maybe_index_of_column(column),
        Expr::Alias(alias) => position_of(&alias.expr, schema),
        _ => None,
    }
}

/// The plan with its event-time column among its columns: queries between the source and the window need
/// not have selected it.
fn expose_time(
    plan: LogicalPlan,
    tables: &BTreeMap<String, Declared>,
) -> Result<Option<(LogicalPlan, Column)>, DataFusionError> {
    if let Some((position, _)) = event_time(&plan, tables) {
        let column = Column::from(plan.schema().qualified_field(position));
        return Ok(Some((plan, column)));
    }
    Ok(match plan {
        LogicalPlan::Projection(projection) => {
            let input = Arc::unwrap_or_clone(projection.input);
            let Some((input, time)) = expose_time(input, tables)? else {
                return Ok(None);
            };
            let mut exprs = projection.expr;
            exprs.push(Expr::Column(time).alias(CARRIED_TIME));
            let plan = Projection::try_new(exprs, Arc::new(input))?;
            let column = Column::new_unqualified(CARRIED_TIME);
            Some((LogicalPlan::Projection(plan), column))
        }
        LogicalPlan::Filter(mut filter) => {
            let input = Arc::unwrap_or_clone(filter.input);
            let Some((input, time)) = expose_time(input, tables)? else {
                return Ok(None);
            };
            filter.input = Arc::new(input);
            Some((LogicalPlan::Filter(filter), time))
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let input = Arc::unwrap_or_clone(alias.input);
            let Some((input, time)) = expose_time(input, tables)? else {
                return Ok(None);
            };
            let plan = SubqueryAlias::try_new(Arc::new(input), alias.alias.clone())?;
            let column = Column::new(Some(alias.alias), time.name);
            Some((LogicalPlan::SubqueryAlias(plan), column))
        }
        _ => None,
    })
}

/// The word of a window function that was not replaced, because it stands outside GROUP BY.
pub(super) fn stray_window(expr: &Expr) -> Option<&str> {
    let mut found = None;
    let walked = expr.apply(|node| {
        if let Expr::ScalarFunction(function) = node
            && is_window_function(function.name())
        {
            found = Some(function.func.name().to_owned());
        }
        Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
    });
    walked.expect("walking an expression does not fail");
    ["tumble", "hop", "session", "cumulate"]
        .into_iter()
        .find(|word| found.as_deref() == Some(*word))
}
