//! Flink's spelling of windows, rewritten into ours in tokens.
//!
//! `TABLE(TUMBLE(TABLE bids, DESCRIPTOR(ts), INTERVAL '10' SECOND))` becomes
//! `TUMBLE(bids, ts, INTERVAL '10' SECOND)`. Only tokens are dropped, none is made, so every place in an
//! error is one the user wrote.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::tokens::is_word;
use super::windows::is_window_function;

/// Drops `TABLE(…)` around a window function, and `TABLE` and `DESCRIPTOR(…)` among its arguments.
pub(super) fn flink_windows(tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    let mut kept = Vec::with_capacity(tokens.len());
    // For each open bracket: whether its end is dropped, and whether it holds a window's arguments.
    let mut open: Vec<Bracket> = Vec::new();
    let mut rest = tokens.into_iter().peekable();
    let mut ahead = std::collections::VecDeque::new();
    loop {
        while ahead.len() < 4
            && let Some(token) = rest.next()
        {
            ahead.push_back(token);
        }
        let Some(token) = ahead.pop_front() else {
            return kept;
        };
        let next = |i: usize| ahead.get(i).map(|token: &TokenWithSpan| &token.token);
        let in_window = open.last().is_some_and(|bracket| bracket.window);
        match &token.token {
            Token::Word(_) if is_word(&token.token, "TABLE") => {
                let around_window = next(0) == Some(&Token::LParen)
                    && next(1).is_some_and(names_window)
                    && next(2) == Some(&Token::LParen);
                if around_window {
                    ahead.pop_front();
                    open.push(Bracket {
                        dropped: true,
                        window: false,
                    });
                } else if !(in_window && matches!(next(0), Some(Token::Word(_)))) {
                    kept.push(token);
                }
            }
            Token::Word(_)
                if in_window
                    && is_word(&token.token, "DESCRIPTOR")
                    && next(0) == Some(&Token::LParen) =>
            {
                ahead.pop_front();
                open.push(Bracket {
                    dropped: true,
                    window: true,
                });
            }
            Token::LParen => {
                let window = kept.last().is_some_and(|last| names_window(&last.token));
                open.push(Bracket {
                    dropped: false,
                    window,
                });
                kept.push(token);
            }
            Token::RParen => {
                if !open.pop().is_some_and(|bracket| bracket.dropped) {
                    kept.push(token);
                }
            }
            _ => kept.push(token),
        }
    }
}

struct Bracket {
    dropped: bool,
    window: bool,
}

fn names_window(token: &Token) -> bool {
    matches!(token, Token::Word(word) if word.quote_style.is_none() && is_window_function(&word.value))
}
