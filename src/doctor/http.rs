//! The HTTP interface: who could reach it, and whether the port is ours.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;

use super::check::Check;
use crate::ask::{Answer, ask, reachable};
use crate::config::Http;

const BIND: &str = "http.bind";
const PORT: &str = "http.port";

/// Loopback answers at once, or somebody hangs.
const PATIENCE: Duration = Duration::from_secs(4);

/// Who has the port.
#[derive(Debug)]
pub(super) enum Port {
    /// Somebody who said this of health, and this of the interface.
    Answers { health: Answer, contract: Option<Answer> },
    /// Somebody who does not speak HTTP, or does not answer.
    Silent(io::Error),
    /// Nobody.
    Free,
    /// Nobody, and we could not have it.
    Refused(io::Error),
}

/// Asks whoever listens at `addr`; where nobody answers, tries to listen there.
pub(super) async fn look(addr: SocketAddr) -> Port {
    let error = match ask(reachable(addr), "GET", "/health", PATIENCE).await {
        Ok(health) => {
            let contract = ask(reachable(addr), "GET", "/openapi.json", PATIENCE).await.ok();
            return Port::Answers { health, contract };
        }
        Err(error) => error,
    };
    match TcpListener::bind(addr).await {
        Ok(_) => Port::Free,
        Err(refused) if refused.kind() == io::ErrorKind::AddrInUse => Port::Silent(error),
        Err(refused) => Port::Refused(refused),
    }
}

/// The checks of the interface; `port` is there if it is on. Pure.
pub(super) fn judge(http: &Http, port: Option<&Port>) -> [Check; 2] {
    match (http.addr, port) {
        (Some(addr), Some(port)) => [bind(addr, !http.tokens.is_empty()), judge_port(addr, port)],
        _ => [
            Check::note(BIND, "off", "no health check, no metrics and no restore over HTTP"),
            Check::skipped(PORT, "the HTTP interface is off (http.addr)"),
        ],
    }
}

fn bind(addr: SocketAddr, has_token: bool) -> Check {
    match (addr.ip().to_canonical().is_loopback(), has_token) {
        (true, _) => Check::ok(BIND, format!("{addr}, for programs on this machine")),
        (false, true) => Check::ok(BIND, format!("{addr}, for other machines too, with a token")),
        (false, false) => Check::warning(
            BIND,
            format!("{addr}, for other machines too, without a token"),
            "everybody who reaches it sees health, metrics and the list of snapshots, and nobody on another machine \
             can take a backup or restore",
            "set BACKUP_HTTP_TOKEN, or listen on 127.0.0.1",
        ),
    }
}

fn judge_port(addr: SocketAddr, port: &Port) -> Check {
    let taken = |found: String| {
        Check::failure(
            PORT,
            found,
            "the daemon cannot listen there, and does not start",
            "set BACKUP_HTTP_ADDR to a free port, or stop the other program",
        )
    };
    match port {
        Port::Answers { health, contract } => match state(health).filter(|_| is_ours(contract.as_ref())) {
            Some(state) => Check::ok(PORT, format!("a Lifeboat daemon answers at {addr}: {state}")),
            None => taken(format!("another program answers at {addr}, with status {}", health.status)),
        },
        Port::Silent(error) => taken(format!("somebody has the port of {addr} and does not answer: {error}")),
        Port::Free => {
            Check::ok(PORT, format!("nobody listens at {addr}: the daemon is not running, and can"))
        }
        Port::Refused(error) => Check::failure(
            PORT,
            format!("we may not listen at {addr}: {error}"),
            "the daemon does not start",
            "set BACKUP_HTTP_ADDR to an address of this machine and a port above 1023",
        ),
    }
}

/// Whether the interface is that of Lifeboat, by the title of its contract: every program says "ok".
fn is_ours(contract: Option<&Answer>) -> bool {
    let contract = contract.and_then(|answer| serde_json::from_str::<serde_json::Value>(&answer.body).ok());
    contract.is_some_and(|contract| contract["info"]["title"] == "Lifeboat")
}

/// What a daemon of ours says of itself.
fn state(answer: &Answer) -> Option<String> {
    let body: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
    let state = body.get("status")?.as_str()?;
    (answer.status == 200 && matches!(state, "ok" | "degraded")).then(|| state.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Status::{self, *};

    fn http(addr: Option<&str>, token: Option<&str>) -> Http {
        let addr = addr.map(|addr| addr.parse().expect("an address"));
        Http {
            addr,
            tokens: token.into_iter().map(Into::into).collect(),
            token_file: None,
            connections_max: 64,
            allowed_hosts: Vec::new(),
        }
    }

    fn of(addr: &str, token: Option<&str>) -> Status {
        judge(&http(Some(addr), token), Some(&Port::Free))[0].status
    }

    fn port(port: &Port) -> Status {
        judge(&http(Some("127.0.0.1:9091"), None), Some(port))[1].status
    }

    #[test]
    fn strangers_need_a_token() {
        assert_eq!(of("127.0.0.1:9091", None), Ok);
        assert_eq!(of("[::1]:9091", None), Ok);
        assert_eq!(of("[::ffff:127.0.0.1]:9091", None), Ok);
        assert_eq!(of("0.0.0.0:9091", None), Warning);
        assert_eq!(of("[::]:9091", None), Warning);
        assert_eq!(of("[::]:9091", Some("correct-horse-battery")), Ok);
        assert_eq!(judge(&http(None, None), None).map(|check| check.status), [Note, Skipped]);
        let check = &judge(&http(Some("[::]:9091"), Some("correct-horse-battery")), Some(&Port::Free))[0];
        assert!(!check.to_string().contains("correct-horse"));
    }

    #[test]
    fn only_our_own_daemon_may_have_the_port() {
        let answer = |status, body: &str| Answer { status, body: body.to_owned() };
        let ours = || Some(answer(200, r#"{"openapi":"3.1.0","info":{"title":"Lifeboat"}}"#));
        let says = |status, body| port(&Port::Answers { health: answer(status, body), contract: ours() });
        let other = Some(answer(200, r#"{"openapi":"3.1.0","info":{"title":"Petstore"}}"#));
        for contract in [None, other, Some(answer(404, ""))] {
            let health = answer(200, r#"{"status":"ok"}"#);
            assert_eq!(port(&Port::Answers { health, contract }), Failure);
        }
        assert_eq!(says(200, r#"{"status":"ok"}"#), Ok);
        assert_eq!(says(200, r#"{"status":"degraded","phase":"running"}"#), Ok);
        assert_eq!(says(200, r#"{"status":"UP"}"#), Failure);
        assert_eq!(says(200, "<html>"), Failure);
        assert_eq!(says(404, r#"{"status":"ok"}"#), Failure);
        assert_eq!(port(&Port::Free), Ok);
        assert_eq!(port(&Port::Silent(io::ErrorKind::TimedOut.into())), Failure);
        assert_eq!(port(&Port::Refused(io::ErrorKind::AddrNotAvailable.into())), Failure);
    }

    #[tokio::test]
    async fn whoever_has_the_port_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let greeter = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.expect("a peer");
            socket.writable().await.expect("writable");
            socket.try_write(b"SSH-2.0-other\r\n").expect("written");
            listener
        });
        assert!(matches!(look(addr).await, Port::Silent(_)));
        drop(greeter.await.expect("it ends"));
        assert!(matches!(look(addr).await, Port::Free));
        let elsewhere = "192.0.2.1:9091".parse().expect("an address nobody has");
        assert!(matches!(look(elsewhere).await, Port::Refused(_)));
    }
}
