//! The tunnel that nodepass is compared with. Debian has no package of it, cargo builds it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, io};

/// Name of its row, and of its program.
pub const NAME: &str = "rathole";

/// The same for everybody, so that results can be told apart by what else has changed.
const VERSION: &str = "0.5.0";

/// No more than a plain tunnel takes. TLS would need the headers of OpenSSL.
const FEATURES: &str = "server,client";

/// Where its program is, once it is installed.
pub fn path(build_folder: &Path) -> PathBuf {
    root(build_folder).join("bin").join(NAME)
}

/// Builds it, unless it is there.
///
/// The versions in the lock file of this release are not asked for (`--locked`): one of them,
/// `time` 0.3.29, no longer compiles with today's Rust.
pub fn install(build_folder: &Path) -> io::Result<()> {
    if path(build_folder).is_file() {
        return Ok(());
    }
    eprintln!("installing {NAME} {VERSION} ({FEATURES}), which takes a few minutes, once");
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["install", NAME, "--version", VERSION, "--quiet"])
        .args(["--no-default-features", "--features", FEATURES, "--root"])
        .arg(root(build_folder))
        // Left to itself it builds in a temporary folder, and not among what is ours.
        .env_remove("CARGO_TARGET_DIR")
        .stdin(Stdio::null())
        .status()?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("cargo install: {status}")))
}

/// Its version and features, as it says itself.
pub fn describe(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map_or_else(
        |error| error.to_string(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    );
    let value = |name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name));
        found.map_or("unknown", str::trim)
    };
    format!(
        "{NAME} {} with features {}, its dependencies of the day it was built, no encryption.",
        value("Build Version:"),
        value("cargo Features:"),
    )
}

fn root(build_folder: &Path) -> PathBuf {
    build_folder.join("peers")
}
