//! Words and symbols of a SQL text, each with its line and column.
//!
//! Bounds what may be parsed: how deep brackets nest and how long a statement is. Everything after this
//! file may recurse over what it is given.

use common::error::{ErrorCode, Problem};
use common::limits::{MAX_EXPRESSION_DEPTH, MAX_JOB_TEXT_BYTES};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

/// Operators, brackets and names of one statement together. A chain of operators becomes a tree as deep
/// as the chain is long, so this bounds recursion where brackets do not.
const MAX_STATEMENT_TOKENS: usize = 20_000;
/// What the SQL parser counts as depth is up to a few levels per bracket.
const PARSER_RECURSION_LIMIT: usize = MAX_EXPRESSION_DEPTH * 4;

/// A place in the text, as users count: from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: u64,
    pub(super) column: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

impl From<Location> for Place {
    fn from(location: Location) -> Place {
        Place {
            line: location.line,
            column: location.column,
        }
    }
}

/// Reads a text into tokens without whitespace and comments. Refuses what is too long or nests too deep.
pub(super) fn tokenize(text: &str) -> Result<Vec<TokenWithSpan>, Problem> {
    if text.len() > MAX_JOB_TEXT_BYTES {
        return Err(Problem::new(
            ErrorCode::RequestTooLarge,
            format!(
                "the SQL text has {} bytes; at most {MAX_JOB_TEXT_BYTES} are allowed",
                text.len()
            ),
        ));
    }
    let all = Tokenizer::new(&GenericDialect {}, text)
        .tokenize_with_location()
        .map_err(|error| syntax(error.location.into(), error.message))?;
    let tokens: Vec<TokenWithSpan> = all
        .into_iter()
        .filter(|token| !matches!(token.token, Token::Whitespace(_) | Token::EOF))
        .collect();
    check_bounds(&tokens)?;
    Ok(tokens)
}

fn check_bounds(tokens: &[TokenWithSpan]) -> Result<(), Problem> {
    let (mut depth, mut length) = (0_usize, 0_usize);
    for token in tokens {
        match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => depth += 1,
            Token::RParen | Token::RBracket | Token::RBrace => depth = depth.saturating_sub(1),
            Token::SemiColon => (depth, length) = (0, 0),
            _ => {}
        }
        length += usize::from(can_nest(&token.token));
        if depth > MAX_EXPRESSION_DEPTH {
            return Err(syntax(
                token.span.start.into(),
                format!("brackets nest deeper than {MAX_EXPRESSION_DEPTH} levels"),
            )
            .hint("Name a part of it in a view or a WITH clause."));
        }
        if length > MAX_STATEMENT_TOKENS {
            return Err(syntax(
                token.span.start.into(),
                format!("a statement has at most {MAX_STATEMENT_TOKENS} names and operators"),
            )
            .hint("Split it: name a part of it in a view, or insert from several queries."));
        }
    }
    Ok(())
}

/// Commas and literals stand side by side; everything else may make a tree deeper.
fn can_nest(token: &Token) -> bool {
    !matches!(
        token,
        Token::Comma | Token::Number(..) | Token::SingleQuotedString(_) | Token::SemiColon
    )
}

/// A parser over tokens that keeps their places in its errors.
pub(super) fn parser(tokens: Vec<TokenWithSpan>) -> Parser<'static> {
    Parser::new(&GenericDialect {})
        .with_recursion_limit(PARSER_RECURSION_LIMIT)
        .with_tokens_with_locations(tokens)
}

pub(super) fn syntax(at: Place, detail: impl Into<String>) -> Problem {
    Problem::new(ErrorCode::SqlSyntax, detail).at(at.to_string())
}

pub(super) fn unsupported(at: Option<Place>, detail: impl Into<String>) -> Problem {
    let problem = Problem::new(ErrorCode::UnsupportedFeature, detail);
    match at {
        Some(at) => problem.at(at.to_string()),
        None => problem,
    }
}

/// The parser's complaint. Its text ends in the place; `end` is used where it has none.
pub(super) fn parser_problem(error: &ParserError, end: Place) -> Problem {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.as_str(),
        ParserError::RecursionLimitExceeded => "the query nests too deep",
    };
    let (detail, place) = match text.rsplit_once(" at Line: ") {
        Some((detail, place)) => (detail, read_place(place)),
        None => (text, None),
    };
    let detail = detail.strip_prefix("sql parser error: ").unwrap_or(detail);
    syntax(place.unwrap_or(end), detail.replace("EOF", "the end"))
}

/// Reads `3, Column: 7`.
fn read_place(text: &str) -> Option<Place> {
    let (line, column) = text.split_once(", Column: ")?;
    let digits = column
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(column.len());
    Some(Place {
        line: line.parse().ok()?,
        column: column[..digits].parse().ok()?,
    })
}
