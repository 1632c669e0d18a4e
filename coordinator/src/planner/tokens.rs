//! Words and symbols of a SQL text, each with its line and column.
//!
//! Bounds what may be parsed: how deep brackets nest, how long a statement is, how many queries there are.
//! Everything after this file may recurse over what it is given.

use common::error::{ErrorCode, Problem};
use common::limits::{
    MAX_AMBIGUOUS_DEPTH, MAX_EXPRESSION_DEPTH, MAX_JOB_TEXT_BYTES, MAX_PARSER_DEPTH, MAX_SELECTS,
    MAX_STATEMENT_TOKENS,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

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
    let mut nesting = Nesting::default();
    let (mut length, mut selects) = (0_usize, 0_usize);
    for (i, token) in tokens.iter().enumerate() {
        let before = i.checked_sub(1).map(|i| &tokens[i].token);
        let refuse =
            |detail: String, hint: &str| Err(syntax(token.span.start.into(), detail).hint(hint));
        if token.token == Token::SemiColon {
            nesting = Nesting::default();
            length = 0;
        }
        nesting.step(before, &token.token);
        length += usize::from(can_nest(&token.token));
        selects += usize::from(is_word(&token.token, "SELECT"));
        if nesting.depth() > MAX_EXPRESSION_DEPTH {
            return refuse(
                format!("brackets or signs nest deeper than {MAX_EXPRESSION_DEPTH} levels"),
                "Name a part of it in a view or a WITH clause.",
            );
        }
        if nesting.ambiguous() > MAX_AMBIGUOUS_DEPTH {
            return refuse(
                format!("CASE, CAST and the like nest deeper than {MAX_AMBIGUOUS_DEPTH} levels"),
                "Close each CASE with END and each bracket; compute a part of it in a view.",
            );
        }
        if length > MAX_STATEMENT_TOKENS {
            return refuse(
                format!("a statement has at most {MAX_STATEMENT_TOKENS} names and operators"),
                "Split it: name a part of it in a view, or insert from several queries.",
            );
        }
        if selects > MAX_SELECTS {
            return refuse(
                format!("a job has at most {MAX_SELECTS} SELECTs"),
                "Split it into several jobs.",
            );
        }
    }
    Ok(())
}

/// What is open at a place in a statement.
#[derive(Default)]
struct Nesting {
    open: Vec<Open>,
    /// `NOT`, `-` and `+` with nothing between.
    signs: usize,
    /// `INTERVAL` with nothing but signs behind it.
    intervals: usize,
    /// `ARRAY<ARRAY<…`: words and `<` with nothing between that ends a type.
    types: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Bracket,
    /// A bracket behind a word, or a place, from which the parser goes back if it finds no end.
    Ambiguous,
    Case,
}

/// Words that the parser reads as a form of their own, and as a name if that fails.
const AMBIGUOUS: &[&str] = &[
    "ARRAY",
    "CAST",
    "CEIL",
    "CONVERT",
    "CURRENT_DATE",
    "CURRENT_TIME",
    "CURRENT_TIMESTAMP",
    "EXTRACT",
    "FLOOR",
    "INTERVAL",
    "LOCALTIME",
    "LOCALTIMESTAMP",
    "MATCH",
    "OVERLAY",
    "POSITION",
    "SAFE_CAST",
    "STRUCT",
    "SUBSTR",
    "SUBSTRING",
    "TRIM",
    "TRY_CAST",
    "TRY_CONVERT",
];

impl Nesting {
    fn step(&mut self, before: Option<&Token>, token: &Token) {
        match token {
            Token::LParen | Token::LBrace => {
                let ambiguous =
                    before.is_some_and(|before| AMBIGUOUS.iter().any(|word| is_word(before, word)));
                self.open.push(match ambiguous {
                    true => Open::Ambiguous,
                    false => Open::Bracket,
                });
            }
            Token::LBracket => self.open.push(Open::Ambiguous),
            Token::RParen | Token::RBracket | Token::RBrace => {
                // Whatever was left open inside the bracket ends with it.
                while let Some(open) = self.open.pop()
                    && open == Open::Case
                {}
            }
            token if is_word(token, "CASE") => self.open.push(Open::Case),
            token
                if is_word(token, "END")
                    && before.is_some_and(ends_an_operand)
                    && self.open.last() == Some(&Open::Case) =>
            {
                self.open.pop();
            }
            _ => {}
        }
        match token {
            token if is_word(token, "INTERVAL") => self.intervals += 1,
            Token::Plus | Token::Minus | Token::Tilde | Token::ExclamationMark => self.signs += 1,
            token if is_word(token, "NOT") => self.signs += 1,
            _ => (self.intervals, self.signs) = (0, 0),
        }
        match token {
            Token::Lt => self.types += 1,
            Token::Word(_)
                if !["AND", "OR", "THEN", "WHEN"]
                    .iter()
                    .any(|w| is_word(token, w)) => {}
            _ => self.types = 0,
        }
    }

    fn depth(&self) -> usize {
        self.open.len().max(self.types).max(self.signs)
    }

    fn ambiguous(&self) -> usize {
        let open = self.open.iter().filter(|open| **open != Open::Bracket);
        open.count() + self.intervals
    }
}

/// Whether `END` behind this token ends a CASE, and is no column of that name.
fn ends_an_operand(token: &Token) -> bool {
    const BEFORE_OPERANDS: &[&str] = &[
        "AND", "BY", "CASE", "DISTINCT", "ELSE", "IN", "LIKE", "NOT", "OR", "SELECT", "THEN",
        "WHEN", "WHERE",
    ];
    match token {
        Token::Word(_) => !BEFORE_OPERANDS.iter().any(|word| is_word(token, word)),
        Token::Number(..)
        | Token::SingleQuotedString(_)
        | Token::DoubleQuotedString(_)
        | Token::HexStringLiteral(_)
        | Token::NationalStringLiteral(_)
        | Token::RParen
        | Token::RBracket
        | Token::RBrace => true,
        _ => false,
    }
}

/// Commas and literals stand side by side; everything else may make a tree deeper.
fn can_nest(token: &Token) -> bool {
    !matches!(
        token,
        Token::Comma | Token::Number(..) | Token::SingleQuotedString(_) | Token::SemiColon
    )
}

/// Whether a token is this word, without quotes.
pub(super) fn is_word(token: &Token, word: &str) -> bool {
    matches!(token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
}

/// A parser over tokens that keeps their places in its errors.
pub(super) fn parser(tokens: Vec<TokenWithSpan>) -> Parser<'static> {
    Parser::new(&GenericDialect {})
        .with_recursion_limit(MAX_PARSER_DEPTH)
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
    let problem = syntax(place.unwrap_or(end), detail.replace("EOF", "the end"));
    match error {
        ParserError::RecursionLimitExceeded => {
            problem.hint("Name a part of it in a view or a WITH clause.")
        }
        _ => problem,
    }
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
