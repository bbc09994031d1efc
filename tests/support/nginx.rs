//! nginx in front of a server: it ends TLS and passes the rest on, upgrades included.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, thread};

use super::certificates::Certificates;
use super::eventually;
use super::visitors::try_dial;

/// Where Debian has it, which is not on everybody's path.
const PROGRAM: &str = "/usr/sbin/nginx";

/// Its log, within its folder.
const ERRORS: &str = "errors";

/// A running nginx. Dropping it kills it; in a failing test it shows its log as well.
pub struct Nginx {
    child: Child,
    folder: PathBuf,
}

impl Nginx {
    /// Starts at `front`, with a certificate of `certificates`, before `back`; `directives` are
    /// more of them for what it passes on.
    #[track_caller]
    pub fn start(
        front: SocketAddr,
        certificates: &Certificates,
        back: SocketAddr,
        directives: &str,
    ) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("nodepass-nginx-{}-{number}", std::process::id());
        let folder = env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        let text = configuration(&folder, front, certificates, back, directives);
        let file = folder.join("nginx.conf");
        fs::write(&file, text).unwrap();
        let program = match Path::new(PROGRAM).exists() {
            true => PROGRAM,
            false => "nginx",
        };
        let child = Command::new(program)
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(&folder)
            .arg("-e")
            .arg(folder.join(ERRORS))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| match error.kind() {
                ErrorKind::NotFound => panic!("nginx is missing: run `make test`, which brings it"),
                _ => panic!("nginx: {error}"),
            });
        let nginx = Self { child, folder };
        eventually("nginx", || try_dial(front).ok());
        nginx
    }

    /// How many connections it has cut because nothing passed.
    pub fn timeouts_count(&self) -> usize {
        let errors = self.errors();
        errors.matches("upstream timed out").count()
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.folder.join(ERRORS)).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- nginx\n{}---", self.errors());
        }
        // What cannot be removed is in the folder for passing files anyway.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// What one would set up in front of a server, in one process that stays in the foreground.
fn configuration(
    folder: &Path,
    front: SocketAddr,
    certificates: &Certificates,
    back: SocketAddr,
    directives: &str,
) -> String {
    let folder = folder.display();
    let (chain, key) = (certificates.chain(), certificates.key());
    let (chain, key) = (chain.display(), key.display());
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let places = kinds.map(|kind| format!("    {kind}_temp_path {folder}/{kind};\n"));
    let places = places.concat();
    format!(
        "daemon off;
error_log {folder}/{ERRORS} info;
master_process off;
pid {folder}/pid;
worker_rlimit_nofile 4096;
events {{ worker_connections 2048; }}
http {{
    access_log off;
{places}    map $http_upgrade $connection_upgrade {{
        default upgrade;
        '' close;
    }}
    server {{
        listen {front} ssl;
        ssl_protocols TLSv1.3;
        ssl_certificate {chain};
        ssl_certificate_key {key};
        location / {{
            proxy_pass http://{back};
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_buffering off;
            {directives}
        }}
    }}
}}
"
    )
}
