//! SQL expression text → typed DataFusion expression: what a text means over an edge's columns.
//!
//! Workers read the same texts in the same way: DataFusion's default dialect, functions and type
//! coercion, then constant folding. So what is typed here is what is evaluated there.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::limits::MAX_EXPRESSION_DEPTH;
use common::plan::aggregate_function::offered;
use common::plan::expression::Expression;
use common::plan::operator::AggregateCall;
use common::schema::{Column, to_arrow_schema};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DFSchemaRef, DataFusionError, TableReference};
use datafusion::execution::SessionStateDefaults;
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{
    AggregateUDF, Expr, ExprSchemable, HigherOrderUDF, ScalarUDF, TableSource, Volatility,
    WindowUDF, lit,
};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::create_physical_expr;
use datafusion::sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast::Expr as SqlExpr;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::bounds::check_depth;
use super::problems::plan_problem;
use super::tokens::{Place, parser, parser_problem, syntax, tokenize};

/// The functions and options expressions are read with.
#[derive(Debug)]
pub(super) struct Functions {
    scalars: BTreeMap<String, Arc<ScalarUDF>>,
    aggregates: BTreeMap<String, Arc<AggregateUDF>>,
    planners: Vec<Arc<dyn ExprPlanner>>,
    options: Arc<ConfigOptions>,
}

/// An expression with its types made to fit and its constants folded.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Typed {
    pub(super) expr: Expr,
    pub(super) field: FieldRef,
}

impl Functions {
    pub(super) fn new() -> Functions {
        let mut options = ConfigOptions::new();
        // One Arrow type for text: edges carry Utf8.
        options.sql_parser.map_string_types_to_utf8view = false;
        options.sql_parser.collect_spans = true;
        let mut scalars = BTreeMap::new();
        for function in SessionStateDefaults::default_scalar_functions() {
            for alias in function.aliases() {
                scalars.insert(alias.clone(), Arc::clone(&function));
            }
            scalars.insert(function.name().to_owned(), function);
        }
        let mut aggregates = BTreeMap::new();
        for function in SessionStateDefaults::default_aggregate_functions() {
            for alias in function.aliases() {
                aggregates.insert(alias.clone(), Arc::clone(&function));
            }
            aggregates.insert(function.name().to_owned(), function);
        }
        Functions {
            scalars,
            aggregates,
            planners: SessionStateDefaults::default_expr_planners(),
            options: Arc::new(options),
        }
    }

    pub(super) fn scalar(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.scalars.get(name).cloned()
    }

    pub(super) fn aggregate(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.aggregates.get(name).cloned()
    }

    pub(super) fn options(&self) -> &Arc<ConfigOptions> {
        &self.options
    }

    pub(super) fn planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.planners
    }

    pub(super) fn scalar_names(&self) -> Vec<String> {
        self.scalars.keys().cloned().collect()
    }

    pub(super) fn aggregate_names(&self) -> Vec<String> {
        self.aggregates.keys().cloned().collect()
    }

    pub(super) fn parser_options(&self) -> ParserOptions {
        ParserOptions::from(&self.options.sql_parser)
    }

    /// Reads a text over these columns and types it.
    pub(super) fn compile(
        &self,
        text: &Expression,
        columns: &DFSchemaRef,
    ) -> Result<Typed, Problem> {
        let parsed = self.parse(&text.0, columns)?;
        refuse_non_scalar(&parsed)?;
        let expr = self
            .canonical(parsed, columns)
            .map_err(|error| plan_problem(&error, &[]))?;
        self.typed(expr, columns)
    }

    /// Reads a condition.
    pub(super) fn compile_predicate(
        &self,
        text: &Expression,
        columns: &DFSchemaRef,
    ) -> Result<Typed, Problem> {
        let typed = self.compile(text, columns)?;
        match typed.field.data_type() {
            DataType::Boolean | DataType::Null => Ok(typed),
            other => Err(Problem::new(
                ErrorCode::SqlPlan,
                format!("\"{text}\" is no condition: its type is {other}"),
            )),
        }
    }

    /// Reads an aggregate call over these columns. Its expression is an aggregate function whose
    /// arguments have the types the function takes. `retract`: rows may be taken back.
    pub(super) fn compile_aggregate(
        &self,
        call: &AggregateCall,
        columns: &DFSchemaRef,
        retract: bool,
    ) -> Result<Typed, Problem> {
        let offered = offered(&call.function, call.distinct, retract)?;
        let function = self
            .aggregate(offered.name)
            .expect("every offered aggregate is one of DataFusion's");
        let mut args = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            args.push(self.compile(arg, columns)?.expr);
        }
        if args.is_empty() && function.name() == "count" {
            args.push(lit(1_i64));
        }
        let filter = match &call.filter {
            Some(filter) => Some(Box::new(self.compile_predicate(filter, columns)?.expr)),
            None => None,
        };
        if args.len() > 1 && function.name() == "count" {
            let problem = Problem::new(ErrorCode::SqlPlan, "count takes one argument at most");
            return Err(problem.hint("Count a row of them: count(named_struct('a', a, 'b', b))."));
        }
        let expr = Expr::AggregateFunction(AggregateFunction::new_udf(
            function,
            args,
            call.distinct,
            filter,
            Vec::new(),
            None,
        ));
        let expr = self
            .canonical(expr, columns)
            .map_err(|error| plan_problem(&error, &[]))?;
        let (_, field) = expr
            .to_field(columns.as_ref())
            .map_err(|error| plan_problem(&error, &[]))?;
        Ok(Typed { expr, field })
    }

    /// The columns a text names.
    pub(super) fn columns_of(
        &self,
        text: &Expression,
        columns: &DFSchemaRef,
    ) -> Result<Vec<String>, Problem> {
        let parsed = self.parse(&text.0, columns)?;
        let names = parsed.column_refs();
        Ok(names
            .into_iter()
            .map(|column| column.name.clone())
            .collect())
    }

    /// An expression without columns, as it was parsed.
    pub(super) fn constant(&self, parsed: &SqlExpr) -> Result<Expr, Problem> {
        check_depth(parsed)?;
        let names = NoTables { functions: self };
        SqlToRel::new_with_options(&names, self.parser_options())
            .sql_to_expr(
                parsed.clone(),
                &DFSchema::empty(),
                &mut PlannerContext::new(),
            )
            .map_err(|error| plan_problem(&error, &[]))
    }

    /// Types made to fit, constants folded: two texts that mean the same evaluation become equal.
    pub(super) fn canonical(
        &self,
        expr: Expr,
        columns: &DFSchemaRef,
    ) -> Result<Expr, DataFusionError> {
        let context = SimplifyContext::builder()
            .with_schema(Arc::clone(columns))
            .with_config_options(Arc::clone(&self.options))
            .build();
        let simplifier = ExprSimplifier::new(context);
        let coerced = simplifier.coerce(expr, columns)?;
        simplifier.simplify(coerced)
    }

    fn parse(&self, text: &str, columns: &DFSchemaRef) -> Result<Expr, Problem> {
        let tokens = tokenize(text)?;
        let end = match tokens.last() {
            Some(last) => last.span.end.into(),
            None => {
                return Err(syntax(
                    Place { line: 1, column: 1 },
                    "the expression is empty",
                ));
            }
        };
        let mut parser = parser(tokens.clone());
        let parsed = parser
            .parse_expr()
            .map_err(|error| parser_problem(&error, end))?;
        let left = parser.peek_token();
        if left.token != Token::EOF {
            return Err(syntax(
                left.span.start.into(),
                format!(
                    "expected the end of the expression, found \"{}\"",
                    left.token
                ),
            ));
        }
        check_depth(&parsed)?;
        let names = NoTables { functions: self };
        SqlToRel::new_with_options(&names, self.parser_options())
            .sql_to_expr(parsed, columns, &mut PlannerContext::new())
            .map_err(|error| plan_problem(&error, &tokens))
    }

    /// The type, after a check that the expression can be evaluated at all.
    fn typed(&self, expr: Expr, columns: &DFSchemaRef) -> Result<Typed, Problem> {
        let failed = |error: DataFusionError| plan_problem(&error, &[]);
        if depth(&expr) > MAX_EXPRESSION_DEPTH {
            return Err(Problem::new(
                ErrorCode::SqlPlan,
                format!("an expression nests deeper than {MAX_EXPRESSION_DEPTH} levels"),
            )
            .hint("Compute a part of it in a view first; write long OR chains as IN (…)."));
        }
        let (_, field) = expr.to_field(columns.as_ref()).map_err(failed)?;
        create_physical_expr(&expr, columns, &ExecutionProps::new(), &Default::default())
            .map_err(failed)?;
        Ok(Typed { expr, field })
    }
}

/// The columns of an edge as DataFusion sees them.
pub(super) fn df_schema(columns: &[Column]) -> Result<DFSchemaRef, Problem> {
    DFSchema::try_from(to_arrow_schema(columns))
        .map(Arc::new)
        .map_err(|error| plan_problem(&error, &[]))
}

/// The column that a computed field becomes on an edge.
pub(super) fn column(name: &str, field: &Field) -> Result<Column, Problem> {
    let renamed = field.clone().with_name(name);
    Column::from_field(&renamed).map_err(|arrow| {
        Problem::new(
            ErrorCode::SqlPlan,
            format!("the column \"{name}\" has the type {arrow}, which rows cannot carry"),
        )
        .hint("Cast it, for example to VARCHAR, BIGINT or TIMESTAMP(3).")
    })
}

/// A row's value must not depend on when it is computed: after a failure it is computed again.
pub(super) fn refuse_volatile(expr: &Expr) -> Result<(), Problem> {
    let mut found = None;
    let walked = expr.apply(|node| {
        if let Expr::ScalarFunction(function) = node
            && function.func.signature().volatility != Volatility::Immutable
        {
            found = Some(function.name().to_owned());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    walked.expect("walking an expression does not fail");
    match found {
        Some(name) => Err(Problem::new(
            ErrorCode::UnsupportedFeature,
            format!("{name}() gives another value each time it is computed"),
        )
        .hint(
            "Rows are computed again after a failure and must come out the same; use a column of the rows.",
        )),
        None => Ok(()),
    }
}

/// In an operator's expression there are only values of one row.
fn refuse_non_scalar(expr: &Expr) -> Result<(), Problem> {
    refuse_volatile(expr)?;
    let mut found = None;
    let walked = expr.apply(|node| {
        found = match node {
            Expr::AggregateFunction(_) => Some("an aggregate function"),
            Expr::WindowFunction(_) => Some("OVER"),
            Expr::Exists(_)
            | Expr::InSubquery(_)
            | Expr::SetComparison(_)
            | Expr::ScalarSubquery(_) => Some("a subquery"),
            Expr::Unnest(_) => Some("UNNEST"),
            Expr::Placeholder(_) => Some("a parameter"),
            Expr::ScalarVariable(..) => Some("a variable"),
            Expr::HigherOrderFunction(_) | Expr::Lambda(_) | Expr::LambdaVariable(_) => {
                Some("a lambda")
            }
            _ => None,
        };
        Ok(match found {
            Some(_) => TreeNodeRecursion::Stop,
            None => TreeNodeRecursion::Continue,
        })
    });
    walked.expect("walking an expression does not fail");
    match found {
        Some(what) => Err(Problem::new(
            ErrorCode::UnsupportedFeature,
            format!("{what} cannot stand in an operator's expression"),
        )),
        None => Ok(()),
    }
}

fn depth(expr: &Expr) -> usize {
    let mut deepest = 0;
    expr.apply_children(|child| {
        deepest = deepest.max(depth(child));
        Ok(TreeNodeRecursion::Continue)
    })
    .expect("walking an expression does not fail");
    deepest + 1
}

/// Names as an operator's expression sees them: functions, and the columns of its input.
struct NoTables<'a> {
    functions: &'a Functions,
}

impl ContextProvider for NoTables<'_> {
    fn get_table_source(
        &self,
        name: TableReference,
    ) -> Result<Arc<dyn TableSource>, DataFusionError> {
        let problem = Problem::new(
            ErrorCode::UnsupportedFeature,
            format!("\"{name}\": an operator's expression cannot query a table"),
        );
        Err(DataFusionError::External(Box::new(problem)))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.functions.planners()
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.functions.scalar(name)
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
        self.functions.scalar_names()
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
