//! What is written about the program: each table is the one in the code, each example works.
//!
//! With `NP_UPDATE_DOCUMENTS=1`, which `make man` sets, the sections that come out of the code
//! are written anew before they are looked at.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::{env, fs};

use nodepass::config::env::VARIABLES;
use nodepass::config::options::OPTIONS;
use nodepass::config::reference;

use super::support::program::{Launch, Outcome};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A part of a document that comes out of the code.
struct Section {
    name: &'static str,
    render: fn() -> String,
}

/// A document with such parts.
struct Document {
    path: &'static str,
    /// What stands before and after the name of a section, and which end it is, in its markers.
    marker: (&'static str, &'static str),
    sections: [Section; 2],
    /// Lines between which there are commands to be copied.
    example_fences: (&'static str, &'static str),
}

const README: Document = Document {
    path: "README.md",
    marker: ("<!-- ", " -->"),
    sections: [
        Section {
            name: "options",
            render: || format!("\n{}\n", reference::markdown_options()),
        },
        Section {
            name: "environment",
            render: || format!("\n{}\n", reference::markdown_environment()),
        },
    ],
    example_fences: ("```sh", "```"),
};

const MANUAL: Document = Document {
    path: "man/nodepass.1",
    marker: (".\\\" ", ""),
    sections: [
        Section {
            name: "options",
            render: reference::man_options,
        },
        Section {
            name: "environment",
            render: reference::man_environment,
        },
    ],
    example_fences: (".EX", ".EE"),
};

impl Document {
    /// The document as it is, after it was written anew if that is asked for.
    fn text(&self) -> String {
        // Tests run side by side: nobody should read a file that is half written.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let text = read(self.path);
        if env::var_os("NP_UPDATE_DOCUMENTS").is_none_or(|value| value != "1") {
            return text;
        }
        let wanted = self.with_sections(&text);
        if wanted != text {
            fs::write(path_of(self.path), &wanted).unwrap();
        }
        wanted
    }

    /// `text` with each section as the code has it.
    fn with_sections(&self, text: &str) -> String {
        let mut text = text.to_owned();
        let (before, after) = self.marker;
        for Section { name, render } in &self.sections {
            let begin = format!("{before}{name}: begin{after}\n");
            let end = format!("{before}{name}: end{after}\n");
            let place = |marker: &str| {
                assert_eq!(text.matches(marker).count(), 1, "{}: {marker}", self.path);
                text.find(marker).unwrap()
            };
            let (start, stop) = (place(&begin) + begin.len(), place(&end));
            text.replace_range(start..stop, &render());
        }
        text
    }

    /// The commands that a reader can copy.
    fn examples(&self) -> Vec<String> {
        let (open, close) = self.example_fences;
        let mut is_example = false;
        let mut lines = Vec::new();
        for line in self.text().lines() {
            match line {
                _ if line == open => is_example = true,
                _ if line == close => is_example = false,
                _ if is_example => lines.push(line.replace("\\-", "-").replace("\\e", "\\")),
                _ => {}
            }
        }
        assert!(!is_example, "{}: an example without an end", self.path);
        lines
    }

    /// The URLs of those commands.
    fn urls(&self) -> Vec<String> {
        let schemes = ["client://", "server://", "master://"];
        let examples = self.examples();
        let words = examples
            .iter()
            .flat_map(|line| line.split([' ', '\'', '"']));
        words
            .filter(|word| schemes.iter().any(|scheme| word.starts_with(scheme)))
            .map(str::to_owned)
            .collect()
    }
}

fn path_of(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path_of(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn run(argument: &str) -> Outcome {
    let outcome = Launch::new(&[argument]).run();
    assert_eq!((outcome.status, outcome.errors.as_str()), (0, ""));
    outcome
}

#[test]
fn generated_sections_are_those_of_the_code() {
    for document in [README, MANUAL] {
        let text = document.text();
        let is_fresh = text == document.with_sections(&text);
        assert!(is_fresh, "{} is stale: run 'make man'", document.path);
    }
}

#[test]
fn the_program_prints_the_help_of_the_code() {
    assert_eq!(run("--help").output, reference::help());
    assert_eq!(run("-h").output, reference::help());
}

#[test]
fn the_version_is_the_same_everywhere() {
    let output = run("--version").output;
    assert!(
        output.starts_with(&format!("nodepass {VERSION} (")),
        "{output}"
    );

    let manual = MANUAL.text();
    let header = manual
        .lines()
        .find(|line| line.starts_with(".TH "))
        .unwrap();
    assert!(
        header.contains(&format!("\"nodepass {VERSION}\"")),
        "{header}"
    );

    let changes = read("CHANGELOG.md");
    assert!(changes.contains(VERSION), "CHANGELOG.md: {VERSION}");
    let first = changes.lines().find(|line| line.starts_with("## "));
    assert_eq!(first, Some("## Unreleased"));
}

#[test]
fn every_option_and_variable_is_explained_everywhere() {
    let help = run("--help").output;
    let readme = README.text();
    let manual = MANUAL.text();
    let options = OPTIONS.iter().map(|spec| spec.name);
    let older = VARIABLES.iter().filter_map(|spec| spec.older_name);
    let variables = VARIABLES.iter().map(|spec| spec.name);
    for name in options.chain(variables) {
        assert!(help.contains(&format!("\n  {name}")), "--help: {name}");
        assert!(
            readme.contains(&format!("\n| `{name}` |")),
            "README.md: {name}"
        );
        assert!(
            manual.contains(&format!("\n.B {name}\n")),
            "man/nodepass.1: {name}"
        );
    }
    for name in older {
        for text in [&help, &readme, &manual] {
            assert!(text.contains(name), "{name}");
        }
    }
}

#[test]
fn every_url_of_the_examples_is_accepted() {
    for document in [README, MANUAL] {
        let urls = document.urls();
        assert!(!urls.is_empty(), "{}: no examples", document.path);
        for url in urls {
            let outcome = Launch::new(&["--check", &url]).run();
            assert_eq!(
                (outcome.status, outcome.errors.as_str()),
                (0, ""),
                "{}: {url}",
                document.path
            );
        }
    }
}

#[test]
fn every_make_target_of_the_readme_exists() {
    let makefile = read("Makefile");
    let readme = README.text();
    let in_prose = readme.split('`').filter(|part| part.starts_with("make "));
    let examples = README.examples();
    let commands = in_prose.chain(examples.iter().map(String::as_str));
    let mut count = 0;
    for command in commands {
        let command = command.split('#').next().unwrap_or_default();
        let words = command.split_whitespace();
        let arguments = words.skip_while(|word| *word != "make").skip(1);
        for target in arguments.filter(|word| !word.contains('=')) {
            let is_known = makefile.lines().any(|line| {
                line.strip_prefix(target)
                    .is_some_and(|rest| rest.starts_with(':'))
            });
            assert!(is_known, "{command}: no such target");
            count += 1;
        }
    }
    assert!(count > 0, "README.md names no target");
}
