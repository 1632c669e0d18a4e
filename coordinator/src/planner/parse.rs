//! SQL text → our statements: tables, views, inserts.
//!
//! `CREATE TABLE` is ours, with watermarks and options no SQL parser knows, so it is read here from
//! tokens; queries are handed to the SQL parser with their tokens' places.

use common::error::{ErrorCode, Problem};
use common::limits::MAX_COLUMNS;
use common::schema::{Column, ColumnType, TypeError};
use datafusion::sql::sqlparser::ast::{Expr, Query};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Word};

use super::problems::{nearest, with_meant_word};
use super::rewrite::flink_windows;
use super::tokens::{Place, is_word, parser, parser_problem, syntax, tokenize, unsupported};

#[derive(Debug)]
pub(super) enum Statement {
    Table(Box<Table>),
    View(View),
    Insert(Insert),
}

/// A name as it is compared (unquoted names in lower case), and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) value: String,
    pub(super) at: Place,
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: Name,
    /// Empty: a sink that takes its query's columns.
    pub(super) columns: Vec<Column>,
    pub(super) primary_key: Vec<Name>,
    pub(super) watermark: Option<Watermark>,
    pub(super) options: Vec<TableOption>,
    /// Columns that were written in mixed case and without quotes.
    pub(super) folded: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Watermark {
    pub(super) column: Name,
    /// What follows `AS`; absent: the column itself.
    pub(super) expression: Option<Expr>,
}

#[derive(Debug)]
pub(super) struct TableOption {
    pub(super) name: Name,
    pub(super) value: String,
}

#[derive(Debug)]
pub(super) struct View {
    pub(super) name: Name,
    pub(super) columns: Vec<Name>,
    pub(super) query: Box<Query>,
    /// The query's tokens, to find a construct's place when a later step refuses it.
    pub(super) tokens: Vec<TokenWithSpan>,
}

#[derive(Debug)]
pub(super) struct Insert {
    pub(super) table: Name,
    /// Empty: all columns in order.
    pub(super) columns: Vec<Name>,
    pub(super) query: Box<Query>,
    pub(super) tokens: Vec<TokenWithSpan>,
}

/// Reads all statements of a text.
pub(super) fn parse(text: &str) -> Result<Vec<Statement>, Problem> {
    let tokens = tokenize(text)?;
    let mut statements = Vec::new();
    for statement in tokens.split(|token| token.token == Token::SemiColon) {
        if !statement.is_empty() {
            statements.push(Reader::new(statement).statement()?);
        }
    }
    if statements.is_empty() {
        return Err(
            syntax(Place { line: 1, column: 1 }, "the text has no statement")
                .hint("Write CREATE TABLE statements and at least one INSERT INTO … SELECT …"),
        );
    }
    Ok(statements)
}

/// Reads one statement's tokens from the front.
struct Reader<'a> {
    tokens: &'a [TokenWithSpan],
    position: usize,
}

impl<'a> Reader<'a> {
    fn new(tokens: &'a [TokenWithSpan]) -> Reader<'a> {
        Reader {
            tokens,
            position: 0,
        }
    }

    fn statement(&mut self) -> Result<Statement, Problem> {
        let start = self.place();
        if self.keyword("INSERT") {
            return self.insert().map(Statement::Insert);
        }
        if self.keyword("CREATE") {
            if self.keyword("OR") {
                self.expect_keyword("REPLACE")?;
            }
            let temporary = self.keyword("TEMPORARY") || self.keyword("TEMP");
            if self.keyword("TABLE") {
                return Ok(Statement::Table(Box::new(self.table()?)));
            }
            if self.keyword("VIEW") {
                return self.view().map(Statement::View);
            }
            if self.peeks("FUNCTION") || (temporary && self.peeks("SYSTEM")) {
                return Err(unsupported(
                    Some(start),
                    "CREATE FUNCTION is not supported yet",
                ));
            }
            return Err(self.expected("TABLE or VIEW"));
        }
        if self.peeks("SELECT") || self.peeks("WITH") || self.peeks("VALUES") {
            return Err(
                Problem::new(ErrorCode::SqlPlan, "nothing receives this query's rows")
                    .at(start.to_string())
                    .hint(
                        "Create a table for the result and write INSERT INTO that_table SELECT …",
                    ),
            );
        }
        match self.peek() {
            Some(Token::Word(word)) if word.quote_style.is_none() => {
                let word = word.value.to_uppercase();
                const KNOWN: &[&str] = &[
                    "ALTER", "ANALYZE", "BEGIN", "COPY", "DELETE", "DESCRIBE", "DROP", "EXECUTE",
                    "EXPLAIN", "LOAD", "MERGE", "RESET", "SET", "SHOW", "TRUNCATE", "UPDATE",
                    "USE",
                ];
                match KNOWN.contains(&word.as_str()) {
                    true => Err(unsupported(
                        Some(start),
                        format!("{word} statements are not supported in a job"),
                    )
                    .hint("A job is made of CREATE TABLE, CREATE VIEW and INSERT INTO … SELECT.")),
                    false => Err(self.expected("CREATE or INSERT")),
                }
            }
            _ => Err(self.expected("CREATE or INSERT")),
        }
    }

    fn insert(&mut self) -> Result<Insert, Problem> {
        self.expect_keyword("INTO")?;
        self.keyword("TABLE");
        let table = self.name("a table's name")?;
        let lists_columns = self.peek() == Some(&Token::LParen)
            && !matches!(self.peek_at(1), Some(token) if
                ["SELECT", "WITH", "VALUES"].iter().any(|word| is_word(token, word)) || *token == Token::LParen);
        let columns = match lists_columns {
            true => self.name_list()?,
            false => Vec::new(),
        };
        let (query, tokens) = self.query()?;
        Ok(Insert {
            table,
            columns,
            query,
            tokens,
        })
    }

    fn view(&mut self) -> Result<View, Problem> {
        self.if_not_exists()?;
        let name = self.name("a view's name")?;
        let columns = match self.peek() == Some(&Token::LParen) {
            true => self.name_list()?,
            false => Vec::new(),
        };
        self.expect_keyword("AS")?;
        let (query, tokens) = self.query()?;
        Ok(View {
            name,
            columns,
            query,
            tokens,
        })
    }

    /// The rest of the statement as a query.
    fn query(&mut self) -> Result<(Box<Query>, Vec<TokenWithSpan>), Problem> {
        self.refuse_emit()?;
        let end = self.end();
        let tokens = flink_windows(self.tokens[self.position..].to_vec());
        self.position = self.tokens.len();
        let mut parser = parser(tokens.clone());
        let query = parser
            .parse_query()
            .map_err(|error| with_meant_word(parser_problem(&error, end), &tokens))?;
        let left = parser.peek_token();
        if left.token != Token::EOF {
            let detail = format!(
                "expected the end of the statement, found \"{}\"",
                left.token
            );
            let problem =
                syntax(left.span.start.into(), detail).hint("Statements are separated by \";\".");
            return Err(with_meant_word(problem, &tokens));
        }
        Ok((query, tokens))
    }

    fn refuse_emit(&self) -> Result<(), Problem> {
        let tokens = &self.tokens[self.position..];
        let emit = tokens.windows(2).find(|pair| {
            is_word(&pair[0].token, "EMIT")
                && ["CHANGES", "FINAL", "ON", "WITH", "WITHOUT", "AFTER"]
                    .iter()
                    .any(|word| is_word(&pair[1].token, word))
        });
        match emit {
            Some(pair) => Err(unsupported(
                Some(pair[0].span.start.into()),
                "EMIT is not supported yet: a window's rows come once, when it is complete",
            )),
            None => Ok(()),
        }
    }

    fn table(&mut self) -> Result<Table, Problem> {
        self.if_not_exists()?;
        let mut table = Table {
            name: self.name("a table's name")?,
            columns: Vec::new(),
            primary_key: Vec::new(),
            watermark: None,
            options: Vec::new(),
            folded: Vec::new(),
        };
        if self.symbol(&Token::LParen) {
            loop {
                self.table_element(&mut table)?;
                if !self.symbol(&Token::Comma) {
                    break;
                }
            }
            self.expect(&Token::RParen)?;
        }
        if self.peeks("AS") {
            return Err(unsupported(
                Some(self.place()),
                "CREATE TABLE … AS SELECT is not supported",
            )
            .hint("Create the table, then write INSERT INTO it SELECT …"));
        }
        if !self.keyword("WITH") {
            return Err(self.expected("WITH").hint(
                "A table says where its rows are: WITH (connector = 'topic', topic = '…').",
            ));
        }
        self.expect(&Token::LParen)?;
        while !self.symbol(&Token::RParen) {
            let option = self.table_option()?;
            if table
                .options
                .iter()
                .any(|other| other.name.value == option.name.value)
            {
                return Err(syntax(
                    option.name.at,
                    format!("the option \"{}\" is given twice", option.name.value),
                ));
            }
            table.options.push(option);
            if !self.symbol(&Token::Comma) {
                self.expect(&Token::RParen)?;
                break;
            }
        }
        if self.position < self.tokens.len() {
            return Err(self.expected("the end of the statement"));
        }
        Ok(table)
    }

    fn table_element(&mut self, table: &mut Table) -> Result<(), Problem> {
        let next_is =
            |reader: &Self, word: &str| reader.peek_at(1).is_some_and(|token| is_word(token, word));
        if self.peeks("WATERMARK") && next_is(self, "FOR") {
            self.position += 2;
            return self.watermark(table);
        }
        if self.keyword("CONSTRAINT") {
            self.name("a constraint's name")?;
        }
        if self.peeks("PRIMARY") && next_is(self, "KEY") {
            self.position += 2;
            let at = self.place();
            let names = self.name_list()?;
            self.not_enforced()?;
            return set_primary_key(table, at, names);
        }
        self.column(table)
    }

    fn watermark(&mut self, table: &mut Table) -> Result<(), Problem> {
        let column = self.name("a column's name")?;
        if table.watermark.is_some() {
            return Err(syntax(column.at, "a table has at most one watermark"));
        }
        let expression = match self.keyword("AS") {
            true => {
                let tokens = self.until_comma(&[]);
                let end = self.place();
                let mut parser = parser(tokens.to_vec());
                let expression = parser
                    .parse_expr()
                    .map_err(|error| parser_problem(&error, end))?;
                let left = parser.peek_token();
                if left.token != Token::EOF {
                    return Err(syntax(
                        left.span.start.into(),
                        format!("expected \",\" or \")\", found \"{}\"", left.token),
                    ));
                }
                Some(expression)
            }
            false => None,
        };
        table.watermark = Some(Watermark { column, expression });
        Ok(())
    }

    fn column(&mut self, table: &mut Table) -> Result<(), Problem> {
        if let Some(Token::Word(word)) = self.peek()
            && word.quote_style.is_none()
            && word.value.chars().any(char::is_uppercase)
            && word.value.chars().any(char::is_lowercase)
        {
            table.folded.push(word.value.clone());
        }
        let name = self.name("a column's name")?;
        if table.columns.iter().any(|column| column.name == name.value) {
            return Err(syntax(
                name.at,
                format!("the column \"{}\" is declared twice", name.value),
            ));
        }
        if self.peeks("AS") {
            return Err(unsupported(
                Some(name.at),
                format!(
                    "the computed column \"{}\" is not supported yet",
                    name.value
                ),
            )
            .hint("Compute it in a view over the table."));
        }
        if table.columns.len() == MAX_COLUMNS {
            return Err(syntax(
                name.at,
                format!("a table has at most {MAX_COLUMNS} columns"),
            )
            .hint("Put what belongs together into a ROW, or into JSON."));
        }
        let at = self.place();
        let kind = column_type(at, self.until_comma(AFTER_TYPE))?;
        let mut nullable = true;
        loop {
            let at = self.place();
            if self.keyword("NOT") {
                self.expect_keyword("NULL")?;
                nullable = false;
            } else if self.keyword("NULL") {
                nullable = true;
            } else if self.keyword("PRIMARY") {
                self.expect_keyword("KEY")?;
                self.not_enforced()?;
                set_primary_key(table, at, vec![name.clone()])?;
            } else if self.keyword("COMMENT") {
                self.position += 1;
            } else if matches!(self.peek(), Some(Token::Comma | Token::RParen)) {
                break;
            } else if AFTER_TYPE.iter().any(|word| self.peeks(word)) {
                let word = self.peek().map(Token::to_string).unwrap_or_default();
                return Err(unsupported(
                    Some(at),
                    format!("{} on a column is not supported yet", word.to_uppercase()),
                ));
            } else {
                return Err(self.expected("\",\" or \")\""));
            }
        }
        table.columns.push(Column::new(name.value, kind, nullable));
        Ok(())
    }

    fn table_option(&mut self) -> Result<TableOption, Problem> {
        let at = self.place();
        let name = match self.next() {
            Some(Token::SingleQuotedString(name)) => name.clone(),
            Some(Token::Word(word)) => {
                let mut name = word.value.clone();
                while self.symbol(&Token::Period) {
                    name.push('.');
                    name.push_str(&self.name("an option's name")?.value);
                }
                name
            }
            _ => return Err(self.expected_before("an option's name")),
        };
        self.expect(&Token::Eq)?;
        let minus = self.symbol(&Token::Minus);
        let value = match self.next() {
            Some(Token::SingleQuotedString(value)) if !minus => value.clone(),
            Some(Token::Word(word)) if !minus => word.value.clone(),
            Some(Token::Number(number, _)) if minus => format!("-{number}"),
            Some(Token::Number(number, _)) => number.clone(),
            _ => return Err(self.expected_before("a value in single quotes")),
        };
        Ok(TableOption {
            name: Name { value: name, at },
            value,
        })
    }

    fn not_enforced(&mut self) -> Result<(), Problem> {
        if self.peeks("NOT")
            && self
                .peek_at(1)
                .is_some_and(|token| is_word(token, "ENFORCED"))
        {
            self.position += 2;
        }
        Ok(())
    }

    fn if_not_exists(&mut self) -> Result<(), Problem> {
        if self.keyword("IF") {
            self.expect_keyword("NOT")?;
            self.expect_keyword("EXISTS")?;
        }
        Ok(())
    }

    /// `(a, b, …)`
    fn name_list(&mut self) -> Result<Vec<Name>, Problem> {
        self.expect(&Token::LParen)?;
        let mut names = vec![self.name("a column's name")?];
        while self.symbol(&Token::Comma) {
            names.push(self.name("a column's name")?);
        }
        self.expect(&Token::RParen)?;
        Ok(names)
    }

    fn name(&mut self, what: &str) -> Result<Name, Problem> {
        let at = self.place();
        match self.peek() {
            Some(Token::Word(word)) => {
                let value = folded(word);
                self.position += 1;
                if self.peek() == Some(&Token::Period) && what.starts_with("a table") {
                    return Err(unsupported(
                        Some(at),
                        "names of catalogs and databases are not supported",
                    )
                    .hint("Use plain table names."));
                }
                Ok(Name { value, at })
            }
            _ => Err(self.expected(what)),
        }
    }

    /// Tokens up to a comma or closing bracket of this level, or one of `words`.
    fn until_comma(&mut self, words: &[&str]) -> &'a [TokenWithSpan] {
        let start = self.position;
        let mut depth = 0_i64;
        while let Some(token) = self.peek() {
            match token {
                Token::LParen | Token::Lt => depth += 1,
                Token::RParen | Token::Comma if depth <= 0 => break,
                Token::RParen | Token::Gt => depth -= 1,
                Token::ShiftRight => depth -= 2,
                token if depth <= 0 && words.iter().any(|word| is_word(token, word)) => break,
                _ => {}
            }
            self.position += 1;
        }
        &self.tokens[start..self.position]
    }

    fn peek(&self) -> Option<&'a Token> {
        self.peek_at(0)
    }

    fn peek_at(&self, ahead: usize) -> Option<&'a Token> {
        self.tokens
            .get(self.position + ahead)
            .map(|token| &token.token)
    }

    fn next(&mut self) -> Option<&'a Token> {
        let token = self.peek();
        self.position += 1;
        token
    }

    fn peeks(&self, word: &str) -> bool {
        self.peek().is_some_and(|token| is_word(token, word))
    }

    fn keyword(&mut self, word: &str) -> bool {
        let found = self.peeks(word);
        self.position += usize::from(found);
        found
    }

    fn symbol(&mut self, symbol: &Token) -> bool {
        let found = self.peek() == Some(symbol);
        self.position += usize::from(found);
        found
    }

    fn expect_keyword(&mut self, word: &str) -> Result<(), Problem> {
        match self.keyword(word) {
            true => Ok(()),
            false => Err(self.expected(word)),
        }
    }

    fn expect(&mut self, symbol: &Token) -> Result<(), Problem> {
        match self.symbol(symbol) {
            true => Ok(()),
            false => Err(self.expected(&format!("\"{symbol}\""))),
        }
    }

    fn expected_before(&mut self, what: &str) -> Problem {
        self.position = self.position.saturating_sub(1);
        self.expected(what)
    }

    fn expected(&self, what: &str) -> Problem {
        let found = match self.peek() {
            Some(token) => format!("\"{token}\""),
            None => "the end".to_owned(),
        };
        let problem = syntax(self.place(), format!("expected {what}, found {found}"));
        // Only the word that stands there may be another than was meant: those before it were read.
        with_meant_word(
            problem,
            &self.tokens[self.position.min(self.tokens.len())..],
        )
    }

    /// Where the next token stands, or where the statement ends.
    fn place(&self) -> Place {
        match self.tokens.get(self.position) {
            Some(token) => token.span.start.into(),
            None => self.end(),
        }
    }

    fn end(&self) -> Place {
        let last = self.tokens.last().expect("a statement has a token");
        last.span.end.into()
    }
}

/// What may follow a column's type.
const AFTER_TYPE: &[&str] = &[
    "AS",
    "CHECK",
    "COMMENT",
    "CONSTRAINT",
    "DEFAULT",
    "GENERATED",
    "METADATA",
    "NOT",
    "NULL",
    "PRIMARY",
    "REFERENCES",
    "UNIQUE",
];

/// The types a column may have, by their first names.
const TYPES: &[&str] = &[
    "BOOLEAN",
    "TINYINT",
    "SMALLINT",
    "INT",
    "BIGINT",
    "FLOAT",
    "DOUBLE",
    "DECIMAL",
    "VARCHAR",
    "BYTES",
    "DATE",
    "TIME",
    "TIMESTAMP",
    "JSON",
    "ARRAY",
    "ROW",
];

/// An unquoted name means its lower case.
fn folded(word: &Word) -> String {
    match word.quote_style {
        Some(_) => word.value.clone(),
        None => word.value.to_ascii_lowercase(),
    }
}

fn column_type(at: Place, tokens: &[TokenWithSpan]) -> Result<ColumnType, Problem> {
    let words: Vec<String> = tokens.iter().map(|token| token.token.to_string()).collect();
    let text = words.join(" ");
    let upper = text.to_ascii_uppercase();
    let bare = match upper.strip_suffix(" WITHOUT TIME ZONE") {
        Some(bare) => &text[..bare.len()],
        None => &text,
    };
    bare.parse().map_err(|error: TypeError| {
        let word = bare.split([' ', '(', '<']).next().unwrap_or_default();
        let problem = syntax(at, error.to_string());
        if let TypeError::OutOfBounds { .. } = error {
            return problem.hint("Declare it within these bounds, or as VARCHAR or DOUBLE.");
        }
        match nearest(&word.to_ascii_uppercase(), TYPES.iter().copied()) {
            Some(near) if !near.eq_ignore_ascii_case(word) => {
                problem.hint(format!("Did you mean {near}?"))
            }
            _ => problem.hint(format!("There are: {}.", TYPES.join(", "))),
        }
    })
}

fn set_primary_key(table: &mut Table, at: Place, names: Vec<Name>) -> Result<(), Problem> {
    if !table.primary_key.is_empty() {
        return Err(syntax(at, "a table has at most one primary key"));
    }
    table.primary_key = names;
    Ok(())
}
