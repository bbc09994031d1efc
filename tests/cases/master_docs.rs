//! The description of the API, for programs and for people: it is what the master does, and a
//! browser can use it.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nodepass::master::api::pages;
use sha2::{Digest, Sha384};

use crate::support::master::{Master, Settings};
use crate::support::python::PythonPeer;

/// Names a folder that pictures of the page are left in.
const PICTURES: &str = "NP_TEST_PICTURES";

/// Thousands of requests, on a busy machine.
const FUZZ_PATIENCE: Duration = Duration::from_secs(300);

/// A browser draws a page without the help of a graphics card.
#[cfg(feature = "swagger-ui")]
const BROWSER_PATIENCE: Duration = Duration::from_secs(120);

/// One for each way that the API is reached.
fn places() -> Vec<Settings> {
    let mut places = vec![Settings::default()];
    if cfg!(feature = "tls") {
        let mut place = Settings::default().options("log=info&tls=1");
        place.place = String::from("127.0.0.1:0/admin/np");
        place.prefix = String::from("/admin/np");
        places.push(place);
    }
    places
}

/// The whole URL of a path of the API.
fn url_of(master: &Master, settings: &Settings, path: &str) -> String {
    let scheme = if settings.tls { "https" } else { "http" };
    format!("{scheme}://{}{}", master.address(), master.path(path))
}

#[test]
fn the_openapi_document_is_valid_and_says_what_the_master_does() {
    let master = Master::start();
    let url = url_of(&master, &Settings::default(), "");
    let peer = PythonPeer::start("description.py", &["--url", &url, "--key", master.key()]);
    peer.wait_for("valid");
    peer.wait_for("answered");
    peer.wait_done();
}

#[test]
fn nothing_that_the_document_allows_surprises_the_master_nor_does_what_it_forbids() {
    let master = Master::start();
    let url = url_of(&master, &Settings::default(), "");
    let mut arguments = vec!["--url", &url, "--key", master.key()];
    arguments.extend(["--seed", "6", "--examples", "30"]);
    let peer = PythonPeer::start("fuzz_api.py", &arguments).patience(FUZZ_PATIENCE);
    peer.wait_done();
    assert_eq!(master.list()[0]["url"], master.key(), "the key is the same");
}

#[test]
#[cfg(feature = "swagger-ui")]
fn a_browser_without_a_network_shows_the_page_and_tries_the_api_out() {
    for settings in places() {
        let master = Master::start_with(settings.clone());
        let url = url_of(&master, &settings, "/docs");
        let mut arguments = vec!["--url", &url, "--key", master.key()];
        let pictures = std::env::var(PICTURES).ok();
        if let Some(folder) = &pictures {
            arguments.extend(["--pictures", folder]);
        }
        let peer = PythonPeer::start("docs.py", &arguments).patience(BROWSER_PATIENCE);
        let shown = peer.wait_for("shown");
        assert!(
            shown["title"].as_str().unwrap().contains("NodePass"),
            "{shown}"
        );
        let operations = shown["operations"].as_array().unwrap().iter();
        let operations = operations.map(|each| each.as_str().unwrap().to_owned());
        assert_eq!(operations.collect::<BTreeSet<_>>(), operations_of(&master));
        let (_, info) = master.get("/info");
        for _ in 0..2 {
            let answer = peer.wait_for("answered");
            assert_eq!(answer["status"], "200", "{answer}");
            assert_eq!(answer["body"]["mid"], info["mid"], "{answer}");
        }
        peer.wait_done();
    }
}

/// What the document has, as the page shows it.
#[cfg(feature = "swagger-ui")]
fn operations_of(master: &Master) -> BTreeSet<String> {
    let (_, document) = master.get("/openapi.json");
    let mut operations = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let methods = item.as_object().unwrap().keys();
        for method in methods.filter(|name| *name != "parameters") {
            operations.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    operations
}

#[test]
#[cfg(feature = "swagger-ui")]
fn files_of_the_page_are_those_that_builds_without_them_take_from_elsewhere() {
    for settings in places() {
        let master = Master::start_with(settings.clone());
        for (name, integrity) in [
            ("swagger-ui-bundle.js", pages::SCRIPT_INTEGRITY),
            ("swagger-ui.css", pages::STYLE_INTEGRITY),
        ] {
            let url = url_of(&master, &settings, &format!("/docs/{name}"));
            let curl = Command::new("curl")
                .args(["--silent", "--fail", "--insecure", "--noproxy", "*"])
                .args(["--compressed", &url])
                .output()
                .unwrap();
            assert!(curl.status.success(), "{url}: {}", curl.status);
            let digest = STANDARD.encode(Sha384::digest(&curl.stdout));
            assert_eq!(integrity, format!("sha384-{digest}"), "{name}");
        }
    }
}

#[test]
fn the_page_and_its_files_come_with_what_browsers_have_to_know() {
    let master = Master::start();
    let page = master.try_request("GET", "/docs", &[], None).unwrap();
    assert_eq!(page.status, 200);
    assert_eq!(page.field("Content-Type"), Some("text/html; charset=utf-8"));
    assert_eq!(page.field("X-Content-Type-Options"), Some("nosniff"));
    assert_eq!(page.field("Referrer-Policy"), Some("no-referrer"));
    let policy = page.field("Content-Security-Policy").unwrap();
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    let text = page.text();
    // References to what the page is made of: all of them with a version.
    let mut names: Vec<&str> = text.split("\"docs/").skip(1).collect();
    for name in &mut names {
        *name = name.split('"').next().unwrap();
        let file = master.try_request("GET", &format!("/docs/{name}"), &[], None);
        let file = file.unwrap();
        assert_eq!(file.status, 200, "{name}");
        let caching = file.field("Cache-Control").unwrap();
        assert!(
            name.contains('?') && caching.contains("immutable"),
            "{name}: {caching}"
        );
        assert_eq!(file.field("X-Content-Type-Options"), Some("nosniff"));
    }
    let count = if cfg!(feature = "swagger-ui") { 4 } else { 1 };
    assert_eq!(names.len(), count, "{text}");
    assert_eq!(
        text.contains("://"),
        cfg!(not(feature = "swagger-ui")),
        "{text}"
    );
    let missing = master.try_request("GET", "/docs/nothing.js", &[], None);
    assert_eq!(missing.unwrap().status, 404);
}
