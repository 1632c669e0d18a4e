//! SQL text → JobGraph: statements in order, each INSERT a logical plan, lowered into operators.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::plan::JobGraph;
use common::schema::{Column, to_arrow_schema};
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{DataFusionError, ExprSchema, ScalarValue, TableReference};
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner, RelationPlanner};
use datafusion::logical_expr::{
    AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, LogicalPlanBuilder, ScalarUDF, TableSource,
    WindowUDF, cast,
};
use datafusion::sql::planner::{PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast::{Query, Statement as SqlStatement};
use datafusion::sql::sqlparser::tokenizer::TokenWithSpan;

use super::bounds;
use super::catalog::{Declared, unescaped};
use super::expressions::Functions;
use super::lower::Lowering;
use super::parse::{Insert, Name, Statement, View, parse};
use super::problems::{nearest, plan_problem};
use super::rewrite_plan::{prepare, with_bare_windows};
use super::tokens::Place;
use super::windows::{WindowsInFrom, group_functions};

/// What a text compiles to.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) graph: JobGraph,
    pub(super) warnings: Vec<String>,
    tables: BTreeMap<String, Declared>,
    /// Where the first INSERT into each table names it.
    inserts: BTreeMap<String, Place>,
}

impl Compiled {
    /// What is said of the graph, at the place in the text: a pointer into a graph that its user has not
    /// written would not help.
    pub(super) fn placed(&self, mut problem: Problem) -> Problem {
        problem.at = problem.at.and_then(|at| match at.strip_prefix('/') {
            Some("parallelism") | None => Some(at),
            Some(pointer) => self.place_of(pointer).map(|place| place.to_string()),
        });
        problem
    }

    fn place_of(&self, pointer: &str) -> Option<Place> {
        let mut parts = pointer.splitn(3, '/');
        let (section, node) = (parts.next()?, unescaped(parts.next()?));
        let path = parts.next().unwrap_or_default();
        if section == "operators" {
            let operator = self.graph.operators.get(node.parse::<usize>().ok()?)?;
            let sink = self.sink_behind(operator.id())?;
            return self.inserts.get(self.table_of(sink)?).copied();
        }
        let table = self.table_of(&node)?;
        Some(self.tables[table].place_of(path))
    }

    /// The table that a source or a sink is of.
    fn table_of<'a>(&self, node: &'a str) -> Option<&'a str> {
        let of_sink = node.strip_suffix("-sink");
        [Some(node), of_sink]
            .into_iter()
            .flatten()
            .find(|table| self.tables.contains_key(*table))
    }

    /// A sink that rows of this node come to.
    fn sink_behind(&self, node: &str) -> Option<&str> {
        let mut reached = vec![node];
        let mut next = 0;
        while let Some(node) = reached.get(next).copied() {
            let sinks = self.graph.sinks.iter();
            if let Some((sink, _)) = sinks.into_iter().find(|(_, sink)| sink.input() == node) {
                return Some(sink);
            }
            let readers = self.graph.operators.iter();
            for reader in readers.filter(|reader| reader.inputs().iter().any(|i| i == node)) {
                if !reached.contains(&reader.id()) {
                    reached.push(reader.id());
                }
            }
            next += 1;
        }
        None
    }
}

/// Compiles a text of statements.
pub(super) fn compile(text: &str, functions: &Arc<Functions>) -> Result<Compiled, Problem> {
    let statements = parse(text)?;
    bounds::check(&statements)?;
    let mut script = Script::new(Arc::clone(functions));
    let mut inserts = Vec::new();
    let mut places = BTreeMap::new();
    for statement in statements {
        match statement {
            Statement::Table(table) => script.declare(Declared::new(*table, functions)?)?,
            Statement::View(view) => script.view(view)?,
            Statement::Insert(insert) => {
                let table = insert.table.clone();
                places.entry(table.value).or_insert(table.at);
                inserts.push(script.insert(insert)?);
            }
        }
    }
    if inserts.is_empty() {
        return Err(
            Problem::new(ErrorCode::SqlPlan, "the text inserts into no table")
                .hint("Add INSERT INTO a_table SELECT …"),
        );
    }
    let mut lowering = Lowering::new(functions, &script.tables);
    for insert in inserts {
        lowering.insert(insert)?;
    }
    let (graph, mut warnings) = lowering.finish()?;
    script.warn(&mut warnings, &graph);
    Ok(Compiled {
        graph,
        warnings,
        tables: script.tables,
        inserts: places,
    })
}

/// An INSERT, planned.
#[derive(Debug)]
pub(super) struct PlannedInsert {
    pub(super) sink: String,
    /// Its columns are the sink's, by position.
    pub(super) plan: LogicalPlan,
    /// To find the place of what cannot be done.
    pub(super) tokens: Vec<TokenWithSpan>,
}

/// The statements so far.
struct Script {
    functions: Arc<Functions>,
    tables: BTreeMap<String, Declared>,
    views: BTreeMap<String, (LogicalPlan, Vec<TokenWithSpan>)>,
    sources: BTreeMap<String, Arc<dyn TableSource>>,
    window_functions: BTreeMap<String, Arc<ScalarUDF>>,
    window_planners: Vec<Arc<dyn RelationPlanner>>,
}

impl Script {
    fn new(functions: Arc<Functions>) -> Script {
        let planner = WindowsInFrom {
            functions: Arc::clone(&functions),
        };
        Script {
            functions,
            tables: BTreeMap::new(),
            views: BTreeMap::new(),
            sources: BTreeMap::new(),
            window_functions: group_functions()
                .into_iter()
                .map(|function| (function.name().to_owned(), Arc::new(function)))
                .collect(),
            window_planners: vec![Arc::new(planner)],
        }
    }

    fn declare(&mut self, table: Declared) -> Result<(), Problem> {
        self.check_new(&table.table.name)?;
        let name = table.table.name.value.clone();
        let source = Columns(to_arrow_schema(&table.columns));
        self.sources.insert(name.clone(), Arc::new(source));
        self.tables.insert(name, table);
        Ok(())
    }

    fn check_new(&self, name: &Name) -> Result<(), Problem> {
        match self.tables.contains_key(&name.value) || self.views.contains_key(&name.value) {
            true => Err(Problem::new(
                ErrorCode::SqlPlan,
                format!("the name \"{}\" is declared twice", name.value),
            )
            .at(name.at.to_string())),
            false => Ok(()),
        }
    }

    fn view(&mut self, view: View) -> Result<(), Problem> {
        self.check_new(&view.name)?;
        let mut plan = self.query(*view.query, &view.tokens)?;
        if !view.columns.is_empty() {
            plan = renamed(plan, &view.columns, &view.name)?;
        }
        let aliased = LogicalPlanBuilder::from(plan)
            .alias(TableReference::bare(view.name.value.as_str()))
            .and_then(LogicalPlanBuilder::build)
            .map_err(|error| plan_problem(&error, &view.tokens))?;
        self.views.insert(view.name.value, (aliased, view.tokens));
        Ok(())
    }

    fn insert(&self, insert: Insert) -> Result<PlannedInsert, Problem> {
        let Some(sink) = self.tables.get(&insert.table.value) else {
            let names = self.tables.keys().map(String::as_str);
            let problem = Problem::new(
                ErrorCode::SqlPlan,
                format!("there is no table \"{}\"", insert.table.value),
            )
            .at(insert.table.at.to_string());
            return Err(match nearest(&insert.table.value, names) {
                Some(near) => problem.hint(format!("Did you mean \"{near}\"?")),
                None => problem.hint("Declare it with CREATE TABLE … WITH (…)."),
            });
        };
        let plan = self.query(*insert.query, &insert.tokens)?;
        let plan = as_sink_columns(plan, sink, &insert.table, &insert.columns)?;
        let plan = prepare(plan, &self.functions, &self.tables, &insert.tokens)?;
        Ok(PlannedInsert {
            sink: insert.table.value,
            plan,
            tokens: self.tokens_behind(insert.tokens),
        })
    }

    /// The insert's tokens, then those of the views it may read.
    fn tokens_behind(&self, mut tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
        for (_, view) in self.views.values() {
            tokens.extend_from_slice(view);
        }
        tokens
    }

    fn query(&self, query: Query, tokens: &[TokenWithSpan]) -> Result<LogicalPlan, Problem> {
        let mut context = PlannerContext::new();
        for (name, (plan, _)) in &self.views {
            context.insert_cte(name, plan.clone());
        }
        let statement = SqlStatement::Query(Box::new(query));
        let plan = SqlToRel::new_with_options(self, self.functions.parser_options())
            .sql_statement_to_plan_with_context(statement, &mut context)
            .map_err(|error| plan_problem(&error, tokens))?;
        with_bare_windows(plan, &self.functions, &self.tables, tokens)
    }

    fn warn(&self, warnings: &mut Vec<String>, graph: &JobGraph) {
        for (name, table) in &self.tables {
            let is_sink =
                graph.sinks.contains_key(name) || graph.sinks.contains_key(&format!("{name}-sink"));
            if !graph.sources.contains_key(name) && !is_sink {
                warnings.push(format!("the table \"{name}\" is not used"));
            }
            for folded in &table.table.folded {
                warnings.push(format!(
                    "the column {folded} of \"{name}\" is read as \"{}\"; write \"{folded}\" in double \
                     quotes to keep its capitals",
                    folded.to_ascii_lowercase()
                ));
            }
        }
    }
}

impl ContextProvider for Script {
    fn get_table_source(
        &self,
        name: TableReference,
    ) -> Result<Arc<dyn TableSource>, DataFusionError> {
        if let Some(source) = self.sources.get(name.table()) {
            return Ok(Arc::clone(source));
        }
        let known = self.sources.keys().chain(self.views.keys());
        let problem = Problem::new(
            ErrorCode::SqlPlan,
            format!("there is no table or view \"{}\"", name.table()),
        );
        let problem = match nearest(name.table(), known.map(String::as_str)) {
            Some(near) => problem.hint(format!("Did you mean \"{near}\"?")),
            None => problem.hint("Declare it before with CREATE TABLE … WITH (…)."),
        };
        Err(DataFusionError::External(Box::new(problem)))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.functions.planners()
    }

    fn get_relation_planners(&self) -> &[Arc<dyn RelationPlanner>] {
        &self.window_planners
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        let window = self.window_functions.get(name).cloned();
        window.or_else(|| self.functions.scalar(name))
    }

    fn get_higher_order_meta(&self, _name: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.functions.aggregate(name)
    }

    fn get_window_meta(&self, _name: &str) -> Option<Arc<WindowUDF>> {
        None
    }

    fn get_variable_type(&self, _names: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.functions.options()
    }

    fn udf_names(&self) -> Vec<String> {
        let mut names = self.functions.scalar_names();
        names.extend(self.window_functions.keys().cloned());
        names
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.functions.aggregate_names()
    }

    fn udwf_names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A declared table, to DataFusion. It filters nothing: conditions stay operators.
#[derive(Debug)]
struct Columns(SchemaRef);

impl TableSource for Columns {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.0)
    }
}

/// A view's own column names over its query's.
fn renamed(plan: LogicalPlan, names: &[Name], view: &Name) -> Result<LogicalPlan, Problem> {
    let columns = plan.schema().columns();
    if columns.len() != names.len() {
        return Err(Problem::new(
            ErrorCode::SqlPlan,
            format!(
                "the view \"{}\" names {} columns, its query has {}",
                view.value,
                names.len(),
                columns.len()
            ),
        )
        .at(view.at.to_string()));
    }
    let exprs: Vec<Expr> = columns
        .into_iter()
        .zip(names)
        .map(|(column, name)| Expr::Column(column).alias(name.value.as_str()))
        .collect();
    project(plan, exprs)
}

/// The query's columns as the sink's: by position, converted to its types.
fn as_sink_columns(
    plan: LogicalPlan,
    sink: &Declared,
    table: &Name,
    listed: &[Name],
) -> Result<LogicalPlan, Problem> {
    let given = plan.schema().columns();
    let declared = &sink.columns;
    if declared.is_empty() && listed.is_empty() {
        return Ok(plan);
    }
    let problem =
        |detail: String| Problem::new(ErrorCode::SqlPlan, detail).at(table.at.to_string());
    let targets: Vec<&str> = match listed.is_empty() {
        true => declared.iter().map(|column| column.name.as_str()).collect(),
        false => listed.iter().map(|name| name.value.as_str()).collect(),
    };
    if targets.len() != given.len() {
        return Err(problem(format!(
            "\"{}\" takes {} columns, the query has {}",
            table.value,
            targets.len(),
            given.len()
        ))
        .hint(
            "Columns go by position; list the ones you mean: INSERT INTO table (a, b) SELECT …",
        ));
    }
    for (i, name) in listed.iter().enumerate() {
        let known = declared.is_empty() || declared.iter().any(|column| column.name == name.value);
        if !known || targets[..i].contains(&name.value.as_str()) {
            let detail = match known {
                true => format!("the column \"{}\" is listed twice", name.value),
                false => format!("\"{}\" has no column \"{}\"", table.value, name.value),
            };
            return Err(problem(detail).at(name.at.to_string()));
        }
    }
    let exprs = match declared.is_empty() {
        true => given
            .into_iter()
            .zip(&targets)
            .map(|(column, name)| Expr::Column(column).alias(*name))
            .collect(),
        false => declared
            .iter()
            .map(|column| {
                let position = targets.iter().position(|name| *name == column.name);
                sink_column(column, position.map(|i| given[i].clone()), &plan, table)
            })
            .collect::<Result<Vec<_>, _>>()?,
    };
    project(plan, exprs)
}

/// One of a sink's columns: the query's, converted; or null if the query does not give it.
fn sink_column(
    column: &Column,
    given: Option<datafusion::common::Column>,
    plan: &LogicalPlan,
    table: &Name,
) -> Result<Expr, Problem> {
    let wanted = column.kind.to_arrow();
    let problem =
        |detail: String| Problem::new(ErrorCode::SqlPlan, detail).at(table.at.to_string());
    let Some(given) = given else {
        if !column.nullable {
            return Err(problem(format!(
                "the column \"{}\" of \"{}\" is NOT NULL, but the query does not give it",
                column.name, table.value
            )));
        }
        let null = ScalarValue::try_from(&wanted).map_err(|error| plan_problem(&error, &[]))?;
        return Ok(Expr::Literal(null, None).alias(column.name.as_str()));
    };
    let kind = plan
        .schema()
        .field_from_column(&given)
        .map_err(|error| plan_problem(&error, &[]))?
        .data_type()
        .clone();
    let expr = Expr::Column(given);
    let expr = match kind == wanted {
        true => expr,
        false => {
            if !datafusion::arrow::compute::can_cast_types(&kind, &wanted) {
                return Err(problem(format!(
                    "the column \"{}\" of \"{}\" is {}, which {kind} does not convert to",
                    column.name, table.value, column.kind
                ))
                .hint("CAST it in the query, or declare the column with another type."));
            }
            cast(expr, wanted)
        }
    };
    Ok(expr.alias(column.name.as_str()))
}

fn project(plan: LogicalPlan, exprs: Vec<Expr>) -> Result<LogicalPlan, Problem> {
    LogicalPlanBuilder::from(plan)
        .project(exprs)
        .and_then(LogicalPlanBuilder::build)
        .map_err(|error| plan_problem(&error, &[]))
}
