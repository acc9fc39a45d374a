//! The contract: what the routes say of themselves, in the OpenAPI format and as a table.

use std::fmt::Write;

use utoipa::openapi::path::{Operation, PathItem, Paths};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, Info, OpenApi};

/// The contract without routes: who we are, and how one proves who one is.
pub(super) fn frame() -> OpenApi {
    let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let mut frame = OpenApi::new(Info::new("Lifeboat", env!("CARGO_PKG_VERSION")), Paths::new());
    frame.components = Some(ComponentsBuilder::new().security_scheme("token", token).build());
    frame
}

/// The contract as a document.
pub(super) fn json(contract: &OpenApi) -> String {
    contract.to_pretty_json().expect("a contract has string keys and finite numbers")
}

/// The routes, one a line, for people.
pub(super) fn table(contract: &OpenApi) -> String {
    let mut table = String::new();
    for (path, item) in &contract.paths.paths {
        for (method, operation) in operations(item) {
            let summary = operation.summary.as_deref().unwrap_or_default();
            // Writing to a string does not fail.
            let _ = writeln!(table, "{method:<5}{path:<16} {summary}");
        }
    }
    table
}

fn operations(item: &PathItem) -> impl Iterator<Item = (&'static str, &Operation)> {
    [("GET", &item.get), ("POST", &item.post)]
        .into_iter()
        .filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
}
