//! Windows of a plan: which rows are in them, and their bounds where no aggregate gives them.

use common::error::{ErrorCode, Problem};
use common::plan::window::WindowSpec;
use common::time::Span;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column as SqlColumn, ScalarValue};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, cast};

use super::columns::plain_column;
use super::{Lowering, Relation, Unplaced};
use crate::planner::expressions::df_schema;
use crate::planner::problems::{find_word, plan_problem};
use crate::planner::rewrite_plan::event_time;
use crate::planner::tokens::unsupported;
use crate::planner::typing::Node;
use crate::planner::windows::{WINDOW_END, WINDOW_START, WindowNode};

/// Qualifies the bounds of windows that no operator has placed rows in yet.
const UNPLACED: &str = "$window";

impl Lowering<'_> {
    pub(super) fn window(
        &mut self,
        node: &WindowNode,
        plan: &LogicalPlan,
    ) -> Result<Relation, Problem> {
        let nothing = vec![None; node.input.schema().fields().len()];
        let relation = self.lower(&node.input, nothing)?;
        let word = match node.slide {
            Some(_) => "hop",
            None => "tumble",
        };
        let at = |problem: Problem| match find_word(word, &self.tokens) {
            Some(place) => problem.at(place.to_string()),
            None => problem,
        };
        if relation.window.is_some() {
            return Err(at(unsupported(
                None,
                "a window over the rows of another window",
            )
            .hint("Aggregate the inner window first.")));
        }
        let position = node
            .input
            .schema()
            .index_of_column(&node.time)
            .map_err(|error| plan_problem(&error, &self.tokens))?;
        let time = relation.node.time.as_deref();
        let is_time =
            matches!(&relation.slots[position], Expr::Column(c) if Some(c.name.as_str()) == time);
        if !is_time {
            let problem = Problem::new(
                ErrorCode::SqlPlan,
                match time {
                    None => format!(
                        "\"{}\" is no event time: the rows of this window have no watermark",
                        node.time.name
                    ),
                    Some(time) => format!(
                        "\"{}\" is not the event time of these rows, \"{time}\" is",
                        node.time.name
                    ),
                },
            );
            return Err(at(problem.hint(
                "Declare it on the source: WATERMARK FOR ts AS ts - INTERVAL '5' SECOND.",
            )));
        }
        let allowed_lateness = event_time(plan, self.tables).map_or(Span::default(), |(_, l)| l);
        let mut slots = relation.slots;
        slots.extend([WINDOW_START, WINDOW_END].map(unplaced_bound));
        Ok(Relation {
            slots,
            window: Some(Unplaced {
                spec: node.spec(),
                allowed_lateness,
            }),
            ..relation
        })
    }

    /// A window's bounds as expressions over a row's time, where each row is in one window.
    pub(super) fn placed_bounds(
        &self,
        expr: Expr,
        window: &Unplaced,
        node: &Node,
    ) -> Result<Expr, Problem> {
        if !is_unplaced(&expr) {
            return Ok(expr);
        }
        let WindowSpec::Tumbling { size, offset } = &window.spec else {
            let problem = unsupported(
                find_word("hop", &self.tokens),
                "the rows of HOP are not given out one by one yet",
            );
            return Err(problem
                .hint("Aggregate them: GROUP BY window_start, window_end and your own keys."));
        };
        let time = node.time.as_deref().expect("a window is over event time");
        let kind = kind_of(node, time);
        let failed = |error| plan_problem(&error, &self.tokens);
        let mut args = vec![interval(*size)?, plain_column(time)];
        if offset.0 != 0 {
            let origin = ScalarValue::TimestampMillisecond(i64::try_from(offset.0).ok(), None);
            let origin = origin.cast_to(&kind).map_err(failed)?;
            args.push(Expr::Literal(origin, None));
        }
        let bin = self
            .functions
            .scalar("date_bin")
            .expect("DataFusion has date_bin");
        let start = bin.call(args);
        let end = self.of_kind(start.clone() + interval(*size)?, &kind, node)?;
        let start = self.of_kind(start, &kind, node)?;
        let placed = expr.transform_up(|expr| {
            Ok(match unplaced_name(&expr) {
                Some(WINDOW_START) => Transformed::yes(start.clone()),
                Some(_) => Transformed::yes(end.clone()),
                None => Transformed::no(expr),
            })
        });
        Ok(placed.map_err(failed)?.data)
    }

    /// A column of time, this much later.
    pub(super) fn moved(&self, column: Expr, by: Span, node: &Node) -> Result<Expr, Problem> {
        let name = column.try_as_col().expect("it is a column").name.clone();
        self.of_kind(column + interval(by)?, &kind_of(node, &name), node)
    }

    fn of_kind(&self, time: Expr, kind: &DataType, node: &Node) -> Result<Expr, Problem> {
        let schema = df_schema(&node.columns)?;
        let typed = time
            .get_type(schema.as_ref())
            .map_err(|error| plan_problem(&error, &self.tokens))?;
        Ok(match typed == *kind {
            true => time,
            false => cast(time, kind.clone()),
        })
    }
}

fn kind_of(node: &Node, name: &str) -> DataType {
    let column = node.columns.iter().find(|column| column.name == name);
    column
        .expect("a bound and event time are columns")
        .kind
        .to_arrow()
}

fn interval(span: Span) -> Result<Expr, Problem> {
    let nanoseconds = i64::try_from(span.0)
        .ok()
        .and_then(|milliseconds| milliseconds.checked_mul(1_000_000))
        .ok_or_else(|| {
            let detail = format!("a window of {span} is too long");
            Problem::new(ErrorCode::SqlPlan, detail)
        })?;
    let value = ScalarValue::new_interval_mdn(0, 0, nanoseconds);
    Ok(Expr::Literal(value, None))
}

pub(super) fn unplaced_bound(name: &str) -> Expr {
    Expr::Column(SqlColumn::new(Some(UNPLACED), name))
}

/// Which bound of an unplaced window the expression is.
pub(super) fn unplaced_name(expr: &Expr) -> Option<&'static str> {
    match expr {
        Expr::Column(column)
            if column
                .relation
                .as_ref()
                .is_some_and(|r| r.table() == UNPLACED) =>
        {
            Some(match column.name == WINDOW_START {
                true => WINDOW_START,
                false => WINDOW_END,
            })
        }
        _ => None,
    }
}

/// Whether a bound of an unplaced window stands anywhere in it.
pub(super) fn is_unplaced(expr: &Expr) -> bool {
    expr.exists(|node| Ok(unplaced_name(node).is_some()))
        .expect("walking an expression does not fail")
}
