//! What an identity token says about its holder, without the token.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// The audience that AWS wants, and that fly.io and Kubernetes write into tokens for it.
pub const AUDIENCE: &str = "sts.amazonaws.com";

/// Where fly.io's issuers are, one for each organisation.
const FLY_ISSUER: &str = "https://oidc.fly.io/";

/// The claims of a token that decide whether a role may be assumed with it.
///
/// Read, not verified: the signature is checked by AWS, who has the issuer's keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Claims {
    /// Who made the token (`iss`), a URL.
    pub issuer: String,
    /// For whom it was made (`aud`).
    pub audience: Vec<String>,
    /// Whom it is about (`sub`).
    pub subject: String,
    /// When it ends (`exp`).
    pub expires_at: Timestamp,
}

/// A machine of fly.io, as its token names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlyMachine {
    /// The organisation's slug. Never the alias `personal`, whatever `fly orgs list` prints.
    pub organisation: String,
    /// The application.
    pub application: String,
    /// The machine's name, which is not its id.
    pub machine: String,
}

/// Why a text is no token, or none that AWS would take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unusable {
    /// Not three segments of base64url with JSON in them: not a token, or half of one.
    Malformed(&'static str),
    /// It ended at this time.
    Expired(Timestamp),
    /// It was made for others.
    Audience(Vec<String>),
}

#[derive(Deserialize)]
struct Payload {
    iss: String,
    aud: OneOrMany,
    sub: String,
    exp: f64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Claims {
    /// Reads the claims of a token in its compact form; why not, without a word of the token.
    pub(super) fn of(token: &str) -> Result<Claims, Unusable> {
        use Unusable::Malformed;
        let segments: Vec<&str> = token.split('.').collect();
        let [header, payload, signature] = segments[..] else {
            return Err(Malformed("it has not three segments"));
        };
        let is_segment = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if ![header, payload, signature].into_iter().all(is_segment) {
            return Err(Malformed("its segments are not base64url"));
        }
        let json = |segment: &str| URL_SAFE_NO_PAD.decode(segment).ok();
        let is_object = |bytes: &[u8]| serde_json::from_slice::<serde_json::Map<_, _>>(bytes).is_ok();
        if !json(header).is_some_and(|bytes| is_object(&bytes)) {
            return Err(Malformed("its header is not JSON"));
        }
        let payload = json(payload).ok_or(Malformed("its claims are not base64url"))?;
        let Payload { iss, aud, sub, exp } = serde_json::from_slice(&payload)
            .map_err(|_| Malformed("its claims are not JSON with iss, aud, sub and exp"))?;
        let expires_at = Timestamp::from_second(exp as i64).map_err(|_| Malformed("its exp is no time"))?;
        let audience = match aud {
            OneOrMany::One(audience) => vec![audience],
            OneOrMany::Many(audience) => audience,
        };
        Ok(Claims { issuer: iss, audience, subject: sub, expires_at })
    }

    /// The same, of a token that AWS would take at `now`.
    pub(super) fn usable(token: &str, now: Timestamp) -> Result<Claims, Unusable> {
        let claims = Claims::of(token)?;
        if !claims.audience.iter().any(|audience| audience == AUDIENCE) {
            return Err(Unusable::Audience(claims.audience));
        }
        if claims.expires_at <= now {
            return Err(Unusable::Expired(claims.expires_at));
        }
        Ok(claims)
    }

    /// The machine of fly.io that these claims are about; `None` if they are of somebody else.
    pub fn fly_machine(&self) -> Option<FlyMachine> {
        let organisation = self.issuer.strip_prefix(FLY_ISSUER)?.trim_end_matches('/');
        let parts: Vec<&str> = self.subject.split(':').collect();
        let is_name = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        match parts[..] {
            [of, application, machine]
                if of == organisation && [of, application, machine].into_iter().all(is_name) =>
            {
                Some(FlyMachine {
                    organisation: of.to_owned(),
                    application: application.to_owned(),
                    machine: machine.to_owned(),
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(issuer: &str, subject: &str) -> Claims {
        let expires_at = Timestamp::from_second(1_800_000_000).expect("a time");
        Claims {
            issuer: issuer.to_owned(),
            audience: vec![AUDIENCE.to_owned()],
            subject: subject.to_owned(),
            expires_at,
        }
    }

    #[test]
    fn a_machine_of_fly_is_known_by_issuer_and_subject_together() {
        let machine = claims("https://oidc.fly.io/acme", "acme:shop:quiet-cloud-9972").fly_machine();
        let machine = machine.expect("a machine");
        assert_eq!((machine.organisation.as_str(), machine.application.as_str()), ("acme", "shop"));
        assert_eq!(machine.machine, "quiet-cloud-9972");
        for (issuer, subject) in [
            ("https://oidc.fly.io/acme", "other:shop:m"),
            ("https://oidc.fly.io/acme", "acme:shop"),
            ("https://oidc.fly.io/acme", "acme:shop:m:n"),
            ("https://oidc.fly.io/acme", "acme:*:m"),
            ("https://oidc.fly.io/acme", "acme:\"shop:m"),
            ("https://oidc.fly.io/", ":shop:m"),
            ("https://oidc.example/acme", "acme:shop:m"),
            ("http://oidc.fly.io/acme", "acme:shop:m"),
        ] {
            assert_eq!(claims(issuer, subject).fly_machine(), None, "{issuer} {subject}");
        }
    }

    #[test]
    fn what_is_no_token_is_told_without_showing_it() {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let payload = part(r#"{"iss":"i","aud":"sts.amazonaws.com","sub":"s","exp":1800000000.5}"#);
        let token = format!("{}.{payload}.c2ln", part("{}"));
        let read = Claims::of(&token).expect("a token");
        assert_eq!((read.issuer.as_str(), read.expires_at.as_second()), ("i", 1_800_000_000));
        for text in [
            String::new(),
            "..".to_owned(),
            format!("{}.{payload}", part("{}")),
            format!("{}.{payload}.", part("{}")),
            format!("{token}.more"),
            format!("{}.{payload}.c2ln", part("[]")),
            format!("{}.{}.c2ln", part("{}"), part("{}")),
            format!("{}.{}.c2ln", part("{}"), part(r#"{"iss":"i","aud":1,"sub":"s","exp":1}"#)),
            format!("{}.{}.c2ln", part("{}"), part(r#"{"iss":"i","aud":"a","sub":"s","exp":1e300}"#)),
            format!("{}.{payload}.si g", part("{}")),
        ] {
            assert!(matches!(Claims::of(&text), Err(Unusable::Malformed(_))), "{text}");
        }
    }
}
