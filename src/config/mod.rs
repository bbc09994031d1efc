//! The configuration: one URL and the environment, as typed values.
//!
//! Text is read here, once; past this module nothing is checked a second time.
//!
//! | module | owns |
//! |---|---|
//! | [`flags`] | the command line |
//! | [`url`] | the URL |
//! | `instance` | the URL of an instance, with what its master adds |
//! | [`options`] | the table of URL options |
//! | [`mod@env`] | the table of environment variables |
//! | [`mod@reference`] | help, manual and README text out of the two tables |
//! | [`address`], [`duration`] | two notations |
//! | [`error`] | what is wrong, in words |

pub mod address;
pub mod duration;
pub mod env;
pub mod error;
pub mod flags;
#[cfg(feature = "master")]
pub mod instance;
pub mod options;
pub(crate) mod percent;
pub mod reference;
mod spelling;
pub mod url;
mod values;

pub use address::{Address, Host};
pub use env::read_limits;
pub use error::{ConfigError, Notice};
pub use flags::{FlagsError, Invocation, parse_flags};
pub use options::{
    Auth, Balance, Block, LogLevel, Mode, NamePolicy, Options, ProxyHeader, TlsMode, Transport,
};
pub use url::parse_url;

use crate::wire::key::{HIDDEN_KEY, TunnelKey};
use options::OPTIONS;

/// Path of a master's API when the URL names none.
pub const API_PREFIX_DEFAULT: &str = "/api";

/// What the program does: the scheme of the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// The end of a tunnel that clients come to.
    Server,
    /// The end of a tunnel that goes to a server, or a forwarder on its own.
    Client,
    /// Runs servers and clients on orders from its API.
    Master,
}

impl Core {
    /// Every core.
    pub const ALL: [Self; 3] = [Self::Server, Self::Client, Self::Master];

    /// Its name, the scheme of its URL.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Master => "master",
        }
    }
}

/// One URL, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What to run.
    pub core: Core,
    /// The key of the URL, never empty; unset, one is derived from the tunnel port.
    pub key: Option<TunnelKey>,
    /// The tunnel address; of a master the API address.
    pub tunnel: Address,
    /// At least one, except for a master, which has none.
    pub targets: Vec<Address>,
    /// Of a master, the path below which its API lives: begins with `/`, does not end with it.
    pub api_prefix: String,
    /// Every option.
    pub options: Options,
}

impl Config {
    /// The URL with every default filled in and options sorted by name; the key is hidden.
    pub fn to_url(&self) -> String {
        self.to_url_with(self.key.as_ref().map(|_| HIDDEN_KEY), Vec::new())
    }

    /// The same with this text in place of the key, and with `others` among the options: pairs of
    /// name and value, each as it is to be written.
    fn to_url_with(&self, key: Option<&str>, others: Vec<(&str, String)>) -> String {
        let key = key.map(|key| format!("{key}@")).unwrap_or_default();
        let path = match self.core {
            Core::Master => self.api_prefix.clone(),
            Core::Server | Core::Client => {
                let targets: Vec<_> = self.targets.iter().map(Address::to_string).collect();
                format!("/{}", targets.join(","))
            }
        };
        let shown = OPTIONS
            .iter()
            .filter(|spec| spec.applies_to(self.core))
            .filter_map(|spec| Some((spec.name, spec.show_encoded(&self.options)?)));
        let query = join_sorted(shown.chain(others).collect());
        format!("{}://{key}{}{path}?{query}", self.core.name(), self.tunnel)
    }
}

/// A query of these options, sorted by name.
fn join_sorted(mut pairs: Vec<(&str, String)>) -> String {
    pairs.sort_by(|one, other| one.0.cmp(other.0));
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}
