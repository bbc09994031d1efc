//! Hands the target triple to the program, which prints it with `--version`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = std::env::var("TARGET").expect("cargo sets TARGET");
    println!("cargo::rustc-env=NODEPASS_TARGET={target}");
}
