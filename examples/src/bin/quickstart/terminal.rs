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

/// How much of something finite is done: one line that is written over, where there is a terminal.
#[derive(Debug)]
pub(crate) struct Bar {
    what: &'static str,
    total: u64,
    shown: bool,
}

impl Bar {
    pub(crate) fn new(what: &'static str, total: u64) -> Bar {
        Bar {
            what,
            total,
            shown: false,
        }
    }

    /// `rate`: records per second, if it is known.
    pub(crate) fn show(&mut self, done: u64, rate: Option<f64>) -> io::Result<()> {
        if !is_terminal() {
            return Ok(());
        }
        self.shown = true;
        say(&format!(
            "\r{}\x1b[K",
            bar(self.what, done, self.total, rate)
        ))
    }

    /// Everything is done.
    pub(crate) fn end(mut self) -> io::Result<()> {
        self.show(self.total, None)?;
        match self.shown {
            true => say("\n"),
            false => Ok(()),
        }
    }
}

fn bar(what: &str, done: u64, total: u64, rate: Option<f64>) -> String {
    const WIDTH: usize = 24;
    let done = done.min(total);
    let share = if total == 0 {
        1.0
    } else {
        done as f64 / total as f64
    };
    let filled = (share * WIDTH as f64) as usize;
    let (full, left) = ("#".repeat(filled), ".".repeat(WIDTH - filled));
    let rate = rate.map(|rate| format!(", {}/s", grouped(rate.round() as u64)));
    format!(
        "{what:<8} [{full}{left}] {:>3.0} % of {}{}",
        share * 100.0,
        grouped(total),
        rate.unwrap_or_default()
    )
}

/// With commas between thousands.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_full_as_what_it_shows() {
        let full = format!("written  [{}] 100 % of 1,234", "#".repeat(24));
        for (done, rate, text) in [
            (
                0,
                None,
                format!("written  [{}]   0 % of 1,234", ".".repeat(24)),
            ),
            (
                617,
                Some(1e6),
                format!(
                    "written  [{}{}]  50 % of 1,234, 1,000,000/s",
                    "#".repeat(12),
                    ".".repeat(12)
                ),
            ),
            (1_234, None, full.clone()),
            (9_999, None, full),
        ] {
            let shown = bar("written", done, 1_234, rate);
            assert_eq!(shown, text);
            assert!(shown.len() < 80);
        }
        assert!(bar("written", 0, 0, None).contains("100 %"));
    }
}
