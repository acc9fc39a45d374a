//! Who we are to storage: where the token comes from, what it claims, and what has to trust it.

use serde_json::Value;

use super::check::Check;
use super::patience::{IDENTITY, Patience};
use crate::clock::{Clock, Timestamp};
use crate::config::{self, Config, Provider, StorageChoice};
use crate::credentials::{
    self, Claims, IdentityState, Rights, Role, Token, fetch_token, partition_of, role_policy, slug_trap,
    trust_policy,
};
use crate::error::Result;

const SOURCE: &str = "identity.source";
const TOKEN: &str = "identity.token";
const ROLE: &str = "identity.role";
const TRUST: &str = "identity.trust-policy";
const POLICY: &str = "identity.role-policy";

/// What was found of a role; why not, in words without a secret.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) token: Result<Found, String>,
    /// Not tried without a token.
    pub(super) assumed: Option<Result<Assumed, String>>,
}

/// A role that was assumed, without its credentials.
#[derive(Debug, Clone)]
pub(super) struct Assumed {
    /// The session's ARN, where STS names it.
    pub(super) session: Option<String>,
    pub(super) expires_at: Timestamp,
}

/// A token, without the token.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) claims: Claims,
    pub(super) source: &'static str,
    /// Why other sources were not used.
    pub(super) passed_over: Vec<String>,
}

/// Gets a token, and tries whether it opens the role; the credentials are thrown away.
pub(super) async fn look(role: &Role, region: &str, clock: &Clock, patience: Patience) -> Looked {
    let fetched = patience.bounded(IDENTITY, async { Ok(fetch_token(role, clock).await) }).await;
    let token = match fetched {
        Ok(Ok(token)) => Ok(Found::of(&token)),
        Ok(Err(fault)) => Err(fault.text),
        Err(error) => Err(error.chain()),
    };
    if token.is_err() {
        return Looked { token, assumed: None };
    }
    let assumed =
        patience.bounded(IDENTITY, async { Ok(credentials::try_role(role, region, clock).await) }).await;
    let assumed = match assumed {
        Ok(Ok(found)) => Ok(Assumed { session: found.session_arn, expires_at: found.expires_at }),
        Ok(Err(fault)) => Err(fault.text),
        Err(error) => Err(format!("assume the role by web identity: {}", error.chain())),
    };
    Looked { token, assumed: Some(assumed) }
}

impl Found {
    fn of(token: &Token) -> Found {
        let passed_over = token.passed_over.iter().map(|(_, fault)| fault.text.clone());
        Found {
            claims: token.claims.clone(),
            source: token.source.name(),
            passed_over: passed_over.collect(),
        }
    }
}

/// What there is to judge.
pub(super) struct Case<'a> {
    pub(super) config: &'a Config,
    pub(super) role: Option<&'a Role>,
    /// Of a role.
    pub(super) looked: Option<&'a Looked>,
    /// Of any identity, after storage was asked.
    pub(super) state: Option<&'a IdentityState>,
    /// Whether storage refused to delete, as it does to an append-only role.
    pub(super) is_append_only: bool,
}

/// The checks of the identity, in an order that does not change. Pure.
pub(super) fn judge(case: &Case<'_>) -> Vec<Check> {
    let StorageChoice::S3(s3) = &case.config.storage else {
        let mut checks = vec![Check::ok(SOURCE, "none needed: backups are kept in a directory")];
        checks.extend([TOKEN, ROLE, TRUST, POLICY].map(|name| Check::skipped(name, "no identity is needed")));
        return checks;
    };
    let mut checks = match (case.role, case.looked) {
        (Some(role), Some(looked)) => of_role(role, looked),
        _ => {
            let mut checks = vec![without_role(case)];
            checks.extend(
                [TOKEN, ROLE, TRUST].map(|name| Check::skipped(name, "no role is configured (AWS_ROLE_ARN)")),
            );
            checks
        }
    };
    checks.push(policy(case, s3));
    checks
}

fn of_role(role: &Role, looked: &Looked) -> Vec<Check> {
    let arn = &role.arn;
    let source = Check::ok(SOURCE, format!("role {arn} by web identity"));
    let found = match &looked.token {
        Ok(found) => found,
        Err(why) => {
            let token = Check::failure(
                TOKEN,
                why.clone(),
                "without a token no credentials can be had, and without these no backup can be stored or restored",
                "on fly.io, run as root (the socket /.fly/api is root's) or see that AWS_WEB_IDENTITY_TOKEN_FILE can be read",
            );
            let rest = [ROLE, TRUST].map(|name| Check::skipped(name, "there is no token"));
            return [source, token].into_iter().chain(rest).collect();
        }
    };
    vec![source, token(found), assumed(looked, arn), trust(role, found, looked)]
}

fn token(found: &Found) -> Check {
    let claims = serde_json::to_value(&found.claims).unwrap_or(Value::Null);
    let text = format!("from the {}; what it claims:", found.source);
    match found.passed_over.is_empty() {
        true => Check::ok(TOKEN, text),
        false => Check::note(TOKEN, text, format!("passed over: {}", found.passed_over.join("; "))),
    }
    .with_document(claims)
}

fn assumed(looked: &Looked, arn: &str) -> Check {
    match &looked.assumed {
        Some(Ok(assumed)) => {
            let session = assumed.session.as_deref().unwrap_or(arn);
            Check::ok(ROLE, format!("assumed as {session}, until {:.0}", assumed.expires_at))
        }
        Some(Err(why)) => Check::failure(
            ROLE,
            why.clone(),
            "without the role no backup can be stored or restored",
            "do what the message says; the trust policy that the role needs is in the next check",
        ),
        None => Check::skipped(ROLE, "there is no token"),
    }
}

fn trust(role: &Role, found: &Found, looked: &Looked) -> Check {
    let is_trusted = matches!(looked.assumed, Some(Ok(_)));
    let policy = trust_policy(role, &found.claims).and_then(|text| serde_json::from_str::<Value>(&text).ok());
    match (policy, found.claims.fly_machine()) {
        (Some(policy), Some(machine)) => {
            let text = "the trust policy of the role that accepts this application's machines:";
            let check = match is_trusted {
                true => Check::ok(TRUST, text),
                false => Check::note(TRUST, text, slug_trap(&machine)),
            };
            check.with_document(policy)
        }
        _ if is_trusted => {
            Check::ok(TRUST, "the role trusts this token, which is not of a machine on fly.io")
        }
        _ => Check::note(
            TRUST,
            "the token is not of a machine on fly.io",
            format!(
                "the role has to trust the provider of {} with the audience {} and the subject {}",
                found.claims.issuer.escape_debug(),
                found.claims.audience.join(" ").escape_debug(),
                found.claims.subject.escape_debug()
            ),
        ),
    }
}

fn without_role(case: &Case<'_>) -> Check {
    let found = match case.state.map(|state| (state.kind, state.provider)) {
        Some(("key", _)) => "the static key in the environment (AWS_ACCESS_KEY_ID)".to_owned(),
        Some((_, Some(provider))) => format!("the default chain: its {provider}"),
        _ => "the default chain: environment, profile, container".to_owned(),
    };
    match case.state.and_then(|state| state.last_failure.as_ref()) {
        Some(failure) => Check::failure(
            SOURCE,
            format!("{found}; it failed: {}", failure.class.name()),
            "without credentials no backup can be stored or restored",
            "set AWS_ROLE_ARN, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        None => Check::ok(SOURCE, found),
    }
}

fn policy(case: &Case<'_>, s3: &config::S3) -> Check {
    if s3.provider != Provider::Aws {
        return Check::skipped(POLICY, format!("the store is not AWS ({})", s3.provider.name()));
    }
    let (rights, text) = match case.is_append_only {
        true => (Rights::AppendOnly, "what an append-only role has to allow here:"),
        false => (Rights::Full, "what these credentials have to allow here:"),
    };
    let partition =
        case.role.map_or_else(|| partition_of(s3.region.as_deref().unwrap_or_default()), Role::partition);
    let policy = role_policy(rights, partition, &s3.bucket, &s3.prefix);
    match serde_json::from_str(&policy) {
        Ok(policy) => Check::ok(POLICY, text).with_document(policy),
        // The template is compiled in, and every value is escaped for it.
        Err(error) => Check::skipped(POLICY, format!("the policy is not JSON: {error}")),
    }
}

#[cfg(test)]
mod tests;
