//! A manifest that is read can be written and read again, and nothing computed from it overflows.
use lifeboat::error::ErrorKind;
use lifeboat::snapshot::{Key, Manifest, Record};

pub fn holds(bytes: &[u8]) {
    let elsewhere = Key::Probe("fuzz".to_owned());
    let decoded = match Manifest::decode(bytes, &elsewhere) {
        Ok(decoded) => decoded,
        Err(error) => return assert_eq!(error.kind(), ErrorKind::Corrupt),
    };
    assert!(Manifest::read(bytes, &elsewhere).is_err(), "it stands under another key");
    let Ok(manifest) = Manifest::read(bytes, &decoded.key()) else { return };
    assert_eq!(manifest, decoded);
    assert_eq!(Manifest::read(&manifest.encode(), &manifest.key()).expect("written by us"), manifest);
    assert_eq!(Key::parse(&manifest.key().path()), Some(manifest.key()));
    assert_eq!(Key::parse(&manifest.data_key().path()), Some(manifest.data_key()));
    assert!(manifest.seek_table_bytes() <= manifest.stored.bytes);
    let frames = manifest.frame_count();
    assert!(frames * u64::from(manifest.frame_bytes) >= manifest.plain.bytes);
    assert_eq!(frames == 0, manifest.plain.bytes == 0);
}
