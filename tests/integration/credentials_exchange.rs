//! The exchange at STS: what it is told, and what is made of every answer it can give.

use std::fs;
use std::time::{Duration, Instant};

use lifeboat::clock::Clock;
use lifeboat::credentials::{
    Assumed, Claims, Class, Fault, Rights, Role, TokenSource, role_policy, trust_policy, try_role,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::identity::{
    ARN, Answer, ISSUER, Machine, Sts, good_claims, good_token, jwt, role, sts_error,
};

const REGION: &str = "eu-north-1";

struct World {
    sts: Sts,
    role: Role,
    machine: Machine,
    _folder: TempDir,
}

async fn world() -> World {
    let clock = Clock::system();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let sts = Sts::start(clock.clone()).await;
    let machine = Machine::start(&folder.path().join("api"), clock);
    let role = Role { machine_socket: Some(machine.path.clone()), ..role(&sts) };
    World { sts, role, machine, _folder: folder }
}

impl World {
    async fn assume(&self) -> Result<Assumed, Fault> {
        try_role(&self.role, REGION, &Clock::system()).await
    }

    /// A failure, in which nothing of any token is.
    async fn refused(&self) -> Fault {
        let fault = self.assume().await.expect_err("refused");
        for token in self.machine.given() {
            for segment in token.split('.') {
                assert!(!fault.text.contains(segment), "{}", fault.text);
            }
        }
        fault
    }
}

#[tokio::test]
async fn sts_takes_the_request_and_the_answer_is_told_without_a_secret() {
    let world = world().await;
    let assumed = world.assume().await.expect("a valid request");
    assert_eq!(assumed.source, TokenSource::MachineSocket);
    assert_eq!(assumed.claims.issuer, ISSUER);
    assert_eq!(
        assumed.session_arn.as_deref(),
        Some("arn:aws:sts::123456789012:assumed-role/backups/lifeboat-test")
    );
    let left = assumed.expires_at.duration_since(Clock::system().now()).as_secs();
    assert!((3_590..=3_601).contains(&left), "{left}");
    assert_eq!(world.sts.last("DurationSeconds"), "3600");
    let shown = format!("{assumed:?}");
    for secret in ["not-a-secret", "session-token", "eyJ"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[tokio::test]
async fn the_duration_is_what_was_configured_and_the_role_has_the_last_word() {
    let mut world = world().await;
    for seconds in [900, 43_200] {
        world.role.session_duration = Duration::from_secs(seconds);
        world.assume().await.expect("within bounds");
        assert_eq!(world.sts.last("DurationSeconds"), seconds.to_string());
    }
    world.sts.allow_seconds(3_600);
    let fault = world.refused().await;
    assert_eq!(fault.class, Class::StsRefused);
    assert!(fault.text.contains("MaxSessionDuration") && fault.text.contains(ARN), "{}", fault.text);
}

#[tokio::test]
async fn a_token_that_sts_finds_fault_with_is_replaced_by_a_fresh_one() {
    for code in ["InvalidIdentityToken", "IDPCommunicationError", "ExpiredTokenException"] {
        let world = world().await;
        world.sts.instead(2, &sts_error(400, code, "scripted"));
        world.assume().await.expect("the third token");
        let (sent, given) = (world.sts.tokens(), world.machine.given());
        assert_eq!(sent, given, "{code}: every token is used once");
        assert_eq!(sent.len(), 3, "{code}");
    }
}

#[tokio::test]
async fn fresh_tokens_are_tried_a_few_times_only() {
    for (code, class) in [
        ("InvalidIdentityToken", Class::InvalidToken),
        ("IDPCommunicationError", Class::IdpCommunication),
        ("ExpiredTokenException", Class::TokenExpired),
    ] {
        let world = world().await;
        world.sts.instead(100, &sts_error(400, code, "scripted"));
        let fault = world.refused().await;
        assert_eq!((fault.class, world.sts.requests()), (class, 3), "{}", fault.text);
        assert!(fault.text.contains(ISSUER), "{}", fault.text);
    }
    for code in ["AccessDenied", "ValidationError", "RegionDisabledException"] {
        let world = world().await;
        world.sts.instead(100, &sts_error(403, code, "scripted"));
        world.refused().await;
        assert_eq!(world.sts.requests(), 1, "{code} is not about the token");
    }
}

#[tokio::test]
async fn a_refusal_names_role_and_claims_and_the_trust_policy_that_would_do() {
    let mut world = world().await;
    world.role.arn = "arn:aws:iam::999999999999:role/other".to_owned();
    let fault = world.refused().await;
    assert_eq!(fault.class, Class::AccessDenied);
    for part in [
        "AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity",
        "role=`arn:aws:iam::999999999999:role/other`",
        "iss=`https://oidc.fly.io/acme-inc`",
        "aud=`sts.amazonaws.com`",
        "sub=`acme-inc:shop:quiet-cloud-9972`",
    ] {
        assert!(fault.text.contains(part), "no `{part}` in {}", fault.text);
    }
    let (_, policy) = fault.text.split_once("accepts the token: ").expect("a policy");
    let policy: Value = serde_json::from_str(policy).expect("JSON to the end of the line");
    let statement = &policy["Statement"][0];
    assert_eq!(
        statement["Principal"]["Federated"],
        "arn:aws:iam::999999999999:oidc-provider/oidc.fly.io/acme-inc"
    );
    assert_eq!(statement["Condition"]["StringLike"]["oidc.fly.io/acme-inc:sub"], "acme-inc:shop:*");
    assert_eq!(statement["Condition"]["StringEquals"]["oidc.fly.io/acme-inc:aud"], "sts.amazonaws.com");
}

#[tokio::test]
async fn an_unknown_issuer_is_explained_with_the_trap_of_the_alias() {
    let mut world = world().await;
    let folder = tempfile::tempdir().expect("a temporary directory");
    let now = Clock::system().now();
    let mut claims = good_claims(now);
    claims["iss"] = json!("https://oidc.fly.io/other-org");
    claims["sub"] = json!("other-org:shop:machine");
    fs::write(folder.path().join("token"), jwt("other", &claims)).expect("written");
    world.role.machine_socket = None;
    world.role.web_identity_token_file = Some(folder.path().join("token"));
    let fault = world.refused().await;
    assert_eq!(fault.class, Class::InvalidToken);
    for part in ["oidc-provider/oidc.fly.io/other-org", "`personal`", "No OpenIDConnect provider"] {
        assert!(fault.text.contains(part), "no `{part}` in {}", fault.text);
    }

    // Kubernetes: no fly.io in it.
    claims["iss"] = json!("https://oidc.eks.eu-north-1.amazonaws.com/id/ABC");
    claims["sub"] = json!("system:serviceaccount:default:shop");
    fs::write(folder.path().join("token"), jwt("other", &claims)).expect("written");
    world.sts.instead(1, &sts_error(403, "AccessDenied", "no"));
    let fault = world.refused().await;
    assert!(fault.text.contains("oidc-provider/oidc.eks.eu-north-1.amazonaws.com/id/ABC"), "{}", fault.text);
    assert!(!fault.text.contains("fly.io"), "{}", fault.text);
}

#[tokio::test]
async fn an_answer_that_is_none_has_a_name() {
    let page = |status, text: &str| Answer::Page(status, text.to_owned());
    let without_credentials = "<AssumeRoleWithWebIdentityResponse \
         xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleWithWebIdentityResult>\
         </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>";
    let empty_key = "<AssumeRoleWithWebIdentityResponse \
         xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleWithWebIdentityResult><Credentials>\
         <AccessKeyId></AccessKeyId><SecretAccessKey></SecretAccessKey><SessionToken></SessionToken>\
         <Expiration>2096-11-21T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
         </AssumeRoleWithWebIdentityResponse>";
    for (answer, class) in [
        (sts_error(200, "InternalFailure", "scripted"), Class::StsAnswer),
        (page(200, "<html>sign in</html>"), Class::StsAnswer),
        (page(200, "{\"ok\":true}"), Class::StsAnswer),
        (page(200, ""), Class::StsAnswer),
        (page(200, without_credentials), Class::StsAnswer),
        (page(200, empty_key), Class::StsAnswer),
        (page(403, "<html>blocked by your proxy</html>"), Class::StsAnswer),
        (page(502, "<html>bad gateway</html>"), Class::StsUnavailable),
        (sts_error(500, "InternalFailure", "scripted"), Class::StsUnavailable),
        (sts_error(400, "Throttling", "Rate exceeded"), Class::StsUnavailable),
    ] {
        let world = world().await;
        world.sts.instead(1, &answer);
        let fault = world.refused().await;
        assert_eq!(fault.class, class, "{answer:?}: {}", fault.text);
        assert!(fault.text.contains(ARN), "{}", fault.text);
        assert!(!fault.text.contains("sign in"), "{}", fault.text);
    }
}

#[tokio::test]
async fn an_error_in_the_answer_of_a_success_keeps_its_name() {
    let world = world().await;
    world.sts.instead(1, &sts_error(200, "InvalidIdentityToken", "scripted"));
    let fault = world.refused().await;
    assert_eq!(fault.class, Class::StsAnswer);
    assert!(fault.text.contains("InvalidIdentityToken"), "{}", fault.text);
}

#[tokio::test]
async fn an_answer_that_does_not_end_is_not_read_to_its_end() {
    let world = world().await;
    world.sts.instead(1, &Answer::Endless);
    let began = Instant::now();
    assert_eq!(world.refused().await.class, Class::StsAnswer);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_sts_that_does_not_answer_is_given_up_in_time() {
    let world = world().await;
    world.sts.instead(1, &Answer::Silence);
    let began = Instant::now();
    let fault = world.refused().await;
    assert_eq!(fault.class, Class::StsUnreachable);
    assert!(fault.text.contains("no answer in time"), "{}", fault.text);
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());

    let mut nobody = self::world().await;
    nobody.role.sts_endpoint_url = Some("http://127.0.0.1:1".to_owned());
    assert_eq!(nobody.refused().await.class, Class::StsUnreachable);
}

#[tokio::test]
async fn what_sts_quotes_of_the_token_is_not_passed_on() {
    let mut world = world().await;
    let folder = tempfile::tempdir().expect("a temporary directory");
    let token = good_token("quoted", Clock::system().now());
    fs::write(folder.path().join("token"), &token).expect("written");
    world.role.machine_socket = None;
    world.role.web_identity_token_file = Some(folder.path().join("token"));
    for code in ["AccessDenied", "InvalidIdentityToken", "ValidationError"] {
        world.sts.instead(10, &sts_error(400, code, &format!("Value '{token}' is not good")));
        let fault = world.refused().await;
        assert!(fault.text.contains("is not good"), "{}", fault.text);
        assert!(token.split('.').all(|segment| !fault.text.contains(segment)), "{}", fault.text);
    }
}

/// An STS whose clock is an hour off: what its credentials say of their end cannot be compared.
#[tokio::test]
async fn an_end_by_another_clock_is_not_believed() {
    for minutes in [-70i64, 70] {
        let clock = Clock::from_fn(move || Clock::system().now() + jiff::SignedDuration::from_mins(minutes));
        let folder = tempfile::tempdir().expect("a temporary directory");
        let sts = Sts::start(clock.clone()).await;
        // Whoever keeps the token fresh has the clock of STS; the token lives long enough for both.
        let mut claims = good_claims(Clock::system().now());
        claims["exp"] = json!(Clock::system().now().as_second() + 7_200);
        fs::write(folder.path().join("token"), jwt("skewed", &claims)).expect("written");
        let role = Role { web_identity_token_file: Some(folder.path().join("token")), ..role(&sts) };
        let assumed = try_role(&role, REGION, &Clock::system()).await.expect("assumed");
        let left = assumed.expires_at.duration_since(Clock::system().now()).as_secs();
        assert!((3_590..=3_600).contains(&left), "{minutes}: {left}");
    }
}

#[tokio::test]
async fn policies_are_those_of_the_repository_filled_in() {
    let world = world().await;
    let claims: Claims = world.assume().await.expect("assumed").claims;
    let read = |name: &str| {
        let path = format!("{}/deploy/policies/{name}", env!("CARGO_MANIFEST_DIR"));
        fs::read_to_string(path).expect("a policy")
    };
    let role = Role { arn: "arn:aws-us-gov:iam::123456789012:role/team/x".to_owned(), ..world.role.clone() };
    let filled = read("fly-trust-policy.json")
        .replace("{{partition}}", "aws-us-gov")
        .replace("{{account}}", "123456789012")
        .replace("{{org}}", "acme-inc")
        .replace("{{app}}", "shop");
    assert_eq!(trust_policy(&role, &claims).as_deref(), Some(filled.as_str()));
    for (rights, name) in
        [(Rights::Full, "role-policy.json"), (Rights::AppendOnly, "append-only-policy.json")]
    {
        let filled = |prefix: &str| {
            read(name)
                .replace("{{partition}}", "aws")
                .replace("{{bucket}}", "backups")
                .replace("{{prefix}}", prefix)
        };
        assert_eq!(role_policy(rights, "aws", "backups", ""), filled(""));
        assert_eq!(role_policy(rights, "aws", "backups", "/my/app/"), filled("my/app/"));
        assert_eq!(role_policy(rights, "aws", "backups", "a\"b*"), filled("a\\\"b${*}/"));
        let policy: Value =
            serde_json::from_str(&role_policy(rights, "aws", "backups", "a\"b")).expect("JSON");
        assert!(!policy.to_string().contains("{{"), "{policy}");
    }
}
