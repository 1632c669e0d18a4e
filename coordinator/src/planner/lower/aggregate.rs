//! Aggregates and DISTINCT of a plan → operators, in windows if their rows are in windows.

use std::collections::BTreeSet;
use std::sync::Arc;

use common::error::Problem;
use common::plan::aggregate_function::offered;
use common::plan::operator::{Aggregate, AggregateCall, OperatorSpec, WindowAggregate};
use common::plan::window::WindowSpec;
use common::time::Span;
use datafusion::common::DFSchema;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::logical_plan as logical;
use datafusion::logical_expr::{Expr, LogicalPlan};

use super::columns::{bare, chosen, field_names, plain_column, unique};
use super::window::{is_unplaced, unplaced_name};
use super::{Lowering, Relation, Wanted};
use crate::planner::expression_text;
use crate::planner::expressions::df_schema;
use crate::planner::problems::plan_problem;
use crate::planner::typing::Windows;
use crate::planner::windows::{WINDOW_END, WINDOW_START};

impl Lowering<'_> {
    /// The different rows of a plan: grouped by all columns, and nothing else asked of the groups.
    pub(super) fn distinct(
        &mut self,
        input: &Arc<LogicalPlan>,
        wanted: &Wanted,
    ) -> Result<Relation, Problem> {
        let columns = input.schema().columns().into_iter().map(Expr::Column);
        let grouped = logical::Aggregate::try_new(Arc::clone(input), columns.collect(), Vec::new())
            .map_err(|error| plan_problem(&error, &self.tokens))?;
        self.aggregate(&grouped, wanted)
    }

    pub(super) fn aggregate(
        &mut self,
        aggregate: &logical::Aggregate,
        wanted: &Wanted,
    ) -> Result<Relation, Problem> {
        let below = aggregate.input.schema();
        let mut names = vec![None; below.fields().len()];
        for (i, expr) in aggregate.group_expr.iter().enumerate() {
            if let Expr::Column(column) = bare(expr)
                && let Some(position) = below.maybe_index_of_column(column)
            {
                names[position] = wanted.get(i).cloned().flatten();
            }
        }
        if aggregate
            .group_expr
            .iter()
            .any(|expr| matches!(expr, Expr::GroupingSet(_)))
        {
            let problem = self.unsupported("GROUPING SETS", &["grouping", "cube", "rollup"]);
            return Err(
                problem.hint("Write a query for each set, and put them together by UNION ALL.")
            );
        }
        let relation = self.lower(&aggregate.input, names)?;
        let mut calls = Vec::with_capacity(aggregate.aggr_expr.len());
        for expr in &aggregate.aggr_expr {
            calls.push(self.call(expr)?);
        }
        // Keys, then each call's arguments, then its condition: all seen through the same slots.
        let inner: Vec<Expr> = aggregate
            .group_expr
            .iter()
            .cloned()
            .chain(calls.iter().flat_map(|call| {
                let params = &call.params;
                params
                    .args
                    .iter()
                    .cloned()
                    .chain(params.filter.as_deref().cloned())
            }))
            .collect();
        let (relation, inner) = self.seen_through(relation, below, &inner)?;
        let is_bound = |expr: &Expr| unplaced_name(expr).is_some();
        let key_count = aggregate.group_expr.len();
        let windowed = inner[..key_count].iter().any(is_bound);
        let computes_bound = inner
            .iter()
            .enumerate()
            .any(|(i, expr)| is_unplaced(expr) && !(i < key_count && is_bound(expr)));
        if relation.window.is_some() && (!windowed || computes_bound) {
            // The bounds are used as values of rows: place the rows first.
            let names = unique(field_names(below), &[]);
            let relation = self.materialize(relation, &names)?;
            return self.aggregate_over(relation, aggregate, &calls, below, wanted);
        }
        self.aggregate_over(relation, aggregate, &calls, below, wanted)
    }

    fn aggregate_over(
        &mut self,
        relation: Relation,
        aggregate: &logical::Aggregate,
        calls: &[AggregateFunction],
        below: &DFSchema,
        wanted: &Wanted,
    ) -> Result<Relation, Problem> {
        let (relation, keys) = self.seen_through(relation, below, &aggregate.group_expr)?;
        let mut params = Vec::with_capacity(calls.len());
        for call in calls {
            let mut seen = call.params.clone();
            seen.args = self.seen_through(relation.clone(), below, &seen.args)?.1;
            if let Some(filter) = seen.filter.take() {
                let filter = self.seen_through(relation.clone(), below, &[*filter])?.1;
                seen.filter = filter.into_iter().next().map(Box::new);
            }
            params.push(seen);
        }
        let again = windows_again(&relation, &keys);
        let start = again.as_ref().map(|windows| plain_column(&windows.start));
        let bound_of = |key: &Expr| match &again {
            Some(windows) => bound_among(windows, key),
            None => unplaced_name(key),
        };
        let used: Vec<&Expr> = keys
            .iter()
            .chain(
                params
                    .iter()
                    .flat_map(|params| params.args.iter().chain(params.filter.as_deref())),
            )
            .chain(&start)
            .collect();
        let relation = self.without_spent(relation, &used)?;
        let windowed = relation.window.is_some() || again.is_some();
        let reserved: &[&str] = match windowed {
            true => &[WINDOW_START, WINDOW_END],
            false => &[],
        };
        // Names of all outputs that are not bounds, in order.
        let mut names = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            if bound_of(key).is_none() {
                let fallback = match bare(&aggregate.group_expr[i]) {
                    Expr::Column(column) => column.name.clone(),
                    _ => "key".to_owned(),
                };
                names.push(chosen(wanted, i, fallback));
            }
        }
        for (i, call) in calls.iter().enumerate() {
            let fallback = match call.params.args.as_slice() {
                [Expr::Column(column)] => format!("{}_{}", call.func.name(), column.name),
                _ => call.func.name().to_owned(),
            };
            names.push(chosen(wanted, keys.len() + i, fallback));
        }
        let names = unique(names, reserved);
        let mut rest = names.iter();
        let mut key_specs = Vec::new();
        let mut slots = Vec::new();
        for key in &keys {
            if let Some(bound) = bound_of(key) {
                slots.push(plain_column(bound));
                continue;
            }
            let name = rest.next().expect("every key has a name");
            slots.push(plain_column(name));
            key_specs.push(self.named(key, &relation.node, name.clone())?);
        }
        let schema = df_schema(&relation.node.columns)?;
        let mut call_specs: Vec<AggregateCall> = Vec::new();
        for (call, params) in calls.iter().zip(&params) {
            let name = rest.next().expect("every aggregate has a name");
            slots.push(plain_column(name));
            let spec = expression_text::write_aggregate(
                self.functions,
                call.func.name(),
                params,
                name.clone(),
                &schema,
            );
            call_specs.push(spec.map_err(|problem| self.placed(problem, call.func.name()))?);
        }
        let placement = match (&relation.window, &again) {
            (Some(window), _) => Some((window.spec.clone(), None, window.allowed_lateness)),
            (None, Some(windows)) => {
                let (window, lateness) = windows.again();
                Some((window, Some(windows.start.clone()), lateness))
            }
            (None, None) => None,
        };
        let spec = match placement {
            Some((window, time, allowed_lateness)) => {
                OperatorSpec::WindowAggregate(WindowAggregate {
                    id: String::new(),
                    inputs: Vec::new(),
                    keys: key_specs,
                    window,
                    time,
                    aggregates: call_specs,
                    allowed_lateness,
                })
            }
            None => {
                let keys: Vec<String> = key_specs.iter().map(|key| key.name.clone()).collect();
                self.warn_of_growth(&keys);
                OperatorSpec::Aggregate(Aggregate {
                    id: String::new(),
                    inputs: Vec::new(),
                    keys: key_specs,
                    aggregates: call_specs,
                })
            }
        };
        let shape = Relation {
            slots,
            window: None,
            spent: BTreeSet::new(),
            ..relation.clone()
        };
        let mut aggregated = self.add(spec, vec![relation], shape)?;
        if let Some(windows) = again {
            self.lengthen(&mut aggregated, &windows.spec)?;
        }
        Ok(aggregated)
    }

    /// Overlapping windows that were aggregated again end later than the slices they were known by.
    fn lengthen(&self, relation: &mut Relation, windows: &WindowSpec) -> Result<(), Problem> {
        let missing = Span(windows.size().0 - windows.slide().0);
        if missing.0 == 0 {
            return Ok(());
        }
        let end = plain_column(WINDOW_END);
        let lengthened = self.moved(end.clone(), missing, &relation.node)?;
        for slot in &mut relation.slots {
            if *slot == end {
                *slot = lengthened.clone();
            }
        }
        Ok(())
    }

    /// An aggregate function's call, checked for what streams cannot do.
    fn call(&self, expr: &Expr) -> Result<AggregateFunction, Problem> {
        let Expr::AggregateFunction(call) = bare(expr) else {
            return Err(self.unsupported("this aggregate", &[]));
        };
        let mut call = call.clone();
        let name = call.func.name().to_owned();
        if call.params.null_treatment.is_some() {
            return Err(self.unsupported("IGNORE NULLS", &["ignore", "respect"]));
        }
        if let [sort] = call.params.order_by.as_slice()
            && call.func.supports_within_group_clause()
            && sort.asc
            && call.params.args.first() == Some(&sort.expr)
        {
            // `WITHIN GROUP (ORDER BY x)` says what the first argument says.
            call.params.order_by.clear();
        }
        if !call.params.order_by.is_empty() {
            let problem = self.unsupported("ORDER BY in an aggregate function", &["order"]);
            return Err(problem.hint("Rows count in the order in which they come."));
        }
        offered(&name, call.params.distinct, false)
            .map_err(|problem| self.placed(problem, &name))?;
        Ok(call)
    }

    pub(super) fn warn_of_growth(&mut self, keys: &[String]) {
        if !keys.is_empty() {
            self.warnings.push(format!(
                "\"{}\": the state of the aggregate by {} grows with the number of different keys",
                self.sink,
                keys.join(", ")
            ));
        }
    }
}

/// The windows that results of windows are grouped by again: a bound of them is one of the keys.
fn windows_again(relation: &Relation, keys: &[Expr]) -> Option<Windows> {
    let windows = relation.node.windows.as_ref()?;
    let is_bound = |key: &Expr| bound_among(windows, key).is_some();
    let again = relation.window.is_none() && keys.iter().any(is_bound);
    again.then(|| windows.clone())
}

/// Which bound of these windows the expression is.
fn bound_among(windows: &Windows, expr: &Expr) -> Option<&'static str> {
    let Expr::Column(column) = bare(expr) else {
        return None;
    };
    if column.name == windows.start {
        return Some(WINDOW_START);
    }
    (windows.end.as_ref() == Some(&column.name)).then_some(WINDOW_END)
}
