//! Which request is for whom, and who may ask.

use std::sync::Arc;
use std::time::Instant;

use tiny_http::{Method, Request};

use super::backend::Received;
use super::pages::Headers;
use super::reply::Reply;
use super::tcping::Tcping;
use super::{events, info, instances, openapi, pages};
use crate::config::Config;
use crate::config::percent::decode_percent;
use crate::limits::Limits;
use crate::master::changes::Changes;
use crate::master::host::Host;
use crate::master::registry::Registry;
use crate::wire::key::same_bytes;

/// What all handlers share.
pub struct Router {
    /// The master's own configuration.
    pub config: Config,
    /// Limits of the program.
    pub limits: Limits,
    /// What there is.
    pub registry: Arc<Registry>,
    /// The way to change it.
    pub changes: Changes,
    /// Figures of the machine.
    pub host: Host,
    /// Connection tests.
    pub tcping: Tcping,
    /// Start of the master.
    pub started_at: Instant,
}

/// What a path stands for.
#[derive(Debug, PartialEq, Eq)]
enum Resource<'a> {
    Instances,
    /// One of them; the name is percent-encoded, and may be empty.
    Instance(&'a str),
    Events,
    Info,
    Tcping,
    OpenApi,
    Docs,
    /// A file of the page.
    Asset(&'a str),
}

impl<'a> Resource<'a> {
    /// Returns what a path below the version stands for.
    fn find(path: &'a str) -> Option<Self> {
        match path {
            "/instances" => Some(Self::Instances),
            "/events" => Some(Self::Events),
            "/info" => Some(Self::Info),
            "/tcping" => Some(Self::Tcping),
            "/openapi.json" => Some(Self::OpenApi),
            "/docs" => Some(Self::Docs),
            _ => {
                let instance = path.strip_prefix("/instances/").map(Self::Instance);
                let asset = path.strip_prefix("/docs/").map(Self::Asset);
                // A path that goes on is none of ours.
                instance
                    .or(asset)
                    .filter(|_| path.matches('/').count() == 2)
            }
        }
    }

    /// Returns the header field that names its methods (RFC 9110 section 15.5.6 asks for it).
    fn allowed(&self) -> Headers {
        match self {
            Self::Instances | Self::Info => &[("Allow", "GET, HEAD, OPTIONS, POST")],
            Self::Instance(_) => &[("Allow", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT")],
            Self::Events | Self::Tcping | Self::OpenApi | Self::Docs | Self::Asset(_) => {
                &[("Allow", "GET, HEAD, OPTIONS")]
            }
        }
    }

    fn needs_key(&self) -> bool {
        !matches!(self, Self::OpenApi | Self::Docs | Self::Asset(_))
    }
}

impl Router {
    /// Answers a request.
    ///
    /// Blocks: until the answer has left; of an event stream, until that ends.
    pub fn answer(&self, received: Received) {
        let Received {
            mut request,
            departure,
        } = received;
        let url = request.url().to_owned();
        let (path, query) = url.split_once('?').unwrap_or((&url, ""));
        let reply = match self.resource(&request, path) {
            Err(reply) => reply,
            Ok(Resource::Events) if is_get(request.method()) => {
                return events::stream(&self.registry, request, &departure);
            }
            Ok(resource) => self.reply(&resource, query, &mut request),
        };
        // Whoever has left does not need it.
        let _ = reply.send(request);
    }

    /// Returns what is asked for, if the one who asks may.
    fn resource<'a>(&self, request: &Request, path: &'a str) -> Result<Resource<'a>, Reply> {
        if *request.method() == Method::Options {
            return Err(Reply::empty(200));
        }
        let below = path
            .strip_prefix(self.config.api_prefix.as_str())
            .and_then(|rest| rest.strip_prefix("/v1"));
        let Some(resource) = below.and_then(Resource::find) else {
            return Err(Reply::error(404, "Not found"));
        };
        if resource.needs_key() {
            self.check_key(request)?;
        }
        Ok(resource)
    }

    fn check_key(&self, request: &Request) -> Result<(), Reply> {
        let mut headers = request.headers().iter();
        let Some(header) = headers.find(|header| header.field.equiv("X-API-Key")) else {
            return Err(Reply::error(401, "Unauthorized: API key required"));
        };
        let entry = self.registry.key_entry();
        let given = header.value.as_str().as_bytes();
        if given.is_empty() {
            return Err(Reply::error(401, "Unauthorized: API key required"));
        }
        if entry.url.is_empty() || !same_bytes(given, entry.url.as_bytes()) {
            return Err(Reply::error(401, "Unauthorized: Invalid API key"));
        }
        Ok(())
    }

    fn reply(&self, resource: &Resource<'_>, query: &str, request: &mut Request) -> Reply {
        let method = request.method().clone();
        let result = match (resource, &method) {
            (Resource::Instances, Method::Get | Method::Head) => Ok(instances::list(self)),
            (Resource::Instances, Method::Post) => instances::create(self, request),
            (Resource::Instance(name), method) => self.instance(name, method, request),
            (Resource::Info, Method::Get | Method::Head) => Ok(info::show(self)),
            (Resource::Info, Method::Post) => info::rename(self, request),
            (Resource::Tcping, Method::Get | Method::Head) => self.tcping.answer(query),
            (Resource::Events, Method::Head) => Ok(events::head()),
            (Resource::OpenApi, Method::Get | Method::Head) => {
                Ok(Reply::json_text(openapi::document(&self.config.api_prefix)))
            }
            (Resource::Docs, Method::Get | Method::Head) => Ok(Reply::page(pages::page())),
            (Resource::Asset(name), Method::Get | Method::Head) => pages::asset(name)
                .map(Reply::page)
                .ok_or_else(|| Reply::error(404, "Not found")),
            _ => Err(not_allowed(resource)),
        };
        result.unwrap_or_else(|reply| reply)
    }

    fn instance(&self, name: &str, method: &Method, request: &mut Request) -> Result<Reply, Reply> {
        let id = decode_percent(name).and_then(|bytes| String::from_utf8(bytes).ok());
        let id = id.ok_or_else(|| Reply::error(404, "Instance not found"))?;
        if id.is_empty() {
            return Err(Reply::error(400, "Instance ID is required"));
        }
        match method {
            Method::Get | Method::Head => instances::show(self, &id),
            Method::Patch => instances::edit(self, id, request),
            Method::Put => instances::replace(self, id, request),
            Method::Delete => instances::remove(self, id),
            _ => Err(not_allowed(&Resource::Instance(name))),
        }
    }
}

fn is_get(method: &Method) -> bool {
    *method == Method::Get
}

fn not_allowed(resource: &Resource<'_>) -> Reply {
    Reply::error(405, "Method not allowed").with(resource.allowed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_paths_of_the_api_are_something() {
        assert_eq!(Resource::find("/instances"), Some(Resource::Instances));
        assert_eq!(
            Resource::find("/instances/ab"),
            Some(Resource::Instance("ab"))
        );
        assert_eq!(Resource::find("/instances/"), Some(Resource::Instance("")));
        assert_eq!(
            Resource::find("/docs/a.css"),
            Some(Resource::Asset("a.css"))
        );
        for path in [
            "",
            "/",
            "/instance",
            "/instances/a/b",
            "/info/",
            "/docs/a/b",
        ] {
            assert_eq!(Resource::find(path), None, "{path}");
        }
    }
}
