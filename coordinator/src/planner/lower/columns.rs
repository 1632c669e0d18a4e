//! A plan's columns, seen through the columns of the operator they come from.

use std::collections::BTreeSet;

use common::error::{ErrorCode, Problem};
use common::plan::expression::{Expression, NamedExpression};
use common::plan::operator::{OperatorSpec, Project};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column as SqlColumn, DFSchema, ScalarValue};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr::ScalarFunction;

use super::window::unplaced_name;
use super::{Lowering, Relation, Wanted};
use crate::planner::problems::{find_subquery, plan_problem};
use crate::planner::rewrite_plan::stray_window;
use crate::planner::tokens::unsupported;

impl Lowering<'_> {
    /// Expressions over a plan's columns as expressions over its relation's. If they would compute a
    /// slot's expression again, the relation's slots are computed first.
    pub(super) fn seen_through(
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
    pub(super) fn materialize(
        &mut self,
        relation: Relation,
        names: &[String],
    ) -> Result<Relation, Problem> {
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

    pub(super) fn project(
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
    pub(super) fn without_spent(
        &mut self,
        relation: Relation,
        used: &[&Expr],
    ) -> Result<Relation, Problem> {
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
}

pub(super) fn plain_column(name: &str) -> Expr {
    Expr::Column(SqlColumn::new_unqualified(name))
}

pub(super) fn bare(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => bare(&alias.expr),
        other => other,
    }
}

/// What is under an alias and a conversion of type.
pub(super) fn converted(expr: &Expr) -> &Expr {
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

pub(super) fn columns_of<'e>(exprs: impl IntoIterator<Item = &'e Expr>) -> BTreeSet<String> {
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

pub(super) fn field_names(schema: &DFSchema) -> Vec<String> {
    schema
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .collect()
}

/// The consumer's name for a column if it is a plain word, else the fallback.
pub(super) fn chosen(wanted: &Wanted, position: usize, fallback: String) -> String {
    let is_plain = |name: &String| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match wanted.get(position).cloned().flatten() {
        Some(name) if is_plain(&name) => name,
        _ => fallback,
    }
}

/// The names, with numbers behind those that are taken.
pub(super) fn unique(names: Vec<String>, reserved: &[&str]) -> Vec<String> {
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
