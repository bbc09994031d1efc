//! Hands the target triple to the program, which prints it with `--version`, and refuses targets
//! that a feature does not run on.

use std::env;

/// Where QUIC runs, little-endian: as Cargo.toml has it for quiche. BoringSSL knows no others, but
/// for 32-bit MIPS, on which QUIC crashed.
const QUIC_PROCESSORS: [&str; 6] = ["aarch64", "arm", "mips64", "riscv64", "x86", "x86_64"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = variable("TARGET");
    if env::var_os("CARGO_FEATURE_QUIC").is_some() && !has_quic() {
        println!(
            "cargo::error=feature quic (type=1) does not run on {target}: BoringSSL does not know \
             this processor, or crashes on it; build with \
             --no-default-features --features http2,tls,websocket"
        );
    }
    println!("cargo::rustc-env=NODEPASS_TARGET={target}");
}

fn has_quic() -> bool {
    let processor = variable("CARGO_CFG_TARGET_ARCH");
    variable("CARGO_CFG_TARGET_ENDIAN") == "little" && QUIC_PROCESSORS.contains(&processor.as_str())
}

fn variable(name: &str) -> String {
    env::var(name).expect("cargo sets it for build scripts")
}
