//! `lifeboat health`: asks the running daemon, without needing a shell or another tool.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::output::Output;
use crate::config::Config;
use crate::error::{Context, Error, ErrorKind, Result};

/// A daemon that does not answer within this is not well.
const PATIENCE: Duration = Duration::from_secs(4);

/// More of an answer than this is not read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Prints the daemon's answer; `Unhealthy` unless it is a 200.
pub async fn ask(config: &Config, ready: bool, output: &Output) -> Result<u8> {
    let Some(addr) = config.http.addr else {
        return Err(Error::new(
            ErrorKind::Config,
            "the HTTP interface is off (http.addr), there is nobody to ask",
        ));
    };
    let path = if ready { "/ready" } else { "/health" };
    let unhealthy = || format!("the daemon does not answer: addr=`{addr}`");
    let answer = tokio::time::timeout(PATIENCE, get(reachable(addr), path))
        .await
        .context(ErrorKind::Unhealthy, unhealthy)?
        .context(ErrorKind::Unhealthy, unhealthy)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split_whitespace().nth(1).unwrap_or("none");
    match status {
        "200" => output.result(&json!({"path": path, "status": 200, "body": body}), body).map(|()| 0),
        _ => Err(Error::new(ErrorKind::Unhealthy, format!("the daemon answers {status}: {}", body.trim()))),
    }
}

/// An address that was bound for everybody is reached through loopback.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

async fn get(addr: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
