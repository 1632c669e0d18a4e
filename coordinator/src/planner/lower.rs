//! Logical plans → the operators of a job graph.
//!
//! Projections are put off until something needs their columns, so that a chain of them, or one that
//! only renames, costs no operator. Windows are put off until the aggregate over them.

use std::collections::{BTreeMap, BTreeSet};

use common::error::{ErrorCode, Problem};
use common::plan::JobGraph;
use common::plan::aggregate_function::offered;
use common::plan::connector::SourceSpec;
use common::plan::expression::{Expression, NamedExpression};
use common::plan::operator::{
    Aggregate, AggregateCall, Filter, OperatorSpec, Project, Union, WindowAggregate,
};
use common::plan::window::WindowSpec;
use common::time::Span;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column as SqlColumn, DFSchema, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::logical_plan as logical;
use datafusion::logical_expr::{Distinct, Expr, ExprSchemable, LogicalPlan, cast};
use datafusion::sql::sqlparser::tokenizer::TokenWithSpan;

use super::catalog::Declared;
use super::expression_text;
use super::expressions::{Functions, df_schema};
use super::names::{Label, name_operators};
use super::problems::{find_subquery, find_word, plan_problem};
use super::rewrite_plan::{event_time, stray_window};
use super::sql::PlannedInsert;
use super::tokens::unsupported;
use super::typing::{Node, operator_node, source_node};
use super::windows::{WINDOW_END, WINDOW_START, WindowNode};

/// Qualifies the bounds of windows that no operator has placed rows in yet.
const UNPLACED: &str = "$window";

/// The graph as it grows. Operators are known by position until all are there to be named.
pub(super) struct Lowering<'a> {
    functions: &'a Functions,
    tables: &'a BTreeMap<String, Declared>,
    sources: BTreeMap<String, SourceSpec>,
    drafts: Vec<Draft>,
    /// What each sink's inserts end in.
    sinks: BTreeMap<String, Vec<Relation>>,
    warnings: Vec<String>,
    /// The insert being lowered.
    sink: String,
    tokens: Vec<TokenWithSpan>,
}

/// An operator without a name.
#[derive(Debug)]
pub(super) struct Draft {
    /// With an empty id and no inputs.
    pub(super) spec: OperatorSpec,
    pub(super) inputs: Vec<Input>,
    pub(super) label: Label,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Source(String),
    Operator(usize),
}

/// The rows a plan gives: those of `input`, seen through `slots`.
#[derive(Clone, Debug)]
struct Relation {
    input: Input,
    /// What `input` gives.
    node: Node,
    /// One per column of the plan: how it comes from the columns of `node`.
    slots: Vec<Expr>,
    /// Windows that rows have not been placed in yet.
    window: Option<Unplaced>,
    /// Columns of `node` that only conditions needed.
    spent: BTreeSet<String>,
    sources: BTreeSet<String>,
    /// What its operator is called in ids, if its type does not say enough.
    kind: Option<&'static str>,
}

#[derive(Clone, Debug)]
struct Unplaced {
    spec: WindowSpec,
    allowed_lateness: Span,
}

/// Names that the columns of a plan should get, where its consumer has one for them.
type Wanted = Vec<Option<String>>;

impl<'a> Lowering<'a> {
    pub(super) fn new(
        functions: &'a Functions,
        tables: &'a BTreeMap<String, Declared>,
    ) -> Lowering<'a> {
        Lowering {
            functions,
            tables,
            sources: BTreeMap::new(),
            drafts: Vec::new(),
            sinks: BTreeMap::new(),
            warnings: Vec::new(),
            sink: String::new(),
            tokens: Vec::new(),
        }
    }

    pub(super) fn insert(&mut self, insert: PlannedInsert) -> Result<(), Problem> {
        self.sink = insert.sink;
        self.tokens = insert.tokens;
        let names: Vec<String> = field_names(insert.plan.schema());
        let wanted = names.iter().cloned().map(Some).collect();
        let relation = self.lower(&insert.plan, wanted)?;
        let relation = self.materialize(relation, &names)?;
        self.sinks
            .entry(self.sink.clone())
            .or_default()
            .push(relation);
        Ok(())
    }

    /// The graph, with every operator named.
    pub(super) fn finish(mut self) -> Result<(JobGraph, Vec<String>), Problem> {
        let mut ends = BTreeMap::new();
        for (sink, mut relations) in std::mem::take(&mut self.sinks) {
            self.sink.clone_from(&sink);
            let end = match relations.len() {
                1 => relations.remove(0),
                _ => self.union(relations)?,
            };
            ends.insert(sink, end.input);
        }
        let mut graph = JobGraph {
            sources: self.sources,
            ..JobGraph::default()
        };
        // A table may be read and written: the names of a graph's nodes are unique.
        let sink_name = |sink: &str| match graph.sources.contains_key(sink) {
            true => format!("{sink}-sink"),
            false => sink.to_owned(),
        };
        let taken: BTreeSet<String> = graph
            .sources
            .keys()
            .cloned()
            .chain(ends.keys().map(|sink| sink_name(sink)))
            .collect();
        let ids = name_operators(&self.drafts, &taken);
        let id_of = |input: &Input| match input {
            Input::Source(name) => name.clone(),
            Input::Operator(position) => ids[*position].clone(),
        };
        let mut sinks = BTreeMap::new();
        for (sink, input) in &ends {
            let spec = self.tables[sink].sink(&id_of(input))?;
            sinks.insert(sink_name(sink), spec);
        }
        graph.operators = self
            .drafts
            .iter()
            .zip(&ids)
            .map(|(draft, id)| {
                let inputs = draft.inputs.iter().map(id_of).collect();
                placed(draft.spec.clone(), id.clone(), inputs)
            })
            .collect();
        graph.sinks = sinks;
        Ok((graph, self.warnings))
    }

    fn lower(&mut self, plan: &LogicalPlan, wanted: Wanted) -> Result<Relation, Problem> {
        match plan {
            LogicalPlan::TableScan(scan) => self.scan(scan),
            LogicalPlan::SubqueryAlias(alias) => self.lower(&alias.input, wanted),
            LogicalPlan::Filter(filter) => self.filter(filter, wanted),
            LogicalPlan::Projection(projection) => self.projection(projection, &wanted),
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate, &wanted),
            LogicalPlan::Distinct(Distinct::All(input)) => self.distinct(input, wanted),
            LogicalPlan::Union(union) => {
                let names = self.union_names(&union.schema, &wanted);
                let mut inputs = Vec::with_capacity(union.inputs.len());
                for input in &union.inputs {
                    let wanted = names.iter().cloned().map(Some).collect();
                    let relation = self.lower(input, wanted)?;
                    inputs.push(self.materialize(relation, &names)?);
                }
                self.union(inputs)
            }
            LogicalPlan::Extension(extension) => {
                match extension.node.as_any().downcast_ref::<WindowNode>() {
                    Some(node) => self.window(node, plan),
                    None => Err(self.unsupported("this query", &[])),
                }
            }
            LogicalPlan::Join(_) => Err(self.unsupported("JOIN", &["join"])),
            LogicalPlan::Window(_) => Err(self
                .unsupported("OVER", &["over"])
                .hint("Aggregate with GROUP BY: by keys, or in windows of time.")),
            LogicalPlan::Sort(_) => Err(self
                .unsupported("ORDER BY", &["order"])
                .hint("A stream has no end to sort up to.")),
            LogicalPlan::Limit(_) => Err(self
                .unsupported("LIMIT", &["limit", "fetch", "offset"])
                .hint("A stream has no end and no order: filter it, or read the result in part.")),
            LogicalPlan::Distinct(_) => Err(self.unsupported("DISTINCT ON", &["distinct"])),
            LogicalPlan::Unnest(_) => Err(self.unsupported("UNNEST", &["unnest"])),
            LogicalPlan::Values(_) => Err(self.unsupported("VALUES", &["values"])),
            LogicalPlan::Subquery(_) => Err(self.unsupported("a subquery", &["select"])),
            LogicalPlan::RecursiveQuery(_) => {
                Err(self.unsupported("WITH RECURSIVE", &["recursive"]))
            }
            LogicalPlan::EmptyRelation(_) => {
                let problem = Problem::new(ErrorCode::SqlPlan, "the query reads from no table")
                    .hint("A job's rows come from sources: add FROM a_table.");
                Err(self.placed(problem, "select"))
            }
            _ => Err(self.unsupported("this statement", &[])),
        }
    }

    /// The consumer's names for a union's columns, else their own.
    fn union_names(&self, schema: &DFSchema, wanted: &Wanted) -> Vec<String> {
        let names = field_names(schema).into_iter().enumerate().map(|(i, own)| {
            let own = vec![Some(own)];
            let own = chosen(&own, 0, format!("column_{}", i + 1));
            chosen(wanted, i, own)
        });
        unique(names.collect(), &[])
    }

    /// Something that streams cannot do yet, at the place of the first of these words.
    fn unsupported(&self, what: &str, words: &[&str]) -> Problem {
        let place = words.iter().find_map(|word| find_word(word, &self.tokens));
        unsupported(place, format!("{what} is not supported in a job yet"))
    }

    fn scan(&mut self, scan: &logical::TableScan) -> Result<Relation, Problem> {
        assert!(
            scan.filters.is_empty() && scan.fetch.is_none(),
            "a source filters nothing: conditions stay operators"
        );
        let name = scan.table_name.table().to_owned();
        let table = &self.tables[&name];
        if !self.sources.contains_key(&name) {
            self.sources.insert(name.clone(), table.source()?);
        }
        let node = source_node(&self.sources[&name], &format!("/sources/{name}"))?;
        let slots = scan
            .projected_schema
            .fields()
            .iter()
            .map(|field| plain_column(field.name()))
            .collect();
        Ok(Relation {
            input: Input::Source(name.clone()),
            node,
            slots,
            window: None,
            spent: BTreeSet::new(),
            sources: [name].into(),
            kind: None,
        })
    }

    fn window(&mut self, node: &WindowNode, plan: &LogicalPlan) -> Result<Relation, Problem> {
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

    fn projection(
        &mut self,
        projection: &logical::Projection,
        wanted: &Wanted,
    ) -> Result<Relation, Problem> {
        let below = projection.input.schema();
        let mut names = vec![None; below.fields().len()];
        let own = field_names(&projection.schema);
        for (i, expr) in projection.expr.iter().enumerate() {
            let name = wanted.get(i).cloned().flatten();
            if let Expr::Column(column) = converted(expr)
                && let Some(position) = below.maybe_index_of_column(column)
                && names[position].is_none()
            {
                names[position] = Some(name.unwrap_or_else(|| own[i].clone()));
            }
        }
        let relation = self.lower(&projection.input, names)?;
        let (relation, slots) = self.seen_through(relation, below, &projection.expr)?;
        Ok(Relation { slots, ..relation })
    }

    fn filter(&mut self, filter: &logical::Filter, wanted: Wanted) -> Result<Relation, Problem> {
        let relation = self.lower(&filter.input, wanted)?;
        let below = filter.input.schema();
        let predicate = std::slice::from_ref(&filter.predicate);
        let (mut relation, mut exprs) = self.seen_through(relation, below, predicate)?;
        let mut predicate = exprs.remove(0);
        if is_unplaced(&predicate) {
            let names = unique(field_names(below), &[]);
            relation = self.materialize(relation, &names)?;
            predicate = self
                .seen_through(
                    relation.clone(),
                    below,
                    std::slice::from_ref(&filter.predicate),
                )?
                .1
                .remove(0);
        }
        relation.spent.extend(columns_of([&predicate]));
        let predicate = self.write(&predicate, &relation.node)?;
        let spec = OperatorSpec::Filter(Filter {
            id: String::new(),
            inputs: Vec::new(),
            predicate,
        });
        self.add(spec, vec![relation.clone()], relation)
    }

    fn distinct(&mut self, input: &LogicalPlan, wanted: Wanted) -> Result<Relation, Problem> {
        let names = field_names(input.schema());
        let relation = self.lower(input, wanted)?;
        let relation = self.materialize(relation, &names)?;
        let keys = relation
            .slots
            .iter()
            .zip(&names)
            .map(|(slot, name)| self.named(slot, &relation.node, name.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        let spec = OperatorSpec::Aggregate(Aggregate {
            id: String::new(),
            inputs: Vec::new(),
            keys,
            aggregates: Vec::new(),
        });
        self.warn_of_growth(&names);
        let shape = relation.clone();
        self.add(spec, vec![relation], shape)
    }

    fn union(&mut self, inputs: Vec<Relation>) -> Result<Relation, Problem> {
        let shape = inputs[0].clone();
        let spec = OperatorSpec::Union(Union {
            id: String::new(),
            inputs: Vec::new(),
        });
        self.add(spec, inputs, shape)
    }

    fn aggregate(
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
            return Err(self.unsupported("GROUPING SETS", &["grouping", "cube", "rollup"]));
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
        calls: &[datafusion::logical_expr::expr::AggregateFunction],
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
        let used: Vec<&Expr> = keys
            .iter()
            .chain(
                params
                    .iter()
                    .flat_map(|params| params.args.iter().chain(params.filter.as_deref())),
            )
            .collect();
        let relation = self.without_spent(relation, &used)?;
        let windowed = relation.window.is_some();
        let reserved: &[&str] = match windowed {
            true => &[WINDOW_START, WINDOW_END],
            false => &[],
        };
        // Names of all outputs that are not bounds, in order.
        let mut names = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            if unplaced_name(key).is_none() {
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
            if let Some(bound) = unplaced_name(key) {
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
        let spec = match &relation.window {
            Some(window) => OperatorSpec::WindowAggregate(WindowAggregate {
                id: String::new(),
                inputs: Vec::new(),
                keys: key_specs,
                window: window.spec.clone(),
                time: None,
                aggregates: call_specs,
                allowed_lateness: window.allowed_lateness,
            }),
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
        self.add(spec, vec![relation], shape)
    }

    /// An aggregate function's call, checked for what streams cannot do.
    fn call(
        &self,
        expr: &Expr,
    ) -> Result<datafusion::logical_expr::expr::AggregateFunction, Problem> {
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

    fn placed(&self, problem: Problem, word: &str) -> Problem {
        match (find_word(word, &self.tokens), &problem.at) {
            (Some(place), None) => problem.at(place.to_string()),
            _ => problem,
        }
    }

    fn warn_of_growth(&mut self, keys: &[String]) {
        if !keys.is_empty() {
            self.warnings.push(format!(
                "\"{}\": the state of the aggregate by {} grows with the number of different keys",
                self.sink,
                keys.join(", ")
            ));
        }
    }

    /// Expressions over a plan's columns as expressions over its relation's. If they would compute a
    /// slot's expression again, the relation's slots are computed first.
    fn seen_through(
        &mut self,
        relation: Relation,
        below: &DFSchema,
        exprs: &[Expr],
    ) -> Result<(Relation, Vec<Expr>), Problem> {
        let used: BTreeSet<usize> = exprs
            .iter()
            .flat_map(Expr::column_refs)
            .filter_map(|column| below.maybe_index_of_column(column))
            .collect();
        let all_plain = exprs
            .iter()
            .all(|expr| matches!(bare(expr), Expr::Column(_)));
        let cheap = |slot: &usize| relation.slots.get(*slot).is_some_and(costs_nothing);
        let relation = match all_plain || used.iter().all(cheap) {
            true => relation,
            false => {
                let names = unique(field_names(below), &[]);
                self.materialize(relation, &names)?
            }
        };
        let mut seen = Vec::with_capacity(exprs.len());
        for expr in exprs {
            if let Some(word) = stray_window(expr) {
                let problem = Problem::new(
                    ErrorCode::SqlPlan,
                    format!("{word}(…) stands only in GROUP BY"),
                )
                .hint(format!(
                    "For example GROUP BY {word}(INTERVAL '10' SECOND)."
                ));
                return Err(self.placed(problem, word));
            }
            self.refuse_subqueries(expr)?;
            let expr = expr
                .clone()
                .transform_up(|node| {
                    Ok(match node {
                        Expr::Column(column) => match below.maybe_index_of_column(&column) {
                            Some(position) => Transformed::yes(relation.slots[position].clone()),
                            None => Transformed::no(Expr::Column(column)),
                        },
                        Expr::Alias(alias) => Transformed::yes(*alias.expr),
                        Expr::ScalarFunction(call) => field_of_row(call),
                        other => Transformed::no(other),
                    })
                })
                .map_err(|error| plan_problem(&error, &self.tokens))?;
            seen.push(expr.data);
        }
        Ok((relation, seen))
    }

    fn refuse_subqueries(&self, expr: &Expr) -> Result<(), Problem> {
        let found = expr
            .exists(|node| {
                Ok(matches!(
                    node,
                    Expr::Exists(_)
                        | Expr::InSubquery(_)
                        | Expr::ScalarSubquery(_)
                        | Expr::SetComparison(_)
                        | Expr::OuterReferenceColumn(..)
                ))
            })
            .expect("walking an expression does not fail");
        match found {
            true => {
                let place = find_subquery(&self.tokens);
                Err(unsupported(
                    place,
                    "a subquery in an expression is not supported in a job yet",
                )
                .hint("Aggregate or filter in one query, and read its result in the next."))
            }
            false => Ok(()),
        }
    }

    /// Computes the slots, so that the rows have exactly these columns. Nothing is added if they already do.
    fn materialize(&mut self, relation: Relation, names: &[String]) -> Result<Relation, Problem> {
        let mut slots = relation.slots.clone();
        if let Some(window) = &relation.window {
            for slot in &mut slots {
                *slot = self.placed_bounds(slot.clone(), window, &relation.node)?;
            }
        }
        let is_identity = relation.node.columns.len() == slots.len()
            && slots
                .iter()
                .zip(names)
                .zip(&relation.node.columns)
                .all(|((slot, name), column)| {
                    matches!(slot, Expr::Column(c) if c.name == column.name) && *name == column.name
                });
        if is_identity {
            return Ok(Relation {
                slots,
                window: None,
                ..relation
            });
        }
        let columns = slots
            .iter()
            .zip(names)
            .map(|(slot, name)| self.named(slot, &relation.node, name.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        self.project(relation, columns, names, None)
    }

    fn project(
        &mut self,
        relation: Relation,
        columns: Vec<NamedExpression>,
        names: &[String],
        kind: Option<&'static str>,
    ) -> Result<Relation, Problem> {
        let spec = OperatorSpec::Project(Project {
            id: String::new(),
            inputs: Vec::new(),
            columns,
        });
        let shape = Relation {
            slots: names.iter().map(|name| plain_column(name)).collect(),
            window: None,
            spent: BTreeSet::new(),
            kind,
            ..relation.clone()
        };
        self.add(spec, vec![relation], shape)
    }

    /// Drops columns that only conditions needed before rows travel between tasks.
    fn without_spent(&mut self, relation: Relation, used: &[&Expr]) -> Result<Relation, Problem> {
        let mut needed = columns_of(used.iter().copied());
        if relation.window.is_some() {
            needed.extend(relation.node.time.clone());
        }
        if relation.spent.iter().all(|column| needed.contains(column)) {
            return Ok(relation);
        }
        let (slots, window) = (relation.slots.clone(), relation.window.clone());
        let mut names = Vec::new();
        for column in &relation.node.columns {
            if needed.contains(&column.name) {
                names.push(column.name.clone());
            }
        }
        if names.is_empty() {
            // Rows without columns cannot be counted.
            return Ok(relation);
        }
        let columns = names
            .iter()
            .map(|name| NamedExpression {
                expr: Expression::column(name),
                name: name.clone(),
            })
            .collect();
        let projected = self.project(relation, columns, &names, Some("columns"))?;
        Ok(Relation {
            slots,
            window,
            ..projected
        })
    }

    /// A window's bounds as expressions over a row's time, where each row is in one window.
    fn placed_bounds(&self, expr: Expr, window: &Unplaced, node: &Node) -> Result<Expr, Problem> {
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
        let kind = node
            .columns
            .iter()
            .find(|column| column.name == time)
            .expect("event time is one of the columns")
            .kind
            .to_arrow();
        let failed = |error| plan_problem(&error, &self.tokens);
        let interval = |span: Span| -> Result<Expr, Problem> {
            let nanoseconds = i64::try_from(span.0)
                .ok()
                .and_then(|ms| ms.checked_mul(1_000_000))
                .ok_or_else(|| {
                    Problem::new(
                        ErrorCode::SqlPlan,
                        format!("a window of {span} is too long"),
                    )
                })?;
            Ok(Expr::Literal(
                ScalarValue::new_interval_mdn(0, 0, nanoseconds),
                None,
            ))
        };
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
        let schema = df_schema(&node.columns)?;
        let of_kind = |bound: Expr| -> Result<Expr, Problem> {
            let typed = bound.get_type(schema.as_ref()).map_err(failed)?;
            Ok(match typed == kind {
                true => bound,
                false => cast(bound, kind.clone()),
            })
        };
        let start = bin.call(args);
        let end = of_kind(start.clone() + interval(*size)?)?;
        let start = of_kind(start)?;
        let placed = expr.transform_up(|expr| {
            Ok(match unplaced_name(&expr) {
                Some(WINDOW_START) => Transformed::yes(start.clone()),
                Some(_) => Transformed::yes(end.clone()),
                None => Transformed::no(expr),
            })
        });
        Ok(placed.map_err(failed)?.data)
    }

    fn write(&self, expr: &Expr, node: &Node) -> Result<Expression, Problem> {
        let schema = df_schema(&node.columns)?;
        expression_text::write(self.functions, expr, &schema).map_err(|problem| {
            let called = problem
                .detail
                .split("()")
                .next()
                .unwrap_or_default()
                .to_owned();
            self.placed(problem, &called)
        })
    }

    fn named(&self, expr: &Expr, node: &Node, name: String) -> Result<NamedExpression, Problem> {
        Ok(NamedExpression {
            expr: self.write(expr, node)?,
            name,
        })
    }

    /// Adds an operator over these inputs. `shape` says how the plan's columns are seen in its output.
    fn add(
        &mut self,
        spec: OperatorSpec,
        inputs: Vec<Relation>,
        shape: Relation,
    ) -> Result<Relation, Problem> {
        let nodes: Vec<&Node> = inputs.iter().map(|input| &input.node).collect();
        let node = operator_node(self.functions, &spec, &nodes, "").map_err(|mut problem| {
            // The pointer into the graph means nothing to who wrote SQL; the function it speaks of does.
            problem.at = None;
            let word = problem
                .detail
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned();
            self.placed(problem, &word)
        })?;
        let sources: BTreeSet<String> = inputs
            .iter()
            .flat_map(|input| input.sources.iter().cloned())
            .collect();
        let label = Label {
            sink: self.sink.clone(),
            sources: sources.iter().cloned().collect(),
            kind: shape.kind,
        };
        self.drafts.push(Draft {
            spec,
            inputs: inputs.into_iter().map(|input| input.input).collect(),
            label,
        });
        Ok(Relation {
            input: Input::Operator(self.drafts.len() - 1),
            node,
            sources,
            kind: None,
            ..shape
        })
    }
}

/// The spec with its id and inputs.
fn placed(mut spec: OperatorSpec, to: String, from: Vec<String>) -> OperatorSpec {
    let (id, inputs) = match &mut spec {
        OperatorSpec::Filter(filter) => (&mut filter.id, &mut filter.inputs),
        OperatorSpec::Project(project) => (&mut project.id, &mut project.inputs),
        OperatorSpec::Union(union) => (&mut union.id, &mut union.inputs),
        OperatorSpec::WindowAggregate(window) => (&mut window.id, &mut window.inputs),
        OperatorSpec::Aggregate(aggregate) => (&mut aggregate.id, &mut aggregate.inputs),
        OperatorSpec::Custom(custom) => (&mut custom.id, &mut custom.inputs),
    };
    *id = to;
    *inputs = from;
    spec
}

fn plain_column(name: &str) -> Expr {
    Expr::Column(SqlColumn::new_unqualified(name))
}

fn unplaced_bound(name: &str) -> Expr {
    Expr::Column(SqlColumn::new(Some(UNPLACED), name))
}

/// Which bound of an unplaced window the expression is.
fn unplaced_name(expr: &Expr) -> Option<&'static str> {
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
fn is_unplaced(expr: &Expr) -> bool {
    expr.exists(|node| Ok(unplaced_name(node).is_some()))
        .expect("walking an expression does not fail")
}

fn bare(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => bare(&alias.expr),
        other => other,
    }
}

/// What is under an alias and a conversion of type.
fn converted(expr: &Expr) -> &Expr {
    match bare(expr) {
        Expr::Cast(cast) => bare(&cast.expr),
        other => other,
    }
}

/// Whether computing it once more costs nothing worth an operator.
fn costs_nothing(expr: &Expr) -> bool {
    match expr {
        Expr::Column(_) | Expr::Literal(..) => true,
        Expr::ScalarFunction(call) if call.name() == "named_struct" => {
            call.args.iter().all(costs_nothing)
        }
        _ => false,
    }
}

/// A field of a row that is put together on the spot is that field's value.
fn field_of_row(call: ScalarFunction) -> Transformed<Expr> {
    if call.name() == "get_field"
        && let [
            Expr::ScalarFunction(row),
            Expr::Literal(ScalarValue::Utf8(Some(wanted)), _),
        ] = call.args.as_slice()
        && row.name() == "named_struct"
    {
        let value = row.args.chunks_exact(2).find_map(|pair| match pair {
            [Expr::Literal(ScalarValue::Utf8(Some(name)), _), value] if name == wanted => {
                Some(value.clone())
            }
            _ => None,
        });
        if let Some(value) = value {
            return Transformed::yes(value);
        }
    }
    Transformed::no(Expr::ScalarFunction(call))
}

fn columns_of<'e>(exprs: impl IntoIterator<Item = &'e Expr>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for expr in exprs {
        expr.apply(|node| {
            if let Expr::Column(column) = node
                && unplaced_name(node).is_none()
            {
                names.insert(column.name.clone());
            }
            Ok(TreeNodeRecursion::Continue)
        })
        .expect("walking an expression does not fail");
    }
    names
}

fn field_names(schema: &DFSchema) -> Vec<String> {
    schema
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .collect()
}

/// The consumer's name for a column if it is a plain word, else the fallback.
fn chosen(wanted: &Wanted, position: usize, fallback: String) -> String {
    let is_plain = |name: &String| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match wanted.get(position).cloned().flatten() {
        Some(name) if is_plain(&name) => name,
        _ => fallback,
    }
}

/// The names, with numbers behind those that are taken.
fn unique(names: Vec<String>, reserved: &[&str]) -> Vec<String> {
    let mut taken: BTreeSet<String> = reserved.iter().map(|name| (*name).to_owned()).collect();
    names
        .into_iter()
        .map(|name| {
            let mut free = name.clone();
            let mut number = 2;
            while !taken.insert(free.clone()) {
                free = format!("{name}_{number}");
                number += 1;
            }
            free
        })
        .collect()
}
