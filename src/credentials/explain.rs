//! What to do about a token that was not taken, in words.

use super::Role;
use super::claims::{Claims, FlyMachine};
use super::fault::Class;
use super::policy::trust_policy;

/// The advice for a failure of the exchange, to be put behind its message; may be empty.
pub(super) fn advice(class: Class, role: &Role, claims: &Claims) -> String {
    match class {
        Class::AccessDenied => format!("{}; {}", shown(claims), trust(role, claims)),
        Class::InvalidToken | Class::IdpCommunication => {
            format!("{}; {}", shown(claims), provider(role, claims))
        }
        Class::TokenExpired => format!("{}; is the clock of this machine right?", shown(claims)),
        _ => String::new(),
    }
}

/// The claims as they stand in messages.
fn shown(claims: &Claims) -> String {
    let Claims { issuer, audience, subject, expires_at } = claims;
    let text = format!(" iss=`{issuer}` aud=`{}` sub=`{subject}` exp=`{expires_at}`", audience.join(" "));
    text.escape_debug().to_string()
}

fn trust(role: &Role, claims: &Claims) -> String {
    let policy = trust_policy(role, claims)
        .and_then(|policy| serde_json::from_str::<serde_json::Value>(&policy).ok())
        .map(|policy| format!("this trust policy accepts the token: {policy}"));
    let policy = policy.unwrap_or_else(|| {
        let provider = provider_of(claims);
        format!(
            "its trust policy must name the provider {} and accept this `{provider}:aud` and `{provider}:sub`",
            provider_arn(role, claims)
        )
    });
    format!("the role does not exist, or does not trust this token; {policy}")
}

fn provider(role: &Role, claims: &Claims) -> String {
    let mut text = format!(
        "the account must have the identity provider {}, with the audience {}",
        provider_arn(role, claims),
        super::AUDIENCE
    );
    if let Some(machine) = claims.fly_machine() {
        text.push_str("; ");
        text.push_str(&slug_trap(&machine));
    }
    text
}

/// The mistake that `fly orgs list` leads to.
pub fn slug_trap(machine: &FlyMachine) -> String {
    let slug = &machine.organisation;
    format!(
        "a provider or trust policy made for oidc.fly.io/personal never matches: `personal`, as `fly orgs list` prints \
         it, is an alias, and tokens of this organisation come from oidc.fly.io/{slug}"
    )
}

fn provider_arn(role: &Role, claims: &Claims) -> String {
    let (partition, account) = (role.partition(), role.account());
    format!("arn:{partition}:iam::{account}:oidc-provider/{}", provider_of(claims))
}

/// An issuer as IAM names it: without its scheme.
fn provider_of(claims: &Claims) -> &str {
    let issuer = claims.issuer.as_str();
    issuer.strip_prefix("https://").unwrap_or(issuer)
}
