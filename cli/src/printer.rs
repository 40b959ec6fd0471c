//! Standard output is data, standard error is talk. A reader that goes away is no error.
//!
//! Rule: names, labels and answers of servers come from elsewhere; nothing of them gives orders to a terminal.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::{self, IsTerminal, Write};

use agent::Problem;
use serde::Serialize;

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
            let line = serde_json::to_string_pretty(document).expect("documents are plain data");
            say(&harmless_document(&line));
        } else {
            say(&harmless(text().trim_end_matches('\n')));
        }
    }

    /// One of a stream of objects, or a line of text.
    pub(crate) fn event(&self, document: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            self.said_json.set(true);
            let line = serde_json::to_string(document).expect("documents are plain data");
            say(&harmless_document(&line));
        } else {
            say(&harmless(&text()));
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
            true => {
                let line = serde_json::to_string_pretty(document);
                harmless_document(&line.expect("documents are plain data")).into_owned()
            }
            false => harmless(&text()).into_owned(),
        };
        self.said_json.set(self.json);
        let mut out = io::stdout().lock();
        writeln!(out, "{said}").and_then(|()| out.flush())
    }

    /// A line for people only.
    pub(crate) fn line(&self, text: &str) {
        if !self.json {
            say(&harmless(text));
        }
    }

    /// A word to who watches; no data.
    pub(crate) fn talk(&self, text: &str) {
        if !self.json {
            // There may be nobody left to tell.
            let _ = writeln!(io::stderr().lock(), "{}", harmless(text));
        }
    }

    /// What failed, and what to do.
    pub(crate) fn error(&self, problem: &Problem) {
        let mut err = io::stderr().lock();
        // There is nobody left to tell.
        let _ = writeln!(err, "error: {}", harmless(&problem.error));
        if let Some(hint) = &problem.hint {
            let _ = writeln!(err, "\nhint: {}", harmless(hint));
        }
        if self.json && !self.said_json.get() {
            let line = serde_json::to_string_pretty(problem).expect("a problem is plain data");
            say(&harmless_document(&line));
        }
    }
}

fn say(text: &str) {
    let mut out = io::stdout().lock();
    // Who closed the pipe wants no more.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Whether a terminal obeys it, or shows what is around it in another order (Unicode, UAX 9) or on another line.
fn is_obeyed(char: char) -> bool {
    let orders =
        matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    char.is_control() || orders
}

/// The text, with everything that a terminal would obey but the ends of lines written out.
fn harmless(text: &str) -> Cow<'_, str> {
    let obeyed = |char| is_obeyed(char) && char != '\n';
    written_out(text, obeyed, |char| char.escape_unicode().to_string())
}

/// The same of a document, of which serde has left nothing of the kind but in texts.
fn harmless_document(json: &str) -> Cow<'_, str> {
    let obeyed = |char| is_obeyed(char) && char != '\n';
    written_out(json, obeyed, |char| format!("\\u{:04x}", u32::from(char)))
}

/// The same of a cell of a table: whatever is in it, it is one line.
fn harmless_cell(cell: &str) -> Cow<'_, str> {
    written_out(cell, is_obeyed, |char| char.escape_unicode().to_string())
}

fn written_out(
    text: &str,
    obeyed: impl Fn(char) -> bool,
    written: impl Fn(char) -> String,
) -> Cow<'_, str> {
    if !text.contains(&obeyed) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for char in text.chars() {
        match obeyed(char) {
            true => out.push_str(&written(char)),
            false => out.push(char),
        }
    }
    out.into()
}

/// Lines up columns; the first row is the heading.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    // A cell is one line, whatever it is called.
    let rows: Vec<Vec<Cow<'_, str>>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| harmless_cell(cell)).collect())
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

    /// Who had stolen an admin's token gave a vault one way more to open it, with a label that cleared the screen of whoever
    /// listed them, and wrote there what he liked.
    #[test]
    fn a_terminal_obeys_no_label() {
        let label = "key\u{1b}[2J\u{9b}31m\r\nb\u{e9}";
        assert_eq!(harmless(label), "key\\u{1b}[2J\\u{9b}31m\\u{d}\nb\u{e9}");
        assert!(matches!(harmless("as it was\n"), Cow::Borrowed(_)));
        let rows = [["1", "key\n2  mine"], ["3", "\u{202e}yek"]];
        let rows: Vec<Vec<String>> = rows.map(|row| row.map(str::to_owned).to_vec()).into();
        assert_eq!(table(&rows), "1  key\\u{a}2  mine\n3  \\u{202e}yek");
        let document = serde_json::json!({ "label": "\u{9b}31m\u{7f}\u{e9}\n" }).to_string();
        let shown = harmless_document(&document);
        assert_eq!(shown, "{\"label\":\"\\u009b31m\\u007f\u{e9}\\n\"}");
        let read: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(read["label"], "\u{9b}31m\u{7f}\u{e9}\n");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["A", "LONG"], ["bbb", "c"]];
        let rows: Vec<Vec<String>> = rows.map(|row| row.map(str::to_owned).to_vec()).into();
        assert_eq!(table(&rows), "A    LONG\nbbb  c");
    }
}
