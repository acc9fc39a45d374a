//! What holds of whatever is read from outside: one property for each parser, which panics where it does
//! not. `tests/run fuzz` looks for inputs of which it does not hold; `tests/integration/fuzz.rs` tries the
//! corpus, and what is like it, with every run of the tests.

mod claims;
mod database_url;
mod delta;
mod http_query;
mod intent;
mod key;
mod manifest;
mod note;
mod records;
mod retention;
mod schedule;
mod seek_table;
mod settings;

/// Panics if it does not hold of this input.
pub type Property = fn(&[u8]);

/// Every property by its name, which its folder in `corpus` has, too.
pub const PROPERTIES: [(&str, Property); 13] = [
    ("claims", claims::holds),
    ("database_url", database_url::holds),
    ("delta", delta::holds),
    ("http_query", http_query::holds),
    ("intent", intent::holds),
    ("key", key::holds),
    ("manifest", manifest::holds),
    ("note", note::holds),
    ("records", records::holds),
    ("retention", retention::holds),
    ("schedule", schedule::holds),
    ("seek_table", seek_table::holds),
    ("settings", settings::holds),
];
