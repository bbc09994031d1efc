//! `/info`: the master and its machine.

use serde::{Deserialize, Serialize};
use tiny_http::Request;

use super::instances::{Object, read_body};
use super::reply::Reply;
use super::router::Router;
use crate::config::address::Host;
use crate::config::options::OptionSpec;
use crate::master::changes::{Change, Edit};
use crate::master::host::{HostFigures, arch, os};
use crate::master::instance::{KEY_ENTRY_ID, check_length};

/// What there is to say about the master.
#[derive(Serialize)]
#[allow(missing_docs, reason = "the members are those of the specification")]
pub struct MasterInfo {
    pub mid: String,
    pub alias: String,
    pub os: &'static str,
    pub arch: &'static str,
    #[serde(flatten)]
    pub figures: HostFigures,
    pub ver: &'static str,
    pub name: String,
    pub uptime: u64,
    pub log: String,
    pub tls: String,
    pub crt: String,
    pub key: String,
}

/// Body of POST.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Naming {
    alias: Option<String>,
}

/// What the master is, and how its machine fares.
///
/// Blocks: while the load of the processors is measured.
pub fn show(router: &Router) -> Reply {
    let entry = router.registry.key_entry();
    let option = |name| {
        let spec = OptionSpec::find(name);
        let value = spec.and_then(|spec| (spec.show)(&router.config.options));
        value.unwrap_or_default()
    };
    let info = MasterInfo {
        mid: entry.config.clone(),
        alias: entry.alias.clone(),
        os: os(),
        arch: arch(),
        figures: router.host.read(),
        ver: concat!("v", env!("CARGO_PKG_VERSION")),
        name: host_name(&router.config.tunnel.host),
        uptime: router.started_at.elapsed().as_secs(),
        log: option("log"),
        tls: option("tls"),
        crt: option("crt"),
        key: option("key"),
    };
    Reply::json(200, &info)
}

/// Returns the host of the API address as the URL has it.
fn host_name(host: &Host) -> String {
    match host {
        Host::Any => String::new(),
        Host::Ip(ip) => ip.to_string(),
        Host::Name(name) => name.to_string(),
    }
}

/// Another name for the master.
pub fn rename(router: &Router, request: &mut Request) -> Result<Reply, Reply> {
    let Object(naming): Object<Naming> = read_body(request)?;
    if let Some(alias) = naming.alias {
        check_length("Master alias", &alias).map_err(|error| Reply::error(400, error))?;
        let edit = Edit {
            alias: Some(alias),
            ..Edit::default()
        };
        let id = String::from(KEY_ENTRY_ID);
        router.changes.make(Change::Edit { id, edit })?;
    }
    Ok(show(router))
}
