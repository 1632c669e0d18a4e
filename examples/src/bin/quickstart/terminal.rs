//! What is shown: on a terminal in place, elsewhere line by line.

use std::io::{self, IsTerminal, Write};

/// Shows this now. Fails if nobody reads it any more.
pub(crate) fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// A table that takes the place of what was there, if this is a terminal. One that is too narrow cuts its lines
/// instead of breaking them.
pub(crate) fn in_place(table: &str) -> String {
    const CLEAR: &str = "\x1b[2J\x1b[H";
    const CUT: &str = "\x1b[?7l";
    const BREAK: &str = "\x1b[?7h";
    match is_terminal() {
        true => format!("{CLEAR}{CUT}{table}{BREAK}"),
        false => table.to_owned(),
    }
}

/// A bar where there is a terminal and an end; `total` 0: no end is known.
pub(crate) fn progress(what: &str, done: usize, total: usize) -> io::Result<()> {
    if !is_terminal() {
        return Ok(());
    }
    match (done.min(total) * 40).checked_div(total) {
        None => say(&format!("\r{what}: {done}   ")),
        Some(filled) => {
            let (done, left) = ("#".repeat(filled), ".".repeat(40 - filled));
            say(&format!("\r{what} [{done}{left}] "))
        }
    }
}
