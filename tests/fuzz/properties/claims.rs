//! Whatever stands in a token file: it is a token with claims, or a fault that shows no signature.
use std::cell::RefCell;
use std::fs;
use std::time::Duration;

use lifeboat::clock::{Clock, Timestamp};
use lifeboat::credentials::{AUDIENCE, Role, fetch_token};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// Shorter ones are found in any text.
const SIGNATURE_MIN: usize = 12;

thread_local! {
    static PLACE: RefCell<(TempDir, Runtime)> = RefCell::new((
        TempDir::new().expect("a directory"),
        Builder::new_current_thread().enable_all().build().expect("a runtime"),
    ));
}

pub fn holds(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    PLACE.with_borrow(|(dir, runtime)| {
        let file = dir.path().join("token");
        fs::write(&file, text).expect("written");
        let role = Role {
            arn: "arn:aws:iam::123456789012:role/backup".to_owned(),
            session_name: "fuzz".to_owned(),
            machine_socket: None,
            web_identity_token_file: Some(file),
            token_wait: Duration::ZERO,
            session_duration: Duration::from_secs(3600),
            sts_endpoint_url: None,
        };
        let now = Timestamp::UNIX_EPOCH;
        match runtime.block_on(fetch_token(&role, &Clock::from_fn(move || now))) {
            Ok(token) => {
                assert!(token.claims.expires_at > now);
                assert!(token.claims.audience.iter().any(|audience| audience == AUDIENCE));
            }
            Err(fault) => {
                let told = format!("{fault:?}");
                let signature = text.trim().rsplit('.').next().unwrap_or_default();
                let is_one = text.matches('.').count() == 2 && signature.len() >= SIGNATURE_MIN;
                assert!(!is_one || !told.contains(signature), "{told}");
            }
        }
    });
}
