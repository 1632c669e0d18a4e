//! What SQL planning says when it fails → problem documents with a place and a next step.

use common::error::{ErrorCode, Problem};
use common::schema::ColumnType;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, SchemaError};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::tokens::{Place, is_word};

/// What of a planner's own words is worth reading.
const MAX_DETAIL_CHARS: usize = 300;

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
    let place = diagnosed.or_else(|| find_quoted(&problem.detail, tokens));
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
            let problem = Problem::new(ErrorCode::UnsupportedFeature, first_line(what));
            match what.starts_with("Unsupported interval argument") {
                true => problem.hint("Write for example INTERVAL '10' SECOND."),
                false => problem,
            }
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
            explained(text).unwrap_or_else(|| Problem::new(ErrorCode::SqlPlan, first_line(text)))
        }
    }
}

/// What the planner says in its own words, in ours: with what to do.
fn explained(text: &str) -> Option<Problem> {
    let quoted = |sign: char| text.split(sign).nth(1).unwrap_or_default();
    let problem = |detail: String| Problem::new(ErrorCode::SqlPlan, detail);
    if text.starts_with("Column in SELECT must be in GROUP BY") {
        let column = quoted('"');
        return Some(
            problem(format!(
                "\"{column}\" is neither grouped by nor in an aggregate function"
            ))
            .hint("Add it to GROUP BY, or put it into an aggregate function."),
        );
    }
    if text.contains("failed to match any signature") {
        let function = quoted('\'');
        let given = text.split("but received ").nth(1).unwrap_or_default();
        let given = given.split([' ', '.', ',']).next().unwrap_or_default();
        return Some(
            problem(format!("\"{function}\" does not take a {given}"))
                .hint("CAST its argument to a type that it takes."),
        );
    }
    if text.contains("Cannot cast string ") {
        let (value, kind) = (quoted('\''), text.split(" to value of ").nth(1));
        let kind: Option<DataType> = kind.and_then(|kind| kind.split(' ').next()?.parse().ok());
        let kind = kind.and_then(|kind| ColumnType::from_arrow(&kind).ok());
        let kind = kind.map_or_else(|| "number".to_owned(), |kind| kind.to_string());
        return Some(
            problem(format!("the text '{value}' is no {kind}")).hint(
                "Write a number without quotes, or CAST what it is compared with to VARCHAR.",
            ),
        );
    }
    let hint = match text {
        _ if text.starts_with("Cannot create filter with non-boolean") => {
            "A condition is true or false: compare it with something."
        }
        _ if text.contains("Consider using HAVING") => {
            "A condition on what was aggregated is HAVING, behind GROUP BY."
        }
        _ if text.contains("coerce") => "CAST one of them to the type of the other.",
        _ => return None,
    };
    Some(problem(first_line(text)).hint(hint))
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

/// Words of statements that a user may have meant by a word that the parser took for a name.
const STATEMENT_WORDS: &[&str] = &[
    "AS",
    "BETWEEN",
    "BY",
    "CASE",
    "CREATE",
    "DISTINCT",
    "ELSE",
    "FROM",
    "GROUP",
    "HAVING",
    "INSERT",
    "INTERVAL",
    "INTO",
    "PRIMARY",
    "SELECT",
    "TABLE",
    "THEN",
    "UNION",
    "VIEW",
    "WATERMARK",
    "WHEN",
    "WHERE",
    "WITH",
];

/// Says which word of SQL the token at the problem's place, or the one before it, may have been meant to be.
pub(super) fn with_meant_word(problem: Problem, tokens: &[TokenWithSpan]) -> Problem {
    let is_at = |token: &TokenWithSpan| {
        problem.at.as_deref() == Some(Place::from(token.span.start).to_string().as_str())
    };
    let at = tokens.iter().position(is_at).unwrap_or(tokens.len());
    let meant = tokens[..tokens.len().min(at + 1)]
        .iter()
        .rev()
        .take(2)
        .find_map(|token| match &token.token {
            Token::Word(word)
                if word.quote_style.is_none() && word.keyword == Keyword::NoKeyword =>
            {
                nearest(
                    &word.value.to_ascii_uppercase(),
                    STATEMENT_WORDS.iter().copied(),
                )
            }
            _ => None,
        });
    match meant {
        Some(word) => problem.hint(format!("Did you mean {word}?")),
        None => problem,
    }
}

/// The place of the first token whose word or text stands in the problem's quotes, else where the tokens begin.
pub(super) fn find_quoted(detail: &str, tokens: &[TokenWithSpan]) -> Option<Place> {
    let words: Vec<&str> = detail
        .split(['"', '\''])
        .skip(1)
        .step_by(2)
        .flat_map(|quoted| quoted.rsplit('.').take(1))
        .collect();
    let text = |wanted: &str| {
        tokens
            .iter()
            .find(|token| matches!(&token.token, Token::SingleQuotedString(t) if t == wanted))
            .map(|token| token.span.start.into())
    };
    words
        .into_iter()
        .find_map(|word| find_word(word, tokens).or_else(|| text(word)))
        .or_else(|| tokens.first().map(|token| token.span.start.into()))
}

/// The place of a word among tokens.
pub(super) fn find_word(word: &str, tokens: &[TokenWithSpan]) -> Option<Place> {
    tokens
        .iter()
        .find(|token| matches!(&token.token, Token::Word(w) if w.value.eq_ignore_ascii_case(word)))
        .map(|token| token.span.start.into())
}

/// The place of the first query that stands in brackets where a value might.
pub(super) fn find_subquery(tokens: &[TokenWithSpan]) -> Option<Place> {
    let in_from = |token: &Token| {
        ["FROM", "JOIN", "AS"]
            .iter()
            .any(|word| is_word(token, word))
            || *token == Token::LParen
    };
    let found = tokens.windows(3).find(|three| {
        is_word(&three[2].token, "SELECT")
            && three[1].token == Token::LParen
            && !in_from(&three[0].token)
    })?;
    Some(found[2].span.start.into())
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().trim();
    let line = line.strip_suffix('.').unwrap_or(line);
    match line.char_indices().nth(MAX_DETAIL_CHARS) {
        // An expression may be as long as the query.
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line.to_owned(),
    }
}
