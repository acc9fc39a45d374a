//! `lifeboat health`: asks the running daemon, without needing a shell or another tool.

use std::time::Duration;

use serde_json::json;

use super::output::Output;
use crate::ask::{ask, reachable};
use crate::config::Config;
use crate::error::{Context, Error, ErrorKind, Result};

/// A daemon that does not answer within this is not well.
const PATIENCE: Duration = Duration::from_secs(4);

/// Prints the daemon's answer; `Unhealthy` unless it is a 200.
pub async fn health(config: &Config, ready: bool, output: &Output) -> Result<u8> {
    let Some(addr) = config.http.addr else {
        let message = "the HTTP interface is off (http.addr), there is nobody to ask";
        return Err(Error::new(ErrorKind::Config, message));
    };
    let path = if ready { "/ready" } else { "/health" };
    let answer = ask(reachable(addr), "GET", path, PATIENCE)
        .await
        .context(ErrorKind::Unhealthy, || format!("the daemon does not answer: addr=`{addr}`"))?;
    let body = answer.body.trim();
    match answer.status {
        200 => output.result(&json!({"path": path, "status": 200, "body": body}), body).map(|()| 0),
        status => Err(Error::new(ErrorKind::Unhealthy, format!("the daemon answers {status}: {body}"))),
    }
}
