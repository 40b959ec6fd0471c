//! What comes from elsewhere, fit to be shown: names, labels and answers of servers give no orders to a terminal.

use std::borrow::Cow;

/// Whether a terminal obeys it, or shows what is around it in another order (Unicode, UAX 9) or on another line.
fn is_obeyed(char: char) -> bool {
    let orders = matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    char.is_control() || orders
}

/// A text, with everything that a terminal would obey but the ends of lines written out.
pub(crate) fn text(text: &str) -> Cow<'_, str> {
    let obeyed = |char| is_obeyed(char) && char != '\n';
    written_out(text, obeyed, |char| char.escape_unicode().to_string())
}

/// The same of a document, of which serde has left nothing of the kind but in texts.
pub(crate) fn document(json: &str) -> Cow<'_, str> {
    let obeyed = |char| is_obeyed(char) && char != '\n';
    written_out(json, obeyed, |char| format!("\\u{:04x}", u32::from(char)))
}

/// The same of a cell of a table, which is one line, whatever is in it.
pub(crate) fn cell(cell: &str) -> Cow<'_, str> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Who had stolen an admin's token gave a vault one way more to open it, with a label that cleared the screen of whoever
    /// listed them, and wrote there what he liked.
    #[test]
    fn a_terminal_obeys_no_label() {
        let label = "key\u{1b}[2J\u{9b}31m\r\nb\u{e9}";
        assert_eq!(text(label), "key\\u{1b}[2J\\u{9b}31m\\u{d}\nb\u{e9}");
        assert!(matches!(text("as it was\n"), Cow::Borrowed(_)));
        let json = serde_json::json!({ "label": "\u{9b}31m\u{7f}\u{e9}\n" }).to_string();
        let shown = document(&json);
        assert_eq!(shown, "{\"label\":\"\\u009b31m\\u007f\u{e9}\\n\"}");
        let read: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(read["label"], "\u{9b}31m\u{7f}\u{e9}\n");
    }
}
