//! Standard output is data, standard error is talk. A reader that goes away is no error.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::{self, IsTerminal, Write};

use agent::Problem;
use serde::Serialize;

use crate::harmless;

/// Where a command's words go.
pub(crate) struct Printer {
    json: bool,
    said_json: Cell<bool>,
}

impl Printer {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            said_json: Cell::new(false),
        }
    }

    /// Whether progress may be drawn: a person looks.
    pub(crate) fn is_watched(&self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    /// The answer: as a document, or as text.
    pub(crate) fn answer(&self, document: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            self.said_json.set(true);
            say(&pretty(document));
        } else {
            say(&harmless::text(text().trim_end_matches('\n')));
        }
    }

    /// One of a stream of objects, or a line of text.
    pub(crate) fn event(&self, document: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            self.said_json.set(true);
            let line = serde_json::to_string(document).expect("documents are plain data");
            say(&harmless::document(&line));
        } else {
            say(&harmless::text(&text()));
        }
    }

    /// As [`answer`](Self::answer), for what is told once.
    ///
    /// # Errors
    /// If nobody was told.
    pub(crate) fn answer_surely(
        &self,
        document: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> io::Result<()> {
        let said = match self.json {
            true => pretty(document),
            false => harmless::text(&text()).into_owned(),
        };
        self.said_json.set(self.json);
        let mut out = io::stdout().lock();
        writeln!(out, "{said}").and_then(|()| out.flush())
    }

    /// A line for people only.
    pub(crate) fn line(&self, text: &str) {
        if !self.json {
            say(&harmless::text(text));
        }
    }

    /// A word to who watches; no data.
    pub(crate) fn talk(&self, text: &str) {
        if !self.json {
            // There may be nobody left to tell.
            let _ = writeln!(io::stderr().lock(), "{}", harmless::text(text));
        }
    }

    /// What failed, and what to do.
    pub(crate) fn error(&self, problem: &Problem) {
        let mut err = io::stderr().lock();
        // There is nobody left to tell.
        let _ = writeln!(err, "error: {}", harmless::text(&problem.error));
        if let Some(hint) = &problem.hint {
            let _ = writeln!(err, "\nhint: {}", harmless::text(hint));
        }
        if self.json && !self.said_json.get() {
            say(&pretty(problem));
        }
    }
}

fn say(text: &str) {
    let mut out = io::stdout().lock();
    // Who closed the pipe wants no more.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// As it is written: with ends of lines, for people who look.
fn pretty(document: &impl Serialize) -> String {
    let json = serde_json::to_string_pretty(document).expect("documents are plain data");
    harmless::document(&json).into_owned()
}

/// Lines up columns; the first row is the heading.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    // A cell is one line, whatever it is called.
    let rows: Vec<Vec<Cow<'_, str>>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| harmless::cell(cell)).collect())
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |row: &Vec<Cow<'_, str>>| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_one_line() {
        let rows = [["1", "key\n2  mine"], ["3", "\u{202e}yek"]];
        let rows: Vec<Vec<String>> = rows.map(|row| row.map(str::to_owned).to_vec()).into();
        assert_eq!(table(&rows), "1  key\\u{a}2  mine\n3  \\u{202e}yek");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["A", "LONG"], ["bbb", "c"]];
        let rows: Vec<Vec<String>> = rows.map(|row| row.map(str::to_owned).to_vec()).into();
        assert_eq!(table(&rows), "A    LONG\nbbb  c");
    }
}
