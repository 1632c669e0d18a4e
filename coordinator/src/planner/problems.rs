//! What SQL planning says when it fails → problem documents with a place and a next step.

use common::error::{ErrorCode, Problem};
use datafusion::common::{DataFusionError, SchemaError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::tokens::Place;

/// A planning error as a problem. `tokens`, if there are any, are searched for the place.
pub(super) fn plan_problem(error: &DataFusionError, tokens: &[TokenWithSpan]) -> Problem {
    let diagnosed = error
        .diagnostic()
        .and_then(|diagnostic| diagnostic.span)
        .filter(|span| span.start.line > 0)
        .map(|span| Place {
            line: span.start.line,
            column: span.start.column,
        });
    let problem = root_problem(error);
    if problem.at.is_some() {
        return problem;
    }
    let place = diagnosed
        .or_else(|| find_quoted(&problem.detail, tokens))
        .or_else(|| tokens.first().map(|token| token.span.start.into()));
    match place {
        Some(place) => problem.at(place.to_string()),
        None => problem,
    }
}

fn root_problem(error: &DataFusionError) -> Problem {
    match error {
        DataFusionError::External(inner) => match inner.downcast_ref::<Problem>() {
            Some(problem) => problem.clone(),
            None => Problem::new(ErrorCode::SqlPlan, inner.to_string()),
        },
        DataFusionError::Diagnostic(_, inner) | DataFusionError::Context(_, inner) => {
            root_problem(inner)
        }
        DataFusionError::Shared(inner) => root_problem(inner),
        DataFusionError::Collection(errors) => match errors.first() {
            Some(first) => root_problem(first),
            None => Problem::new(ErrorCode::SqlPlan, "the query cannot be planned"),
        },
        DataFusionError::SchemaError(inner, _) => schema_problem(inner),
        DataFusionError::NotImplemented(what) => {
            Problem::new(ErrorCode::UnsupportedFeature, first_line(what))
        }
        DataFusionError::Plan(text) if text.starts_with("Invalid function '") => {
            let mut quoted = text.split('\'').skip(1).step_by(2);
            let name = quoted.next().unwrap_or_default();
            let problem = Problem::new(
                ErrorCode::SqlPlan,
                format!("there is no function \"{name}\""),
            );
            match quoted.next() {
                Some(near) => problem.hint(format!("Did you mean {near}?")),
                None => problem,
            }
        }
        other => {
            let text = other.strip_backtrace();
            let text = [
                "Error during planning: ",
                "Execution error: ",
                "Arrow error: ",
            ]
            .iter()
            .fold(text.as_str(), |text, prefix| {
                text.strip_prefix(prefix).unwrap_or(text)
            });
            Problem::new(ErrorCode::SqlPlan, first_line(text))
        }
    }
}

fn schema_problem(error: &SchemaError) -> Problem {
    match error {
        SchemaError::FieldNotFound {
            field,
            valid_fields,
        } => {
            let problem = Problem::new(
                ErrorCode::SqlPlan,
                format!("there is no column \"{}\"", field.flat_name()),
            );
            let names: Vec<&str> = valid_fields
                .iter()
                .map(|field| field.name.as_str())
                .collect();
            match nearest(&field.name, names.iter().copied()) {
                Some(near) => problem.hint(format!("Did you mean \"{near}\"?")),
                None if names.is_empty() => problem,
                None => problem.hint(format!("There are: {}.", names.join(", "))),
            }
        }
        SchemaError::AmbiguousReference { field } => Problem::new(
            ErrorCode::SqlPlan,
            format!("the column \"{}\" is ambiguous", field.flat_name()),
        )
        .hint("Say which table's column it is: table.column."),
        SchemaError::DuplicateQualifiedField { name, .. }
        | SchemaError::DuplicateUnqualifiedField { name } => Problem::new(
            ErrorCode::SqlPlan,
            format!("two columns are called \"{name}\""),
        )
        .hint("Name them apart with AS."),
    }
}

/// The name a user may have meant.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + name.len().max(candidate.len()) / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// The place of the first token whose word stands in the problem's quotes.
fn find_quoted(detail: &str, tokens: &[TokenWithSpan]) -> Option<Place> {
    let words: Vec<&str> = detail
        .split(['"', '\''])
        .skip(1)
        .step_by(2)
        .flat_map(|quoted| quoted.rsplit('.').take(1))
        .collect();
    words.into_iter().find_map(|word| find_word(word, tokens))
}

/// The place of a word among tokens.
pub(super) fn find_word(word: &str, tokens: &[TokenWithSpan]) -> Option<Place> {
    tokens
        .iter()
        .find(|token| matches!(&token.token, Token::Word(w) if w.value.eq_ignore_ascii_case(word)))
        .map(|token| token.span.start.into())
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().trim();
    let line = line.strip_suffix('.').unwrap_or(line);
    line.to_owned()
}
