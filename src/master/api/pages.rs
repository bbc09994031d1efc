//! The description of the API for people: Swagger UI, which shows `openapi.json`.
//!
//! With the feature `swagger-ui` all of it comes out of the program, and the page asks nobody else
//! for anything. Without, the browser loads the same files from a CDN; their digests are here.
//!
//! Files are kept and sent as gzip, whatever a client says to accept: all browsers do, and to keep
//! them inflated, or to inflate them, would cost more than those few who want to see them are worth
//! (RFC 9110 section 12.5.3 leaves that to the server).

use std::borrow::Cow;

/// Version of Swagger UI.
pub const SWAGGER_UI_VERSION: &str = "5.32.6";

/// Digest of `swagger-ui-bundle.js` of that version, as the attribute `integrity` has it.
pub const SCRIPT_INTEGRITY: &str =
    "sha384-EYdOaiRwn44zNjrw+Tfs06qYz9BGQVo2f4/pLY5i7VorbjnZNhdplAbTBk8FXHUJ";

/// The same of `swagger-ui.css`.
pub const STYLE_INTEGRITY: &str =
    "sha384-9Q2fpS+xeS4ffJy6CagnwoUl+4ldAYhOs9pgZuEKxypVModhmZFzeMlvVsAjf7uT";

/// Where the files are in builds without them.
#[cfg(not(feature = "swagger-ui"))]
const CDN: &str = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@";

/// What starts Swagger UI: in a file, as the policy below allows no script in the page.
const START: &[u8] = include_bytes!("start.js");

/// Header fields and their values.
pub type Headers = &'static [(&'static str, &'static str)];

/// A page, or a file that belongs to it, as it goes out.
pub struct Page {
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Further header fields.
    pub headers: Headers,
    /// The body.
    pub body: Cow<'static, [u8]>,
}

const PAGE_HEADERS: Headers = &[
    ("Cache-Control", "no-cache"),
    ("Content-Security-Policy", POLICY),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
];

/// The page names each file with its version, so that nobody has to ask for it again.
const CACHE_CONTROL: (&str, &str) = ("Cache-Control", "public, max-age=31536000, immutable");
const NO_SNIFF: (&str, &str) = ("X-Content-Type-Options", "nosniff");
const FILE_HEADERS: Headers = &[CACHE_CONTROL, NO_SNIFF];
#[cfg(feature = "swagger-ui")]
const GZIP_HEADERS: Headers = &[CACHE_CONTROL, ("Content-Encoding", "gzip"), NO_SNIFF];

/// Where the page may take what from. Pictures of Swagger UI are part of its style sheet.
#[cfg(feature = "swagger-ui")]
const POLICY: &str = "default-src 'none'; base-uri 'none'; connect-src 'self'; \
                      form-action 'none'; frame-ancestors 'none'; img-src 'self' data:; \
                      script-src 'self'; style-src 'self'";
#[cfg(not(feature = "swagger-ui"))]
const POLICY: &str = "default-src 'none'; base-uri 'none'; connect-src 'self'; \
                      form-action 'none'; frame-ancestors 'none'; img-src 'self' data:; \
                      script-src 'self' https://cdn.jsdelivr.net/npm/; \
                      style-src 'self' https://cdn.jsdelivr.net/npm/";

/// The page itself, at `docs`. It names its files, and the description, relative to itself: so it
/// works below any prefix, and behind proxies that add one.
pub fn page() -> Page {
    let version = env!("CARGO_PKG_VERSION");
    let (style, script, icon) = (style(), script(), icon());
    let text = format!(
        r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>NodePass API</title>
<link rel="icon" href="{icon}">
<link rel="stylesheet" {style}>
</head>
<body>
<noscript>This page needs JavaScript. <a href="openapi.json">openapi.json</a> says the same.</noscript>
<div id="swagger-ui"></div>
<script {script}></script>
<script src="docs/start.js?{version}"></script>
</body>
</html>
"#
    );
    Page {
        content_type: "text/html; charset=utf-8",
        headers: PAGE_HEADERS,
        body: Cow::Owned(text.into_bytes()),
    }
}

/// The file of that name below `docs/`; what comes behind a `?` is not part of the name.
pub fn asset(name: &str) -> Option<Page> {
    if name == "start.js" {
        return Some(Page {
            content_type: "text/javascript; charset=utf-8",
            headers: FILE_HEADERS,
            body: Cow::Borrowed(START),
        });
    }
    packed_file(name)
}

#[cfg(feature = "swagger-ui")]
fn packed_file(name: &str) -> Option<Page> {
    macro_rules! packed {
        ($name:literal) => {
            include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".gz"))
        };
    }
    let (content_type, gzip): (_, &[u8]) = match name {
        "favicon-32x32.png" => ("image/png", packed!("favicon-32x32.png")),
        "swagger-ui-bundle.js" => (
            "text/javascript; charset=utf-8",
            packed!("swagger-ui-bundle.js"),
        ),
        "swagger-ui.css" => ("text/css; charset=utf-8", packed!("swagger-ui.css")),
        _ => return None,
    };
    Some(Page {
        content_type,
        headers: GZIP_HEADERS,
        body: Cow::Borrowed(gzip),
    })
}

#[cfg(not(feature = "swagger-ui"))]
fn packed_file(_: &str) -> Option<Page> {
    None
}

#[cfg(feature = "swagger-ui")]
fn style() -> String {
    format!(r#"href="docs/swagger-ui.css?{SWAGGER_UI_VERSION}""#)
}

#[cfg(feature = "swagger-ui")]
fn script() -> String {
    format!(r#"src="docs/swagger-ui-bundle.js?{SWAGGER_UI_VERSION}""#)
}

#[cfg(feature = "swagger-ui")]
fn icon() -> String {
    format!("docs/favicon-32x32.png?{SWAGGER_UI_VERSION}")
}

#[cfg(not(feature = "swagger-ui"))]
fn style() -> String {
    from_cdn("href", "swagger-ui.css", STYLE_INTEGRITY)
}

#[cfg(not(feature = "swagger-ui"))]
fn script() -> String {
    from_cdn("src", "swagger-ui-bundle.js", SCRIPT_INTEGRITY)
}

/// None: no browser compares the digest of one.
#[cfg(not(feature = "swagger-ui"))]
fn icon() -> String {
    "data:,".to_owned()
}

#[cfg(not(feature = "swagger-ui"))]
fn from_cdn(attribute: &str, name: &str, integrity: &str) -> String {
    format!(
        r#"{attribute}="{CDN}{SWAGGER_UI_VERSION}/{name}" integrity="{integrity}" crossorigin="anonymous""#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> String {
        String::from_utf8(page().body.into_owned()).unwrap()
    }

    #[test]
    #[cfg(feature = "swagger-ui")]
    fn all_that_the_page_names_is_in_the_program() {
        assert_eq!(
            env!("NODEPASS_SWAGGER_UI"),
            format!("swagger-ui-{SWAGGER_UI_VERSION}")
        );
        let text = text();
        let names: Vec<_> = text
            .split("\"docs/")
            .skip(1)
            .filter_map(|rest| rest.split('?').next())
            .collect();
        assert_eq!(names.len(), 4, "{text}");
        for name in names {
            let file = asset(name).unwrap();
            let is_packed = file.headers.contains(&("Content-Encoding", "gzip"));
            assert_eq!(is_packed, file.body.starts_with(&[0x1f, 0x8b]), "{name}");
            assert_eq!(is_packed, name != "start.js", "{name}");
        }
        assert!(!text.contains("://"), "{text}");
    }

    #[test]
    #[cfg(not(feature = "swagger-ui"))]
    fn the_page_takes_from_elsewhere_only_what_has_the_right_digest() {
        let text = text();
        let foreign: Vec<_> = text.lines().filter(|line| line.contains("://")).collect();
        assert_eq!(foreign.len(), 2, "{text}");
        for (line, integrity) in foreign.iter().zip([STYLE_INTEGRITY, SCRIPT_INTEGRITY]) {
            assert!(
                line.contains(&format!(r#"integrity="{integrity}""#)),
                "{line}"
            );
            assert!(line.contains(r#"crossorigin="anonymous""#), "{line}");
            assert!(
                line.contains(&format!("{CDN}{SWAGGER_UI_VERSION}/")),
                "{line}"
            );
        }
        assert!(asset("start.js").is_some());
    }

    #[test]
    fn nothing_else_is_there() {
        for name in ["", "index.html", "../openapi.json", "swagger-ui.css.gz"] {
            assert!(asset(name).is_none(), "{name}");
        }
    }
}
