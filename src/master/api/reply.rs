//! Answers, before tiny_http sends them.

use std::borrow::Cow;
use std::io;

use serde::Serialize;
use tiny_http::{Header, Request, Response};

use super::headers::CORS_FIELDS;
use super::pages::{Headers, Page};
use crate::limits::INSTANCES_MAX;
use crate::master::changes::{Action, ChangeError};

const JSON: &str = "application/json";

/// An answer.
pub struct Reply {
    status: u16,
    content_type: Option<&'static str>,
    headers: Headers,
    body: Cow<'static, [u8]>,
}

impl Reply {
    /// Nothing but a status.
    pub fn empty(status: u16) -> Self {
        Self {
            status,
            content_type: None,
            headers: &[],
            body: Cow::Borrowed(&[]),
        }
    }

    /// A value, as JSON.
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        // Texts, numbers and lists of them can always be written.
        let mut body = serde_json::to_vec(value).unwrap_or_default();
        body.push(b'\n');
        Self {
            status,
            content_type: Some(JSON),
            headers: &[],
            body: body.into(),
        }
    }

    /// A text that is JSON already.
    pub fn json_text(text: String) -> Self {
        Self {
            status: 200,
            content_type: Some(JSON),
            headers: &[],
            body: text.into_bytes().into(),
        }
    }

    /// What is wrong, as JSON.
    pub fn error(status: u16, text: impl Into<String>) -> Self {
        #[derive(Serialize)]
        struct Failure {
            error: String,
        }
        Self::json(status, &Failure { error: text.into() })
    }

    /// A page, or a file that belongs to it.
    pub fn page(page: Page) -> Self {
        Self {
            status: 200,
            content_type: Some(page.content_type),
            headers: page.headers,
            body: page.body,
        }
    }

    /// An event stream without events.
    pub fn event_stream() -> Self {
        Self {
            content_type: Some("text/event-stream"),
            headers: &[("Cache-Control", "no-cache")],
            ..Self::empty(200)
        }
    }

    /// The same with further header fields, in place of those that it had.
    pub fn with(self, headers: Headers) -> Self {
        Self { headers, ..self }
    }

    /// Sends the answer.
    ///
    /// Errors: nobody is there any more.
    pub fn send(self, request: Request) -> io::Result<()> {
        let mut response = Response::from_data(self.body)
            .with_status_code(self.status)
            // Its size is known: no reason to send it in pieces.
            .with_chunked_threshold(usize::MAX);
        let content_type = self.content_type.map(|value| ("Content-Type", value));
        let fields = CORS_FIELDS.iter().chain(self.headers).copied();
        for (name, value) in fields.chain(content_type) {
            if let Ok(header) = Header::from_bytes(name, value) {
                response.add_header(header);
            }
        }
        request.respond(response)
    }
}

impl From<ChangeError> for Reply {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotFound => Self::error(404, "Instance not found"),
            ChangeError::KeyEntry => Self::error(403, "Forbidden: API Key"),
            ChangeError::KeyEntryAction(action) => {
                let name = name_of(action);
                Self::error(
                    400,
                    format!("Invalid action: {name}: the API key has only restart"),
                )
            }
            ChangeError::SameUrl => Self::error(409, "Instance URL conflict"),
            ChangeError::NoRoom => {
                let text = format!("There are {INSTANCES_MAX} instances, the most: delete some");
                Self::error(503, text)
            }
            ChangeError::Disk(error) => {
                let full = [
                    io::ErrorKind::StorageFull,
                    io::ErrorKind::QuotaExceeded,
                    io::ErrorKind::FileTooLarge,
                ];
                let status = if full.contains(&error.kind()) {
                    507
                } else {
                    500
                };
                Self::error(
                    status,
                    format!("Not changed: the state cannot be written: {error}"),
                )
            }
            ChangeError::NoRandom(error) => {
                Self::error(500, format!("Not changed: no random bytes: {error}"))
            }
            ChangeError::Busy => Self::error(503, "Too many changes wait, try again"),
        }
    }
}

/// The actions by their names in the API.
const ACTIONS: [(&str, Action); 4] = [
    ("start", Action::Start),
    ("stop", Action::Stop),
    ("restart", Action::Restart),
    ("reset", Action::Reset),
];

/// Returns the action of that name.
pub fn action_of(name: &str) -> Option<Action> {
    let found = ACTIONS.iter().find(|(known, _)| *known == name);
    found.map(|(_, action)| *action)
}

fn name_of(action: Action) -> &'static str {
    let found = ACTIONS.iter().find(|(_, known)| *known == action);
    found.map_or("", |(name, _)| name)
}
