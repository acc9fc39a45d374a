//! The policies of `deploy/policies`, filled in for one role, one bucket and one machine.

use super::Role;
use super::claims::Claims;

const ROLE_POLICY: &str = include_str!("../../deploy/policies/role-policy.json");
const APPEND_ONLY_POLICY: &str = include_str!("../../deploy/policies/append-only-policy.json");
const FLY_TRUST_POLICY: &str = include_str!("../../deploy/policies/fly-trust-policy.json");

/// The partition that a region is in: `aws`, `aws-cn`, `aws-us-gov`.
pub fn partition_of(region: &str) -> &'static str {
    match region {
        region if region.starts_with("cn-") => "aws-cn",
        region if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}

/// What a role may do with the backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Everything Lifeboat does, pruning too.
    Full,
    /// Everything but to delete and to overwrite.
    AppendOnly,
}

/// The policy of a role for the backups below `prefix` in `bucket`, as JSON.
///
/// `prefix` may have slashes at its ends or not, or be empty.
pub fn role_policy(rights: Rights, partition: &str, bucket: &str, prefix: &str) -> String {
    let template = match rights {
        Rights::Full => ROLE_POLICY,
        Rights::AppendOnly => APPEND_ONLY_POLICY,
    };
    let prefix = match prefix.trim_matches('/') {
        "" => String::new(),
        prefix => format!("{}/", literal(prefix)),
    };
    filled(template, &[("partition", partition), ("bucket", bucket), ("prefix", &prefix)])
}

/// The trust policy, as JSON, with which `role` accepts tokens with these claims from every machine
/// of their application; `None` if they are not of a machine of fly.io.
pub fn trust_policy(role: &Role, claims: &Claims) -> Option<String> {
    let machine = claims.fly_machine()?;
    let (partition, account) = (role.partition(), role.account());
    let values = [
        ("partition", partition),
        ("account", account),
        ("org", &machine.organisation),
        ("app", &machine.application),
    ];
    Some(filled(FLY_TRUST_POLICY, &values))
}

/// Every value in the place of its name; values are escaped for the JSON text around them.
fn filled(template: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| {
        let quoted = serde_json::Value::from(*value).to_string();
        text.replace(&format!("{{{{{name}}}}}"), &quoted[1..quoted.len() - 1])
    })
}

/// A text that means itself in a policy, where `*`, `?` and `$` mean more.
fn literal(text: &str) -> String {
    let character = |c| match c {
        '*' | '?' | '$' => format!("${{{c}}}"),
        c => c.to_string(),
    };
    text.chars().map(character).collect()
}
