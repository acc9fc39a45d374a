//! Which credentials are meant, where several could be.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::build::{path, within};
use super::layers::{Origin, Values};
use super::value::Parsed;
use super::{Environment, Identity, Key, ProcessFacts, Role, aws};
use crate::error::Result;

/// Whose word counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Auth {
    Auto,
    Static,
    WebIdentity,
}

/// What STS allows a session to last.
const SESSION_MIN: Duration = Duration::from_secs(15 * 60);
const SESSION_MAX: Duration = Duration::from_secs(12 * 3_600);

/// Whoever waits longer for a token waits for nothing.
const TOKEN_WAIT_MAX: Duration = Duration::from_secs(5 * 60);

/// Who is meant.
pub(super) fn identity(
    values: &Values,
    environment: &Environment,
    process: &ProcessFacts,
    base: &Path,
) -> Result<Identity> {
    let auth = values.required("aws.auth", auth)?;
    let arn = values.optional("aws.role_arn", aws::role_arn)?;
    let machine_socket = values.required("aws.machine_socket", |text| socket(text, base))?;
    let web_identity_token_file = values.optional("aws.web_identity_token_file", |text| path(text, base))?;
    let token_wait = values.required("aws.token_wait", within(Duration::ZERO..=TOKEN_WAIT_MAX))?;
    let session_duration = values.required("aws.session_duration", within(SESSION_MIN..=SESSION_MAX))?;
    let session_name = values.optional("aws.role_session_name", aws::session_name)?;
    let is_chosen = |key| values.get(key).origin != Origin::Default;
    let is_expected = process.fly_machine_id.is_some()
        || web_identity_token_file.is_some()
        || is_chosen("aws.token_wait")
        || (machine_socket.is_some() && is_chosen("aws.machine_socket"));
    let has_key = process.has_static_aws_key;
    match (auth, arn) {
        (Auth::Static, _) => {
            let key = static_key(environment);
            key.map(Identity::Key).map_err(|reason| values.refuse("aws.auth", reason))
        }
        (Auth::WebIdentity, None) => {
            Err(values.refuse("aws.auth", "no role is set: set aws.role_arn (AWS_ROLE_ARN)"))
        }
        (Auth::Auto, None) if web_identity_token_file.is_some() => {
            let reason = "a token is for a role: set aws.role_arn (AWS_ROLE_ARN), or remove this";
            Err(values.refuse("aws.web_identity_token_file", reason))
        }
        (Auth::Auto, None) => Ok(Identity::Chain),
        (Auth::Auto, Some(_)) if has_key => {
            let reason = "a static key (AWS_ACCESS_KEY_ID) is set beside it, as `fly storage create` does: remove one \
                          of the two, or say which is meant with aws.auth (BACKUP_AWS_AUTH): web-identity or static";
            Err(values.refuse("aws.role_arn", reason))
        }
        (Auth::Auto | Auth::WebIdentity, Some(arn)) => Ok(Identity::Role(Role {
            arn,
            session_name: session_name.unwrap_or_else(|| aws::session_name_of(process.machine())),
            machine_socket,
            web_identity_token_file,
            // Where nobody said that a token will come, the first answer counts.
            token_wait: if is_expected { token_wait } else { Duration::ZERO },
            session_duration,
        })),
    }
}

/// Both halves of the key in the environment, or which is missing.
fn static_key(environment: &Environment) -> Result<Key, &'static str> {
    let secret = |name| environment.get(name).map(SecretString::from);
    match (environment.get("AWS_ACCESS_KEY_ID"), secret("AWS_SECRET_ACCESS_KEY")) {
        (Some(id), Some(secret_half)) => {
            Ok(Key { id: id.to_owned(), secret: secret_half, session_token: secret("AWS_SESSION_TOKEN") })
        }
        (None, None) => Err("there is no static key: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (Some(_), None) => Err("half of the static key is missing: set AWS_SECRET_ACCESS_KEY"),
        (None, Some(_)) => Err("half of the static key is missing: set AWS_ACCESS_KEY_ID"),
    }
}

/// Refuses a region that has no token service.
pub(super) fn check_region(values: &Values, region: Option<&str>, has_sts_endpoint: bool) -> Result<()> {
    let reason = match region {
        None => "a role needs a region: set aws.region (AWS_REGION)",
        Some("auto") if !has_sts_endpoint => {
            "a role needs a region of AWS: `auto` is of other stores (`fly storage create` sets it for Tigris) and \
             has no token service"
        }
        Some(_) => return Ok(()),
    };
    Err(values.refuse("aws.region", reason))
}

fn auth(text: &str) -> Parsed<Auth> {
    match text {
        "auto" => Ok(Auth::Auto),
        "static" => Ok(Auth::Static),
        "web-identity" => Ok(Auth::WebIdentity),
        _ => Err("it is one of auto, static, web-identity".into()),
    }
}

fn socket(text: &str, base: &Path) -> Parsed<Option<PathBuf>> {
    match text {
        "off" => Ok(None),
        text => path(text, base).map(Some),
    }
}
