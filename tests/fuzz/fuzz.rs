//! One program for all properties, so that one build makes it: `PROPERTY` says by name which one is tried.
#![no_main]

mod properties;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static PROPERTY: OnceLock<fn(&[u8])> = OnceLock::new();

fuzz_target!(|input: &[u8]| PROPERTY.get_or_init(property)(input));

fn property() -> fn(&[u8]) {
    let name = std::env::var("PROPERTY").expect("PROPERTY names a property");
    let named = properties::PROPERTIES.iter().find(|(one, _)| *one == name);
    named.unwrap_or_else(|| panic!("there is no property `{name}`")).1
}
