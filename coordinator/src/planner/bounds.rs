//! How much a query may ask for: known from what was parsed, before anything is planned.
//!
//! What is planned grows with what was parsed, not with the text: a view that is read twice is planned twice,
//! and a chain of operators is a tree as deep as the chain is long. Both are bounded here, where a query is
//! still only names.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use common::error::{ErrorCode, Problem};
use common::limits::{MAX_EXPRESSION_DEPTH, MAX_RELATIONS};
use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, Ident, ObjectName, Query, Select, SetExpr, SetOperator,
    TableFactor, Visit, Visitor,
};
use datafusion::sql::sqlparser::tokenizer::TokenWithSpan;

use super::parse::Statement;
use super::problems::find_word;
use super::tokens::{Place, unsupported};

/// Refuses a text whose queries are too much or too deep, or read several tables at once.
pub(super) fn check(statements: &[Statement]) -> Result<(), Problem> {
    let mut relations = Relations::default();
    for statement in statements {
        match statement {
            Statement::Table(_) => {}
            Statement::View(view) => {
                let weight = relations.count(&view.query, &view.tokens)?;
                relations.views.insert(view.name.value.clone(), weight);
            }
            Statement::Insert(insert) => {
                relations.count(&insert.query, &insert.tokens)?;
            }
        }
    }
    Ok(())
}

/// What the queries of one text read, each relation as often as it is planned.
#[derive(Debug, Default)]
struct Relations {
    /// How many are behind each view.
    views: BTreeMap<String, usize>,
    total: usize,
}

impl Relations {
    fn count(&mut self, query: &Query, tokens: &[TokenWithSpan]) -> Result<usize, Problem> {
        let mut walk = Walk {
            views: &self.views,
            tokens,
            left: MAX_RELATIONS - self.total,
            depth: 0,
            scopes: Vec::new(),
            weight: 0,
        };
        if let ControlFlow::Break(problem) = query.visit(&mut walk) {
            return Err(*problem);
        }
        let weight = walk.weight;
        self.total += weight;
        Ok(weight)
    }
}

/// Refuses an expression that is too deep to be planned.
pub(super) fn check_depth(expr: &Expr) -> Result<(), Problem> {
    let mut depth = Depth(0);
    match expr.visit(&mut depth) {
        ControlFlow::Break(problem) => Err(*problem),
        ControlFlow::Continue(()) => Ok(()),
    }
}

/// Stops at the first level that is too deep, so that the walk itself never is.
struct Depth(usize);

impl Depth {
    fn enter(&mut self, expr: &Expr) -> ControlFlow<Box<Problem>> {
        self.0 += 1;
        if self.0 <= MAX_EXPRESSION_DEPTH {
            return ControlFlow::Continue(());
        }
        let problem = Problem::new(
            ErrorCode::SqlSyntax,
            format!("an expression nests deeper than {MAX_EXPRESSION_DEPTH} levels"),
        )
        .hint(
            "Each operator of a chain is a level: write long OR chains as IN (…), or compute a part of it in \
             a view first.",
        );
        ControlFlow::Break(Box::new(match first_place(expr) {
            Some(place) => problem.at(place.to_string()),
            None => problem,
        }))
    }
}

impl Visitor for Depth {
    type Break = Box<Problem>;

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Self::Break> {
        self.enter(expr)
    }

    fn post_visit_expr(&mut self, _expr: &Expr) -> ControlFlow<Self::Break> {
        self.0 -= 1;
        ControlFlow::Continue(())
    }
}

/// The place of the leftmost name or constant; a chain's beginning.
fn first_place(mut expr: &Expr) -> Option<Place> {
    let of = |ident: &Ident| Some(ident.span.start.into());
    let place: Option<Place> = loop {
        expr = match expr {
            Expr::BinaryOp { left, .. } => left,
            Expr::UnaryOp { expr, .. }
            | Expr::Nested(expr)
            | Expr::Cast { expr, .. }
            | Expr::IsNull(expr)
            | Expr::IsNotNull(expr)
            | Expr::IsTrue(expr)
            | Expr::IsFalse(expr)
            | Expr::Between { expr, .. }
            | Expr::Like { expr, .. }
            | Expr::InList { expr, .. } => expr,
            Expr::CompoundFieldAccess { root, .. } => root,
            Expr::Identifier(ident) => break of(ident),
            Expr::CompoundIdentifier(idents) => break idents.first().and_then(of),
            Expr::Value(value) => break Some(value.span.start.into()),
            Expr::Case { case_token, .. } => break Some(case_token.0.span.start.into()),
            Expr::Function(call) => {
                break call.name.0.first().and_then(|part| of(part.as_ident()?));
            }
            _ => break None,
        };
    };
    place.filter(|place| place.line > 0)
}

struct Walk<'a> {
    views: &'a BTreeMap<String, usize>,
    tokens: &'a [TokenWithSpan],
    left: usize,
    depth: usize,
    scopes: Vec<Scope>,
    /// Of the whole query, once it has been walked.
    weight: usize,
}

/// A query that is being walked.
#[derive(Default)]
struct Scope {
    /// What its WITH clause names and has not been walked yet, in order.
    waiting: VecDeque<String>,
    /// What it names, with what is behind it.
    named: BTreeMap<String, usize>,
    weight: usize,
}

impl Walk<'_> {
    fn add(&mut self, weight: usize) -> ControlFlow<Box<Problem>> {
        let Some(scope) = self.scopes.last_mut() else {
            return ControlFlow::Continue(());
        };
        scope.weight = scope.weight.saturating_add(weight);
        if scope.weight <= self.left {
            return ControlFlow::Continue(());
        }
        let problem = Problem::new(
            ErrorCode::SqlPlan,
            format!("the queries of a job read at most {MAX_RELATIONS} tables together"),
        )
        .hint(
            "A view counts with all that it reads, as often as it is read. Split the job: write what is read \
             often to a topic, and read that.",
        );
        let place = self
            .tokens
            .first()
            .map(|token| Place::from(token.span.start));
        ControlFlow::Break(Box::new(match place {
            Some(place) => problem.at(place.to_string()),
            None => problem,
        }))
    }

    fn weight_of(&self, name: &Ident) -> usize {
        let folded = match name.quote_style {
            Some(_) => name.value.clone(),
            None => name.value.to_ascii_lowercase(),
        };
        let in_scope = self
            .scopes
            .iter()
            .rev()
            .find_map(|scope| scope.named.get(&folded));
        in_scope
            .or_else(|| self.views.get(&folded))
            .copied()
            .unwrap_or(1)
    }

    fn refuse_other_than_union(&self, query: &Query) -> ControlFlow<Box<Problem>> {
        let mut sets = vec![query.body.as_ref()];
        while let Some(set) = sets.pop() {
            let SetExpr::SetOperation {
                op, left, right, ..
            } = set
            else {
                continue;
            };
            if *op != SetOperator::Union {
                let word = op.to_string();
                let place = find_word(&word, self.tokens);
                return ControlFlow::Break(Box::new(
                    unsupported(place, format!("{word} is not supported in a job yet"))
                        .hint("There is UNION ALL."),
                ));
            }
            sets.extend([left.as_ref(), right.as_ref()]);
        }
        ControlFlow::Continue(())
    }

    fn refuse_join(&self, place: Option<Place>) -> ControlFlow<Box<Problem>> {
        let place = place.or_else(|| find_word("join", self.tokens));
        ControlFlow::Break(Box::new(
            unsupported(place, "JOIN is not supported in a job yet").hint(
                "Read one table per query; UNION ALL puts rows of the same columns together.",
            ),
        ))
    }
}

impl Visitor for Walk<'_> {
    type Break = Box<Problem>;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Self::Break> {
        self.refuse_other_than_union(query)?;
        if query.with.as_ref().is_some_and(|with| with.recursive) {
            let place = find_word("recursive", self.tokens);
            return ControlFlow::Break(Box::new(
                unsupported(place, "WITH RECURSIVE is not supported in a job yet")
                    .hint("A query reads tables and views that were there before it."),
            ));
        }
        let waiting = query.with.iter().flat_map(|with| &with.cte_tables);
        let name = |ident: &Ident| match ident.quote_style {
            Some(_) => ident.value.clone(),
            None => ident.value.to_ascii_lowercase(),
        };
        self.scopes.push(Scope {
            waiting: waiting.map(|cte| name(&cte.alias.name)).collect(),
            ..Scope::default()
        });
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &Query) -> ControlFlow<Self::Break> {
        let done = self.scopes.pop().expect("every query was entered");
        match self.scopes.last_mut() {
            None => self.weight = done.weight,
            Some(outer) => match outer.waiting.pop_front() {
                Some(name) => {
                    outer.named.insert(name, done.weight);
                }
                None => return self.add(done.weight),
            },
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Self::Break> {
        if let [_, second, ..] = select.from.as_slice() {
            let place = match &second.relation {
                TableFactor::Table { name, .. } => {
                    let first = name.0.first().and_then(|part| part.as_ident());
                    first.map(|ident| ident.span.start.into())
                }
                _ => None,
            };
            return self.refuse_join(place);
        }
        match select.from.iter().any(|from| !from.joins.is_empty()) {
            true => self.refuse_join(None),
            false => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<Self::Break> {
        let weight = match relation.0.as_slice() {
            [part] => part.as_ident().map_or(1, |name| self.weight_of(name)),
            _ => 1,
        };
        self.add(weight)
    }

    /// `TUMBLE(a_view, …)`: the view is an argument.
    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Self::Break> {
        let TableFactor::Table {
            args: Some(args), ..
        } = factor
        else {
            return ControlFlow::Continue(());
        };
        for arg in &args.args {
            let (FunctionArg::Unnamed(arg)
            | FunctionArg::Named { arg, .. }
            | FunctionArg::ExprNamed { arg, .. }) = arg;
            if let FunctionArgExpr::Expr(Expr::Identifier(name)) = arg {
                let weight = self.weight_of(name);
                self.add(weight)?;
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Self::Break> {
        let mut depth = Depth(self.depth);
        depth.enter(expr)?;
        self.depth = depth.0;
        if matches!(expr, Expr::Function(call) if call.over.is_some()) {
            let place = find_word("over", self.tokens);
            return ControlFlow::Break(Box::new(
                unsupported(place, "OVER is not supported in a job yet")
                    .hint("Aggregate with GROUP BY: by keys, or in windows of time."),
            ));
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, _expr: &Expr) -> ControlFlow<Self::Break> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}
