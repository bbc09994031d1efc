//! Help, manual and README text, all out of the tables of options and variables.
//!
//! No line ends in white space and every text ends in a line break.

use std::fmt::Write;

use super::Core;
use super::env::VARIABLES;
use super::options::{OPTIONS, OptionSpec};

/// Widest line of the help (columns): what a terminal shows at least.
const WIDTH_MAX: usize = 80;

const USAGE: &str = "\
Usage: nodepass URL            run the URL until SIGINT or SIGTERM
       nodepass -              the same, the URL read from standard input
       nodepass                the same, the URL in the variable NODEPASS_URL
       nodepass --check URL    check the URL, print it with all defaults
       nodepass -h, --help     every option and environment variable
       nodepass -V, --version  version, features and target
";

const FORMS: &str = "\
URL forms, with an example each:
  server://[KEY@]TUNNEL/TARGET[,TARGET...][?OPTION=VALUE&...]
      nodepass 'server://secret@:10101/:10080?mode=1&tls=1&auth=1'
  client://[KEY@]TUNNEL/TARGET[,TARGET...][?OPTION=VALUE&...]
      nodepass 'client://secret@example.com:10101/127.0.0.1:8080?mode=2&auth=1'
  master://API[/PREFIX][?OPTION=VALUE&...]
      nodepass 'master://127.0.0.1:9090/api?log=info'

A client goes to the server at TUNNEL (mode=2), or listens there itself and
forwards to its targets without a server (mode=1). Of the two ends of a tunnel,
one listens for visitors at its TARGET, and the other one connects them to its
own TARGET: with mode=1 at the server, the server listens; with mode=2 there,
the client. A master runs servers and clients as its children, on orders over
HTTP at API/PREFIX/v1; its log tells the key, and /docs explains it.

An address is host:port, 1.2.3.4:port, [IPv6]:port or :port. In a key, reserved
characters are percent-encoded. A duration is 300ms, 1.5h, 2h45m (units ns, us,
ms, s, m, h) or 0.
";

/// The optional parts that are built in, by the names of their cargo features.
pub const FEATURES: &[&str] = &[
    #[cfg(feature = "http2")]
    "http2",
    #[cfg(feature = "master")]
    "master",
    #[cfg(feature = "quic")]
    "quic",
    #[cfg(feature = "swagger-ui")]
    "swagger-ui",
    #[cfg(feature = "tls")]
    "tls",
    #[cfg(feature = "websocket")]
    "websocket",
];

/// The line that `--version` prints.
pub fn version() -> String {
    let (version, target) = (env!("CARGO_PKG_VERSION"), env!("NODEPASS_TARGET"));
    let features = if FEATURES.is_empty() {
        String::from("none")
    } else {
        FEATURES.join(", ")
    };
    format!("nodepass {version} (features: {features}; target {target})\n")
}

/// The short usage, for a command line without a URL.
pub fn usage() -> String {
    USAGE.to_owned()
}

/// All that `--help` prints.
pub fn help() -> String {
    let mut text = format!("{USAGE}\n{FORMS}\nOptions (S server, C client, M master):\n");
    let rows = OPTIONS.iter().map(|spec| {
        let head = format!(
            "{:<7}{:<7}{:<9}",
            spec.name,
            core_letters(spec),
            spec.default
        );
        (head, explanation(spec.meaning, spec.values))
    });
    let titles = format!("{:<7}{:<7}{:<9}", "name", "cores", "default");
    push_table(&mut text, &titles, "meaning and accepted values", rows);

    text.push_str("\nEnvironment variables, an older name in brackets:\n");
    for spec in VARIABLES {
        let older = spec
            .older_name
            .map(|name| format!(" [{name}]"))
            .unwrap_or_default();
        let line = format!("{}{older}, default {}", spec.name, spec.default);
        push_wrapped(&mut text, "  ", &line, 6);
        push_wrapped(
            &mut text,
            "      ",
            &explanation(spec.meaning, spec.values),
            6,
        );
    }
    text
}

/// The OPTIONS section of the manual page, without its heading (man(7) macros).
pub fn man_options() -> String {
    let mut text = String::new();
    for spec in OPTIONS {
        let _ = writeln!(text, ".TP\n.B {}", escape_man(spec.name));
        push_man_explanation(&mut text, spec.meaning, spec.values);
        let default = if spec.default.is_empty() {
            "none"
        } else {
            spec.default
        };
        push_man_line(&mut text, &format!("Default: {default}."));
        push_man_line(&mut text, &format!("Applies to: {}.", core_names(spec)));
    }
    text
}

/// The ENVIRONMENT section of the manual page, without its heading (man(7) macros).
pub fn man_environment() -> String {
    let mut text = String::new();
    for spec in VARIABLES {
        let _ = writeln!(text, ".TP\n.B {}", escape_man(spec.name));
        push_man_explanation(&mut text, spec.meaning, spec.values);
        push_man_line(&mut text, &format!("Default: {}.", spec.default));
        if let Some(older) = spec.older_name {
            push_man_line(&mut text, &format!("Older name: {older}."));
        }
    }
    text
}

/// The table of options for the README.
pub fn markdown_options() -> String {
    let mut text = "| option | for | default | meaning | values |\n\
                    |---|---|---|---|---|\n"
        .to_owned();
    for spec in OPTIONS {
        let cells = [
            &code(spec.name),
            &core_names(spec),
            &code(spec.default),
            spec.meaning,
            spec.values,
        ];
        push_markdown_row(&mut text, &cells);
    }
    text
}

/// The table of environment variables for the README.
pub fn markdown_environment() -> String {
    let mut text = "| variable | default | meaning | values |\n\
                    |---|---|---|---|\n"
        .to_owned();
    for spec in VARIABLES {
        // A column of its own would be empty for most of them.
        let older = spec
            .older_name
            .map(|name| format!("; older name {}", code(name)))
            .unwrap_or_default();
        let meaning = format!("{}{older}", spec.meaning);
        let cells = [&code(spec.name), spec.default, &meaning, spec.values];
        push_markdown_row(&mut text, &cells);
    }
    text
}

fn core_letters(spec: &OptionSpec) -> String {
    let letter = |core| match core {
        Core::Server => "S",
        Core::Client => "C",
        Core::Master => "M",
    };
    let letters = Core::ALL.map(|core| {
        if spec.applies_to(core) {
            letter(core)
        } else {
            "-"
        }
    });
    letters.join(" ")
}

fn core_names(spec: &OptionSpec) -> String {
    spec.cores
        .iter()
        .map(|core| core.name())
        .collect::<Vec<_>>()
        .join(", ")
}

/// What it does and what is accepted, in two sentences.
fn explanation(meaning: &str, values: &str) -> String {
    format!("{} {}", sentence(meaning), advice(values))
}

fn advice(values: &str) -> String {
    format!("Use {values}.")
}

/// With a capital at its start and a full stop at its end.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).chain(['.']).collect()
}

/// Rows of fixed columns (`head`) and one last column that is wrapped.
fn push_table(
    text: &mut String,
    titles: &str,
    last_title: &str,
    rows: impl Iterator<Item = (String, String)>,
) {
    let indent = 2 + titles.len();
    push_wrapped(text, &format!("  {titles}"), last_title, indent);
    for (head, last) in rows {
        push_wrapped(text, &format!("  {head}"), &last, indent);
    }
}

/// Appends `start` and the words of `words`; lines after the first are indented.
fn push_wrapped(text: &mut String, start: &str, words: &str, indent: usize) {
    let mut line = start.to_owned();
    let mut is_line_start = true;
    for word in words.split(' ') {
        let space = usize::from(!is_line_start);
        if !is_line_start && line.len() + space + word.len() > WIDTH_MAX {
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(indent);
            is_line_start = true;
        }
        if !is_line_start {
            line.push(' ');
        }
        line.push_str(word);
        is_line_start = false;
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

/// A line for each sentence: so the page's formatter knows where one ends.
fn push_man_explanation(text: &mut String, meaning: &str, values: &str) {
    push_man_line(text, &sentence(meaning));
    push_man_line(text, &advice(values));
}

fn push_man_line(text: &mut String, line: &str) {
    let escaped = escape_man(line);
    // A line that begins with one of these would be read as a request.
    if escaped.starts_with(['.', '\'']) {
        text.push_str("\\&");
    }
    text.push_str(&escaped);
    text.push('\n');
}

/// `-` alone would be set as a hyphen, which cannot be copied into a shell.
fn escape_man(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

fn code(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("`{text}`")
    }
}

fn push_markdown_row(text: &mut String, cells: &[&str]) {
    for cell in cells {
        let space = if cell.is_empty() { "" } else { " " };
        let _ = write!(text, "|{space}{} ", cell.replace('|', "\\|"));
    }
    text.push_str("|\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_names_every_option_and_variable() {
        for spec in OPTIONS {
            assert!(
                help().contains(&format!("\n  {:<7}", spec.name)),
                "{}",
                spec.name
            );
            assert!(man_options().contains(&format!(".TP\n.B {}\n", spec.name)));
            assert!(markdown_options().contains(&format!("\n| `{}` |", spec.name)));
        }
        for spec in VARIABLES {
            assert!(
                help().contains(&format!("\n  {}", spec.name)),
                "{}",
                spec.name
            );
            assert!(man_environment().contains(&format!(".TP\n.B {}\n", spec.name)));
            assert!(markdown_environment().contains(&format!("\n| `{}` |", spec.name)));
            if let Some(older) = spec.older_name {
                assert!(help().contains(&format!("[{older}]")));
                assert!(man_environment().contains(&format!("Older name: {older}.")));
                assert!(markdown_environment().contains(&format!("; older name `{older}` |")));
            }
        }
    }

    #[test]
    fn lines_are_tidy() {
        let texts = [
            usage(),
            help(),
            man_options(),
            man_environment(),
            markdown_options(),
            markdown_environment(),
        ];
        for text in texts {
            assert!(text.ends_with('\n') && text.is_ascii());
            for line in text.lines() {
                assert_eq!(line, line.trim_end());
            }
        }
        for line in help().lines() {
            assert!(line.len() <= WIDTH_MAX, "{line}");
        }
    }

    #[test]
    fn examples_of_the_help_are_good_urls() {
        let help = help();
        let examples = help.lines().filter_map(|line| {
            line.trim()
                .strip_prefix("nodepass '")
                .and_then(|line| line.strip_suffix('\''))
        });
        let mut count = 0;
        for url in examples {
            let (_, notices) = super::super::parse_url(url, &Default::default()).unwrap();
            assert_eq!(notices, []);
            count += 1;
        }
        assert_eq!(count, Core::ALL.len());
    }

    #[test]
    fn man_lines_are_never_requests() {
        for line in man_options().lines().chain(man_environment().lines()) {
            let is_macro = line == ".TP" || line.starts_with(".B ");
            assert!(is_macro || !line.starts_with(['.', '\'']), "{line}");
            assert!(!line.replace("\\-", "").contains('-'), "{line}");
        }
        let mut text = String::new();
        push_man_line(&mut text, ".x-y\\");
        push_man_line(&mut text, "'x");
        assert_eq!(text, "\\&.x\\-y\\e\n\\&'x\n");
    }

    #[test]
    fn markdown_cells_cannot_break_the_table() {
        let mut text = String::new();
        push_markdown_row(&mut text, &["a|b", "", "c"]);
        assert_eq!(text, "| a\\|b | | c |\n");
    }

    #[test]
    fn long_text_is_wrapped_under_its_column() {
        let mut text = String::new();
        push_wrapped(&mut text, "  head ", &"word ".repeat(20), 7);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].len() <= WIDTH_MAX && lines[1].starts_with("       word"));
    }
}
