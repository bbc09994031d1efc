//! Hands the target triple to the program, which prints it with `--version`, refuses targets that
//! a feature does not run on, and makes the files that the master serves.

use std::env;
#[cfg(feature = "master")]
use std::fs;
#[cfg(feature = "master")]
use std::path::PathBuf;

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
             --no-default-features --features http2,swagger-ui,tls,websocket"
        );
    }
    println!("cargo::rustc-env=NODEPASS_TARGET={target}");
    #[cfg(feature = "master")]
    write_description();
    #[cfg(feature = "swagger-ui")]
    write_page_files();
}

fn has_quic() -> bool {
    let processor = variable("CARGO_CFG_TARGET_ARCH");
    variable("CARGO_CFG_TARGET_ENDIAN") == "little" && QUIC_PROCESSORS.contains(&processor.as_str())
}

fn variable(name: &str) -> String {
    env::var(name).expect("cargo sets it for build scripts")
}

/// The description of the API without white space: nearly half as long.
#[cfg(feature = "master")]
fn write_description() {
    const SOURCE: &str = "src/master/api/openapi.json";
    println!("cargo::rerun-if-changed={SOURCE}");
    let text = fs::read_to_string(SOURCE).expect("the description of the API");
    let mut small = String::new();
    let mut in_string = false;
    let mut escaped = false;
    for letter in text.chars() {
        if in_string || !letter.is_ascii_whitespace() {
            small.push(letter);
        }
        in_string ^= letter == '"' && !escaped;
        escaped = letter == '\\' && !escaped;
    }
    write_file("openapi.json", small.as_bytes());
}

/// What the page of the API is made of, out of the archive of Swagger UI, as gzip: the archive
/// has the files deflated already.
#[cfg(feature = "swagger-ui")]
fn write_page_files() {
    let archive = zip::Archive::open(utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED);
    for name in [
        "favicon-32x32.png",
        "swagger-ui-bundle.js",
        "swagger-ui.css",
    ] {
        write_file(
            &format!("{name}.gz"),
            &archive.gzip(&format!("dist/{name}")),
        );
    }
    println!("cargo::rustc-env=NODEPASS_SWAGGER_UI={}", archive.folder());
}

#[cfg(feature = "master")]
fn write_file(name: &str, bytes: &[u8]) {
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it for build scripts"));
    fs::write(folder.join(name), bytes).expect("room for a file");
}

/// As much of the zip format as the archive needs.
///
/// Source: APPNOTE.TXT of PKWARE, sections 4.3.7, 4.3.12 and 4.3.16; RFC 1951, RFC 1952.
#[cfg(feature = "swagger-ui")]
mod zip {
    const END_SIGNATURE: &[u8] = b"PK\x05\x06";
    const STORED: u16 = 0;
    const DEFLATED: u16 = 8;
    /// The longest that is stored: what one block of RFC 1951 holds without compression.
    const STORED_SIZE_MAX: usize = 65_535;
    /// Deflated, no flags, no time, no hint on the compressor, unknown system.
    const GZIP_HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

    /// An archive with all its files in one folder.
    pub struct Archive<'a> {
        bytes: &'a [u8],
        entries: Vec<Entry<'a>>,
    }

    struct Entry<'a> {
        name: &'a str,
        method: u16,
        checksum: u32,
        packed_size: usize,
        size: u32,
        head_at: usize,
    }

    impl<'a> Archive<'a> {
        pub fn open(bytes: &'a [u8]) -> Self {
            let end = bytes
                .windows(END_SIGNATURE.len())
                .rposition(|window| window == END_SIGNATURE)
                .expect("the end of the directory");
            let mut at = index(long(bytes, end + 16));
            let mut entries = Vec::new();
            for _ in 0..short(bytes, end + 10) {
                assert_eq!(
                    bytes[at..at + 4],
                    *b"PK\x01\x02",
                    "no entry of the directory"
                );
                let name_size = usize::from(short(bytes, at + 28));
                let more = usize::from(short(bytes, at + 30)) + usize::from(short(bytes, at + 32));
                let name = &bytes[at + 46..][..name_size];
                entries.push(Entry {
                    name: str::from_utf8(name).expect("a name"),
                    method: short(bytes, at + 10),
                    checksum: long(bytes, at + 16),
                    packed_size: index(long(bytes, at + 20)),
                    size: long(bytes, at + 24),
                    head_at: index(long(bytes, at + 42)),
                });
                at += 46 + name_size + more;
            }
            Self { bytes, entries }
        }

        /// The folder that all files are in: name and version of what they make up.
        pub fn folder(&self) -> &'a str {
            let (folder, _) = self.entries[0].name.split_once('/').expect("a folder");
            folder
        }

        /// A file of that folder, as gzip.
        pub fn gzip(&self, name: &str) -> Vec<u8> {
            let name = format!("{}/{name}", self.folder());
            let entry = self.entries.iter().find(|entry| entry.name == name);
            let entry = entry.unwrap_or_else(|| panic!("no {name} in the archive"));
            let name_and_more =
                [26, 28].map(|at| usize::from(short(self.bytes, entry.head_at + at)));
            let start = entry.head_at + 30 + name_and_more.iter().sum::<usize>();
            let packed = &self.bytes[start..][..entry.packed_size];
            let mut gzip = GZIP_HEAD.to_vec();
            match entry.method {
                DEFLATED => {}
                STORED => {
                    assert!(
                        packed.len() <= STORED_SIZE_MAX,
                        "{name} is in more than one block"
                    );
                    let size = u16::try_from(packed.len()).expect("compared above");
                    // The last block, and it is not compressed.
                    gzip.push(1);
                    gzip.extend(size.to_le_bytes());
                    gzip.extend((!size).to_le_bytes());
                }
                method => panic!("{name} is packed by method {method}"),
            }
            gzip.extend(packed);
            gzip.extend(entry.checksum.to_le_bytes());
            gzip.extend(entry.size.to_le_bytes());
            gzip
        }
    }

    fn short(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes([bytes[at], bytes[at + 1]])
    }

    fn long(bytes: &[u8], at: usize) -> u32 {
        u32::from(short(bytes, at)) | u32::from(short(bytes, at + 2)) << 16
    }

    fn index(value: u32) -> usize {
        usize::try_from(value).expect("a build machine of 32 bits at least")
    }
}
