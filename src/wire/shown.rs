//! Text of others, as an error or a log line may show it.

use crate::limits::SHOWN_LENGTH_MAX;

/// Returns `value` without anything that a terminal acts on, cut after [`SHOWN_LENGTH_MAX`]
/// characters.
pub fn shown(value: &str) -> String {
    let mut text = String::new();
    for (index, c) in value.chars().enumerate() {
        if index == SHOWN_LENGTH_MAX {
            text.push_str("...");
            break;
        }
        match c {
            '\'' | '"' => text.push(c),
            _ => text.extend(c.escape_debug()),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_values_are_harmless_and_bounded() {
        assert_eq!(
            shown("it's\n\u{1b}[31m\u{202e}"),
            "it's\\n\\u{1b}[31m\\u{202e}"
        );
        let longest = "x".repeat(SHOWN_LENGTH_MAX);
        assert_eq!(shown(&longest), longest);
        assert_eq!(shown(&format!("{longest}x")), format!("{longest}..."));
    }
}
