//! The command line: one URL, or a flag. Nothing of it is shown back, since a URL holds a key.

use std::ffi::OsString;
use std::fmt;

use super::reference::usage;

/// Longest part of an unknown flag that an error shows (characters).
const SHOWN_FLAG_LENGTH_MAX: usize = 32;

/// What the program was asked to do.
#[derive(Clone, PartialEq, Eq)]
pub enum Invocation {
    /// Run this URL.
    Run(String),
    /// Run the URL on the first line of standard input.
    RunStdin,
    /// Read this URL and print it with all defaults; `-` stands for standard input.
    Check(String),
    /// Print the help.
    Help,
    /// Print the version.
    Version,
}

impl fmt::Debug for Invocation {
    /// Without the URL: it holds the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Run(_) => "Run(***)",
            Self::RunStdin => "RunStdin",
            Self::Check(_) => "Check(***)",
            Self::Help => "Help",
            Self::Version => "Version",
        })
    }
}

/// Why the command line cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlagsError {
    /// No argument, and no `NODEPASS_URL` either; prints as the short usage.
    NoUrl,
    /// `--check` without a URL.
    CheckWithoutUrl,
    /// A flag that does not exist, as far as it is shown.
    UnknownFlag(String),
    /// More arguments than one URL.
    TooMany,
    /// An argument or variable is not UTF-8.
    NotUtf8,
}

impl fmt::Display for FlagsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUrl => f.write_str(&usage()),
            Self::CheckWithoutUrl => {
                f.write_str("--check needs a URL behind it, or '-' to read one from standard input")
            }
            Self::UnknownFlag(flag) => write!(
                f,
                "unknown flag '{flag}'; use a URL, '-', --check URL, --help or --version"
            ),
            Self::TooMany => f.write_str(
                "there is more than one URL; put it in quotes, since a shell splits at spaces",
            ),
            Self::NotUtf8 => {
                f.write_str("the URL is not UTF-8; write other bytes percent-encoded, as in %FF")
            }
        }
    }
}

impl std::error::Error for FlagsError {}

/// Reads the arguments, the program's own name already taken off.
///
/// `nodepass_url` is the variable `NODEPASS_URL`; it counts where no argument is, unless empty.
///
/// Errors: [`FlagsError`], each one to be printed before exit status 2.
pub fn parse_flags(
    args: impl Iterator<Item = OsString>,
    nodepass_url: Option<OsString>,
) -> Result<Invocation, FlagsError> {
    let mut args = args.map(|arg| arg.into_string().map_err(|_| FlagsError::NotUtf8));
    let Some(first) = args.next().transpose()? else {
        let url = nodepass_url
            .filter(|url| !url.is_empty())
            .ok_or(FlagsError::NoUrl)?;
        return url
            .into_string()
            .map(Invocation::Run)
            .map_err(|_| FlagsError::NotUtf8);
    };
    let invocation = match first.as_str() {
        "--help" | "-h" => return Ok(Invocation::Help),
        "--version" | "-V" => return Ok(Invocation::Version),
        "-" => Invocation::RunStdin,
        "--check" => Invocation::Check(
            args.next()
                .transpose()?
                .ok_or(FlagsError::CheckWithoutUrl)?,
        ),
        flag if flag.starts_with('-') => return Err(FlagsError::UnknownFlag(shown_flag(flag))),
        _ => Invocation::Run(first),
    };
    match args.next() {
        Some(_) => Err(FlagsError::TooMany),
        None => Ok(invocation),
    }
}

/// The letters of the flag, and no value that may be glued to it.
fn shown_flag(flag: &str) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
    let name: String = flag
        .chars()
        .take_while(plain)
        .take(SHOWN_FLAG_LENGTH_MAX)
        .collect();
    if name.len() < flag.len() {
        name + "..."
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str], variable: Option<&str>) -> Result<Invocation, FlagsError> {
        parse_flags(
            args.iter().map(OsString::from),
            variable.map(OsString::from),
        )
    }

    #[test]
    fn each_invocation_is_recognised() {
        let run = |url: &str| Ok(Invocation::Run(url.to_owned()));
        assert_eq!(parse(&["server://x"], None), run("server://x"));
        assert_eq!(
            parse(&["server://x"], Some("client://y")),
            run("server://x")
        );
        assert_eq!(parse(&[], Some("client://y")), run("client://y"));
        assert_eq!(parse(&["-"], None), Ok(Invocation::RunStdin));
        assert_eq!(
            parse(&["--check", "x"], None),
            Ok(Invocation::Check("x".to_owned()))
        );
        assert_eq!(
            parse(&["--check", "-"], None),
            Ok(Invocation::Check("-".to_owned()))
        );
        for flag in ["--help", "-h"] {
            assert_eq!(parse(&[flag], None), Ok(Invocation::Help));
        }
        for flag in ["--version", "-V"] {
            assert_eq!(parse(&[flag], Some("client://y")), Ok(Invocation::Version));
        }
    }

    #[test]
    fn each_fault_has_its_error() {
        assert_eq!(parse(&[], None), Err(FlagsError::NoUrl));
        assert_eq!(parse(&[], Some("")), Err(FlagsError::NoUrl));
        assert_eq!(
            parse(&["--check"], Some("x")),
            Err(FlagsError::CheckWithoutUrl)
        );
        assert_eq!(parse(&["a", "b"], None), Err(FlagsError::TooMany));
        assert_eq!(parse(&["-", "b"], None), Err(FlagsError::TooMany));
        assert_eq!(
            parse(&["--check", "a", "b"], None),
            Err(FlagsError::TooMany)
        );
        assert_eq!(
            parse(&["-v"], None),
            Err(FlagsError::UnknownFlag("-v".to_owned()))
        );
    }

    #[cfg(unix)]
    #[test]
    fn only_utf8_is_read() {
        use std::os::unix::ffi::OsStringExt;

        let broken = || OsString::from_vec(vec![b's', 0xff]);
        assert_eq!(
            parse_flags([broken()].into_iter(), None),
            Err(FlagsError::NotUtf8)
        );
        assert_eq!(
            parse_flags([].into_iter(), Some(broken())),
            Err(FlagsError::NotUtf8)
        );
        let check = ["--check".into(), broken()];
        assert_eq!(
            parse_flags(check.into_iter(), None),
            Err(FlagsError::NotUtf8)
        );
    }

    #[test]
    fn no_error_shows_a_key() {
        let url = "server://secret@:1/:2";
        let run = Invocation::Run(url.to_owned());
        let check = Invocation::Check(url.to_owned());
        assert_eq!(format!("{run:?} {check:?}"), "Run(***) Check(***)");
        let glued = format!("--check={url}");
        let error = parse(&[&glued], None).unwrap_err().to_string();
        assert!(
            error.starts_with("unknown flag '--check...'; use "),
            "{error}"
        );
        let error = parse(&[url, url], None).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"));
    }

    #[test]
    fn missing_url_prints_the_usage() {
        let text = FlagsError::NoUrl.to_string();
        assert!(
            text.starts_with("Usage:") && text.contains("--help"),
            "{text}"
        );
    }
}
