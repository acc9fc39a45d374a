//! What each finding of an identity is worth, and which documents come with it.

use super::*;
use crate::config::Sources;
use crate::credentials::{Class, IdentityFailure};
use crate::doctor::check::Status::{self, *};

const ARN: &str = "arn:aws:iam::123456789012:role/backups";

fn config(pairs: &[(&str, &str)]) -> Config {
    let base = [("BACKUP_DATABASE", "/data/app.db"), ("BACKUP_S3_PREFIX", "shop/production")];
    let environment = [&base, pairs].concat().into_iter().collect();
    Config::load(&Sources { environment, current_directory: "/srv".into(), ..Sources::default() })
        .expect("valid")
        .0
}

fn bucket() -> Config {
    config(&[("BACKUP_S3_BUCKET", "backups"), ("AWS_REGION", "eu-north-1")])
}

fn role() -> Role {
    Role {
        arn: ARN.to_owned(),
        machine_socket: None,
        web_identity_token_file: None,
        token_wait: std::time::Duration::ZERO,
        session_name: "test".to_owned(),
        session_duration: std::time::Duration::from_secs(3_600),
        sts_endpoint_url: None,
    }
}

fn time() -> Timestamp {
    "2026-11-21T15:05:00Z".parse().expect("a time")
}

fn found() -> Found {
    Found {
        claims: Claims {
            issuer: "https://oidc.fly.io/acme".to_owned(),
            audience: vec!["sts.amazonaws.com".to_owned()],
            subject: "acme:shop:quiet-cloud-9972".to_owned(),
            expires_at: time(),
        },
        source: "machine-socket",
        passed_over: Vec::new(),
    }
}

fn looked() -> Looked {
    Looked {
        token: Result::Ok(found()),
        assumed: Some(Result::Ok(Assumed { session: None, expires_at: time() })),
    }
}

fn with_role(looked: &Looked, is_append_only: bool) -> Vec<Check> {
    let (config, role) = (bucket(), role());
    judge(&Case { config: &config, role: Some(&role), looked: Some(looked), state: None, is_append_only })
}

fn without(config: &Config, state: Option<&IdentityState>) -> Vec<Check> {
    judge(&Case { config, role: None, looked: None, state, is_append_only: false })
}

fn statuses(checks: &[Check]) -> Vec<Status> {
    checks.iter().map(|check| check.status).collect()
}

#[test]
fn a_role_that_opens() {
    let checks = with_role(&looked(), false);
    let names: Vec<&str> = checks.iter().map(|check| check.name).collect();
    assert_eq!(names, [SOURCE, TOKEN, ROLE, TRUST, POLICY]);
    assert_eq!(statuses(&checks), [Ok; 5]);
    insta::assert_json_snapshot!(checks[1].document, @r#"
    {
      "audience": [
        "sts.amazonaws.com"
      ],
      "expires_at": "2026-11-21T15:05:00Z",
      "issuer": "https://oidc.fly.io/acme",
      "subject": "acme:shop:quiet-cloud-9972"
    }
    "#);
    let trust = checks[3].document.as_ref().expect("a policy");
    let statement = &trust["Statement"][0];
    assert_eq!(
        statement["Principal"]["Federated"],
        "arn:aws:iam::123456789012:oidc-provider/oidc.fly.io/acme"
    );
    assert_eq!(statement["Condition"]["StringLike"]["oidc.fly.io/acme:sub"], "acme:shop:*");
    let policy = checks[4].document.as_ref().expect("a policy").to_string();
    assert!(
        policy.contains("arn:aws:s3:::backups/shop/production/*") && policy.contains("s3:DeleteObject"),
        "{policy}"
    );
}

#[test]
fn an_append_only_role_gets_its_own_policy() {
    let checks = with_role(&looked(), true);
    let policy = checks[4].document.as_ref().expect("a policy").to_string();
    assert!(!policy.contains("s3:DeleteObject") && policy.contains("Deny"), "{policy}");
}

#[test]
fn a_token_that_is_not_there_ends_the_rest() {
    let looked = Looked { token: Err("there is no token file: path=`/x`".to_owned()), assumed: None };
    let checks = with_role(&looked, false);
    assert_eq!(statuses(&checks), [Ok, Failure, Skipped, Skipped, Ok]);
    let passed_over = Found { passed_over: vec!["only root may".to_owned()], ..found() };
    let checks = with_role(&Looked { token: Result::Ok(passed_over), ..self::looked() }, false);
    assert_eq!(statuses(&checks), [Ok, Note, Ok, Ok, Ok]);
}

#[test]
fn a_role_that_refuses_is_shown_the_policy_and_the_trap_of_the_slug() {
    let refused = Looked { assumed: Some(Err("AccessDenied".to_owned())), ..looked() };
    let checks = with_role(&refused, false);
    assert_eq!(statuses(&checks), [Ok, Ok, Failure, Note, Ok]);
    assert!(checks[3].means.as_ref().is_some_and(|means| means.contains("personal")), "{}", checks[3]);
    assert!(checks[3].document.is_some());

    let claims = Claims { issuer: "https://oidc.eks.amazonaws.com/id/1".to_owned(), ..found().claims };
    let elsewhere = Looked { token: Result::Ok(Found { claims, ..found() }), ..refused };
    let checks = with_role(&elsewhere, false);
    assert_eq!((checks[3].status, &checks[3].document), (Note, &None));
    assert!(checks[3].means.as_ref().is_some_and(|means| means.contains("oidc.eks")), "{}", checks[3]);
}

#[test]
fn without_a_role() {
    let directory = config(&[("BACKUP_USE_AWS", "false")]);
    assert_eq!(statuses(&without(&directory, None)), [Ok, Skipped, Skipped, Skipped, Skipped]);
    assert_eq!(statuses(&without(&bucket(), None)), [Ok, Skipped, Skipped, Skipped, Ok]);
    let failed = IdentityState {
        kind: "chain",
        role: None,
        source: None,
        provider: None,
        expires_at: None,
        renewed_at: None,
        last_failure: Some(IdentityFailure { class: Class::NoCredentials, at: time() }),
    };
    let checks = without(&bucket(), Some(&failed));
    assert_eq!(checks[0].status, Failure);
    assert!(checks[0].found.contains("no-credentials"), "{}", checks[0]);
    let found = |kind, provider| {
        let state = IdentityState { kind, provider, last_failure: None, ..failed.clone() };
        without(&bucket(), Some(&state))[0].found.clone()
    };
    assert!(found("key", None).contains("static key"));
    assert!(found("chain", Some("profile")).contains("its profile"));
    let china = config(&[("BACKUP_S3_BUCKET", "backups"), ("AWS_REGION", "cn-north-1")]);
    let policy = without(&china, None)[4].document.as_ref().expect("a policy").to_string();
    assert!(policy.contains("arn:aws-cn:s3:::backups"), "{policy}");
    let minio = config(&[("BACKUP_S3_BUCKET", "backups"), ("AWS_ENDPOINT_URL_S3", "https://minio.example")]);
    assert_eq!(without(&minio, None)[4].status, Skipped, "its policies are not these");
}
