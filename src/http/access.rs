//! Who may do what: a request's head goes in, what it may see comes out.
//!
//! Three kinds of askers are told apart: whoever holds the token, a program on this machine, and
//! everybody else. A browser is a program on this machine that does what strangers' pages tell it,
//! so what a page can make it send is refused by the marks browsers put on it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::http::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use axum::http::request::Parts;
use axum::http::uri::Authority;

use super::tokens::Tokens;
use super::view::Viewer;
use crate::config;
use crate::error::Result;

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The rules, as configured.
#[derive(Clone)]
pub struct Access(Arc<Rules>);

struct Rules {
    tokens: Tokens,
    /// Whether only programs on this machine can connect.
    local_bind: bool,
    /// In lower case, without port.
    allowed_hosts: Vec<String>,
}

/// What a route asks of whoever calls it, each more than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wants {
    /// Nothing: platforms probe under any host name.
    Probe,
    /// A host name we know, which stops DNS rebinding. A link from another site may lead here.
    Page,
    /// And no foreign page behind it: it costs storage requests or keeps a connection.
    Read,
    /// And the token, or a program on this machine.
    Act,
    /// And the token; where none is configured, an address only this machine can reach.
    Restore,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A token came that is not ours.
    WrongToken,
    /// The token is needed.
    NoToken,
    /// Nothing this asker could send would help.
    Forbidden(&'static str),
}

/// Headers by which a proxy says that it speaks for somebody else. Behind one every peer looks local.
const FORWARDING: [&str; 6] =
    ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "fly-client-ip"];

impl Access {
    /// The rules of `http` for a listener that is bound to `bind`.
    pub fn new(bind: SocketAddr, http: &config::Http) -> Result<Access> {
        let tokens = Tokens::new(http)?;
        let local_bind = bind.ip().to_canonical().is_loopback();
        Ok(Access(Arc::new(Rules { tokens, local_bind, allowed_hosts: http.allowed_hosts.clone() })))
    }

    /// Has the tokens that count now at hand, if the sender of `head` presents one.
    pub(super) async fn refresh(&self, head: &Parts) {
        if head.headers.contains_key(AUTHORIZATION) {
            self.0.tokens.refresh().await;
        }
    }

    /// What the sender of `head` may see of a route that wants `wants`.
    pub(super) fn admit(&self, wants: Wants, head: &Parts) -> Result<Viewer, Refusal> {
        let rules = &*self.0;
        if wants >= Wants::Page && !rules.knows_host(head) {
            return Err(Refusal::Forbidden(
                "this host name is not known here; use an IP address or localhost, or add it to http.allowed_hosts",
            ));
        }
        if wants >= Wants::Read && is_from_a_page(&head.headers) {
            return Err(Refusal::Forbidden("web pages of other origins may not ask for this"));
        }
        let holds_token = rules.holds_token(&head.headers)?;
        let is_local = is_local(head);
        let admitted = match wants {
            Wants::Probe | Wants::Page | Wants::Read => true,
            Wants::Act => holds_token || is_local,
            Wants::Restore => holds_token || (!rules.tokens.exist() && rules.local_bind && is_local),
        };
        match admitted {
            true if holds_token || is_local => Ok(Viewer::Trusted),
            true => Ok(Viewer::Public),
            false if rules.tokens.exist() => Err(Refusal::NoToken),
            false => Err(Refusal::Forbidden("this needs a token, and none is configured: set http.token")),
        }
    }
}

impl Rules {
    /// Whether the token came; an error if another one did. A scheme other than `Bearer` is not for us.
    fn holds_token(&self, headers: &HeaderMap) -> Result<bool, Refusal> {
        let mut presented =
            headers.get_all(AUTHORIZATION).iter().filter_map(|value| bearer(value.as_bytes()));
        match (presented.next(), presented.next()) {
            (None, _) => Ok(false),
            (Some(text), None) if self.tokens.contain(text) => Ok(true),
            _ => Err(Refusal::WrongToken),
        }
    }

    /// Whether the request names this server by an address or by a name of its own.
    ///
    /// A page can make its own name resolve to this machine, but it cannot make an address its name:
    /// so every address is fine, whichever the machine was reached by.
    fn knows_host(&self, head: &Parts) -> bool {
        let mut named = head.headers.get_all(HOST).iter();
        let (Some(host), None) = (named.next(), named.next()) else { return false };
        let host = host.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
        // A request line may name a host as well, and then that is the one that counts.
        host.as_ref().is_some_and(|host| self.knows(host))
            && head.uri.authority().is_none_or(|host| self.knows(host))
    }

    fn knows(&self, authority: &Authority) -> bool {
        let host = authority.host().to_ascii_lowercase();
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
        !authority.as_str().contains('@')
            && (host == "localhost"
                || address.parse::<IpAddr>().is_ok()
                || self.allowed_hosts.contains(&host))
    }
}

/// Whether a browser sent it on behalf of a page that is not ours.
fn is_from_a_page(headers: &HeaderMap) -> bool {
    let ours = |site: &[u8]| matches!(site, b"none" | b"same-origin");
    headers.contains_key(ORIGIN)
        || headers.get_all("sec-fetch-site").iter().any(|site| !ours(site.as_bytes()))
}

fn is_local(head: &Parts) -> bool {
    let peer = head.extensions.get::<Peer>();
    peer.is_some_and(|Peer(address)| address.ip().to_canonical().is_loopback())
        && !FORWARDING.iter().any(|name| head.headers.contains_key(*name))
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    fn access(bind: &str, token: Option<&str>) -> Access {
        let http = config::Http {
            addr: None,
            tokens: token.into_iter().map(Into::into).collect(),
            token_file: None,
            connections_max: 64,
            allowed_hosts: vec!["backups.example".to_owned()],
        };
        Access::new(bind.parse().expect("an address"), &http).expect("random bits")
    }

    fn head(peer: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (mut head, ()) = request.body(()).expect("a request").into_parts();
        head.extensions.insert(Peer(peer.parse().expect("an address")));
        head
    }

    #[test]
    fn a_host_is_known_by_address_or_by_name() {
        let access = access("127.0.0.1:9091", None);
        let cases = [
            ("127.0.0.1:9091", true),
            ("[::1]:9091", true),
            ("[fdaa:0:1::3]", true),
            ("10.0.0.7", true),
            ("LocalHost:9091", true),
            ("backups.example", true),
            ("Backups.Example:9091", true),
            ("evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example:9091", false),
            ("evil.example@localhost", false),
            ("localhost, evil.example", false),
            ("", false),
        ];
        for (host, known) in cases {
            let admitted = access.admit(Wants::Page, &head("127.0.0.1:5000", "/", &[("host", host)]));
            assert_eq!(admitted.is_ok(), known, "{host}");
        }
    }

    #[test]
    fn no_host_two_hosts_and_a_foreign_request_line_are_refused() {
        let access = access("127.0.0.1:9091", None);
        let cases: [(&str, &[(&str, &str)]); 3] = [
            ("/", &[]),
            ("/", &[("host", "localhost"), ("host", "localhost")]),
            ("http://evil.example/", &[("host", "localhost")]),
        ];
        for (uri, headers) in cases {
            let head = head("127.0.0.1:5000", uri, headers);
            assert!(
                matches!(access.admit(Wants::Page, &head), Err(Refusal::Forbidden(_))),
                "{uri} {headers:?}"
            );
            assert!(access.admit(Wants::Probe, &head).is_ok(), "{uri} {headers:?}");
        }
    }

    #[test]
    fn a_proxied_peer_is_a_stranger() {
        let access = access("127.0.0.1:9091", None);
        for name in FORWARDING {
            let head = head("127.0.0.1:5000", "/", &[("host", "localhost"), (name, "127.0.0.1")]);
            assert_eq!(access.admit(Wants::Read, &head), Ok(Viewer::Public), "{name}");
            assert!(access.admit(Wants::Act, &head).is_err(), "{name}");
        }
        let head = head("[::ffff:127.0.0.1]:5000", "/", &[("host", "localhost")]);
        assert_eq!(access.admit(Wants::Act, &head), Ok(Viewer::Trusted), "an IPv4 peer on an IPv6 socket");
    }

    #[test]
    fn tokens_are_read_as_the_standard_says() {
        const TOKEN: &str = "correct-horse-battery";
        let cases = [
            ("Bearer correct-horse-battery", Ok(Viewer::Trusted)),
            ("bearer  correct-horse-battery ", Ok(Viewer::Trusted)),
            ("Bearer correct-horse-batter", Err(Refusal::WrongToken)),
            ("Bearer correct-horse-battery2", Err(Refusal::WrongToken)),
            ("Bearer ", Err(Refusal::WrongToken)),
            ("Basic Y29ycmVjdA==", Ok(Viewer::Public)),
            ("correct-horse-battery", Ok(Viewer::Public)),
        ];
        for (value, expected) in cases {
            let head = head("10.0.0.9:5000", "/", &[("host", "localhost"), ("authorization", value)]);
            assert_eq!(access("0.0.0.0:9091", Some(TOKEN)).admit(Wants::Read, &head), expected, "{value}");
        }
        let twice = [("host", "localhost"), ("authorization", "Bearer correct-horse-battery")];
        let head = head("10.0.0.9:5000", "/", &[twice[0], twice[1], twice[1]]);
        assert_eq!(access("0.0.0.0:9091", Some(TOKEN)).admit(Wants::Read, &head), Err(Refusal::WrongToken));
    }

    #[test]
    fn a_token_that_nobody_configured_is_wrong() {
        let head = head("127.0.0.1:5000", "/", &[("host", "localhost"), ("authorization", "Bearer x")]);
        assert_eq!(access("127.0.0.1:9091", None).admit(Wants::Read, &head), Err(Refusal::WrongToken));
    }
}
