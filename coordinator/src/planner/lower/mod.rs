//! Logical plans → the operators of a job graph.
//!
//! Projections are put off until something needs their columns, so that a chain of them, or one that
//! only renames, costs no operator. Windows are put off until the aggregate over them.

mod columns;
mod window;
mod aggregate;

use std::collections::{BTreeMap, BTreeSet};

use common::error::{ErrorCode, Problem};
use common::plan::JobGraph;
use common::plan::aggregate_function::OFFERED;
use common::plan::connector::SourceSpec;
use common::plan::expression::{Expression, NamedExpression};
use common::plan::operator::{Filter, OperatorSpec, Union};
use common::plan::window::WindowSpec;
use common::time::Span;
use datafusion::common::DFSchema;
use datafusion::logical_expr::logical_plan as logical;
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan};
use datafusion::sql::sqlparser::tokenizer::TokenWithSpan;

use super::catalog::Declared;
use super::expression_text;
use super::expressions::{Functions, df_schema};
use super::names::{Label, name_operators};
use super::problems::{find_quoted, find_word};
use super::sql::PlannedInsert;
use super::tokens::unsupported;
use super::typing::{Node, operator_node, source_node};
use super::windows::WindowNode;
use columns::{chosen, columns_of, converted, field_names, plain_column, unique};
use window::is_unplaced;

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
        self.lower_insert(&insert.plan)
            .map_err(|problem| match problem.at {
                Some(_) => problem,
                // Somewhere in this statement is better than nowhere.
                None => match find_quoted(&problem.detail, &self.tokens) {
                    Some(place) => problem.at(place.to_string()),
                    None => problem,
                },
            })
    }

    fn lower_insert(&mut self, plan: &LogicalPlan) -> Result<(), Problem> {
        let names: Vec<String> = field_names(plan.schema());
        let wanted = names.iter().cloned().map(Some).collect();
        let relation = self.lower(plan, wanted)?;
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
            LogicalPlan::Distinct(Distinct::All(input)) => self.distinct(input, &wanted),
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
        let node =
            source_node(&self.sources[&name], "").map_err(|problem| table.placed(problem))?;
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

    fn union(&mut self, inputs: Vec<Relation>) -> Result<Relation, Problem> {
        let shape = inputs[0].clone();
        let spec = OperatorSpec::Union(Union {
            id: String::new(),
            inputs: Vec::new(),
        });
        self.add(spec, inputs, shape)
    }

    fn placed(&self, problem: Problem, word: &str) -> Problem {
        match (find_word(word, &self.tokens), &problem.at) {
            (Some(place), None) => problem.at(place.to_string()),
            _ => problem,
        }
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
            let first = problem.detail.split(' ').next().unwrap_or_default();
            let is_function = OFFERED.iter().any(|function| function.name == first);
            let words: &[&str] = match &spec {
                _ if is_function => &[first],
                OperatorSpec::WindowAggregate(_) => &["tumble", "hop"],
                _ => &[],
            };
            let place = words.iter().find_map(|word| find_word(word, &self.tokens));
            problem.at = place.map(|place| place.to_string());
            problem
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
