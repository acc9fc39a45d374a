//! Tests of the configuration as a whole: layers, every key, combinations, secrets, listing.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use secrecy::ExposeSecret;
use tempfile::NamedTempFile;

use super::*;
use crate::error::{Error, ErrorKind};

/// Enough for every setting to count: S3 with a role.
const BASE: [(&str, &str); 4] = [
    ("BACKUP_DATABASE", "/data/app.db"),
    ("BACKUP_S3_BUCKET", "my-app-backups"),
    ("AWS_REGION", "eu-central-1"),
    ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/backup"),
];

fn sources(pairs: &[(&str, &str)]) -> Sources {
    Sources {
        environment: pairs.iter().copied().collect(),
        current_directory: PathBuf::from("/srv"),
        ..Sources::default()
    }
}

fn load(pairs: &[(&str, &str)]) -> Result<(Config, Effective)> {
    Config::load(&sources(pairs))
}

fn with_base(pairs: &[(&str, &str)]) -> Result<(Config, Effective)> {
    load(&[&BASE, pairs].concat())
}

fn refused(result: Result<(Config, Effective)>) -> Error {
    let error = result.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    error
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("file");
    file.write_all(text.as_bytes()).expect("write");
    file
}

fn from_file(text: &str) -> Result<(Config, Effective)> {
    let file = file(text);
    Config::load(&Sources { file: Some(file.path().to_owned()), ..sources(&[]) })
}

/// Variable, a value unlike the default and the base, and values that are refused.
const CASES: &[(&str, &str, &[&str])] = &[
    ("BACKUP_DATABASE", "a.db,*.sqlite", &["postgres://h/x", ":memory:", "/", "A=b.db", "n=*.db", "*/a.db"]),
    ("BACKUP_USE_AWS", "false", &["maybe", "aws"]),
    ("BACKUP_S3_BUCKET", "other-bucket", &["x", "My_Bucket", "s3://bucket", "192.168.0.1"]),
    ("BACKUP_S3_PREFIX", "a/b", &["a//b", "../a"]),
    ("BACKUP_DIR", "/backups", &["a\0b"]),
    (
        "AWS_ENDPOINT_URL_S3",
        "https://s3.example.com",
        &["s3.example.com", "http://minio:9000", "https://u:p@h"],
    ),
    ("BACKUP_S3_PROVIDER", "aws", &["s3", "AWS", "r2"]),
    ("BACKUP_S3_PATH_STYLE", "true", &["path"]),
    ("BACKUP_S3_ALLOW_HTTP", "true", &["http"]),
    ("BACKUP_S3_CONCURRENCY", "8", &["0", "65", "-1", "many"]),
    ("AWS_REGION", "us-west-2", &["Frankfurt", "eu central", "auto"]),
    (
        "AWS_ROLE_ARN",
        "arn:aws:iam::000000000000:role/x",
        &["backup", "arn:aws:iam::<ACCOUNT_ID>:role/backup"],
    ),
    ("BACKUP_AWS_AUTH", "web-identity", &["role", "static", "Auto"]),
    ("BACKUP_MACHINE_SOCKET", "/run/api", &["a\0b"]),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", "/.fly/oidc_token", &["a\0b"]),
    ("BACKUP_TOKEN_WAIT", "1m", &["30", "6m", "-1s"]),
    ("BACKUP_SESSION_DURATION", "12h", &["3600", "14m", "13h"]),
    ("AWS_ROLE_SESSION_NAME", "session", &["a", "a b"]),
    ("AWS_ENDPOINT_URL_STS", "https://sts.example.com", &["sts", "http://sts.example.com"]),
    ("BACKUP_SCHEDULE", "0 * * * *", &[]),
    ("BACKUP_ON_SHUTDOWN", "no", &["never"]),
    ("BACKUP_SHUTDOWN_DEADLINE", "20s", &["20", "0s", "2h", "-5s"]),
    ("BACKUP_DEADLINE", "10m", &["600", "0s", "3d", "1 month"]),
    ("BACKUP_BUSY_TIMEOUT", "5s", &["5", "11m"]),
    ("BACKUP_WAL_GROWTH_MAX", "64 MiB", &["67108864", "1 KiB", "much"]),
    ("BACKUP_WRITER_BLOCKED_MAX", "30s", &["30", "0s", "11m"]),
    ("BACKUP_ZSTD_LEVEL", "3", &["0", "20", "-1", "fast"]),
    ("BACKUP_THREADS", "2", &["257", "-1", "all"]),
    ("BACKUP_CAPTURE", "off", &["daily", "2"]),
    ("BACKUP_POINT_IN_TIME", "2d", &["2", "30m", "11 years"]),
    ("BACKUP_INTERVAL", "250ms", &["1", "50ms", "2h", "-1s"]),
    ("BACKUP_POINT_IN_TIME", "30d", &["7", "59m", "20 years"]),
    ("BACKUP_SPOOL_MAX", "off", &["1073741824", "1 KiB", "much"]),
    ("BACKUP_SPOOL_AGE", "2d", &["2", "1m", "20 years"]),
    ("BACKUP_RESTORE_ON_BOOT", "always", &["sometimes", "missing"]),
    ("BACKUP_ALLOW_EMPTY", "yes", &["perhaps"]),
    ("BACKUP_KEEP_REPLACED", "1", &["0", "101", "-1", "all"]),
    ("BACKUP_HANDOVER_WAIT", "60s", &["60", "2h", "-1s"]),
    ("BACKUP_COMMAND_USER", "app:web", &["app web", "app:", ":web", "app:web:more"]),
    ("BACKUP_HTTP_ADDR", "0.0.0.0:8080", &["9091", "localhost:9091", "http://127.0.0.1:9091", "none"]),
    (
        "BACKUP_HTTP_TOKEN",
        "0123456789abcdef",
        &[
            "0123456789abcde",
            "0123456789 abcdef",
            "0123456789abcdeé",
            "1-0123456789abcde 2-0123456789abcde 3-0123456789abcde",
        ],
    ),
    ("BACKUP_HTTP_CONNECTIONS", "8", &["0", "1025", "many"]),
    ("BACKUP_REQUESTS_PER_DAY", "1000", &["-1", "many", "1.5"]),
    ("BACKUP_UPLOAD_PER_DAY", "5 GiB", &["5", "1 KiB", "much"]),
    ("BACKUP_HTTP_ALLOWED_HOSTS", "a.example.com,b", &["https://a", "a:80", "a/b"]),
    ("BACKUP_RETENTION", "7d", &[]),
    ("BACKUP_PRUNE_SAFETY_AGE", "2d", &["2", "11 years", "-1h"]),
    ("BACKUP_PRUNE_SCHEDULE", "off", &[]),
    ("BACKUP_VERIFY_SCHEDULE", "0 0 * * 0", &[]),
    ("BACKUP_VERIFY_WITHIN", "7d", &["30", "1m", "11 years"]),
    ("BACKUP_VERIFY_SQL", "select 1", &["DELETE FROM t", "1", "selected", "PRAGMA integrity_check"]),
    ("BACKUP_CHECK_DEADLINE", "10m", &["10", "0s", "2d"]),
    ("BACKUP_MAX_AGE", "15m", &["15", "0s"]),
    ("BACKUP_LOG_FORMAT", "json", &["xml", "JSONL"]),
    ("BACKUP_LOG", "debug", &[]),
];

#[test]
fn every_setting_has_an_effect_and_refuses_what_is_wrong() {
    let (base, _) = with_base(&[]).expect("base");
    for (variable, other, wrong) in CASES {
        let (config, effective) = with_base(&[(variable, other)]).expect(variable);
        // These say what is so already, or only allow what is refused without them; they have tests
        // of their own.
        if !["BACKUP_S3_ALLOW_HTTP", "BACKUP_S3_PROVIDER", "BACKUP_AWS_AUTH"].contains(variable) {
            assert_ne!(format!("{config:?}"), format!("{base:?}"), "{variable} has no effect");
        }
        let row = effective.0.iter().find(|row| row.env == *variable).expect(variable);
        assert_eq!(row.origin, Origin::Environment((*variable).to_owned()));
        for text in *wrong {
            let error = refused(with_base(&[(variable, text)]));
            for part in [row.key, variable, "for example `"] {
                assert!(error.chain().contains(part), "{variable}={text}: {error}");
            }
        }
    }
    let tested: HashSet<&str> = CASES.iter().map(|(variable, ..)| *variable).collect();
    for setting in SETTINGS {
        // The token's file is read, so it has a test of its own.
        assert!(
            tested.contains(setting.env) || setting.key == "http.token_file",
            "{} is not tested",
            setting.env
        );
    }
}

#[test]
fn every_example_is_accepted_but_that_of_a_secret() {
    for setting in SETTINGS.iter().filter(|setting| setting.key != "http.token_file") {
        let result = with_base(&[(setting.env, setting.example)]);
        assert_eq!(result.is_ok(), setting.kind != Kind::Secret, "{}", setting.key);
    }
}

#[test]
fn the_defaults() {
    let (config, effective) = load(&[]).expect("defaults");
    assert!(matches!(&config.storage, StorageChoice::Directory(path) if path == Path::new("/srv/backups")));
    assert_eq!(config.backup.schedule.as_deref(), Some("29 2 * * *"));
    assert_eq!(config.backup.deadline, Duration::from_secs(3_600));
    assert_eq!(config.backup.wal_growth_bytes_max, 1 << 30);
    assert_eq!(config.backup.threads, None);
    assert_eq!(config.restore.on_boot, RestoreOnBoot::Never);
    assert!(!config.restore.allow_empty);
    assert_eq!(config.restore.keep_replaced.get(), 3);
    assert_eq!(config.restore.handover_wait, Duration::ZERO);
    assert_eq!(config.http.addr, Some(SocketAddr::from(([127, 0, 0, 1], 9091))));
    assert!(config.http.tokens.is_empty() && config.http.allowed_hosts.is_empty());
    assert_eq!(config.verify.max_age, None);
    assert_eq!(config.verify.within, Duration::from_secs(30 * 86_400));
    assert_eq!(config.verify.sql, None);
    assert_eq!(config.verify.check_deadline, Duration::from_secs(3_600));
    assert!(effective.0.iter().all(|row| matches!(row.origin, Origin::Default | Origin::Derived)));
    assert_eq!(config.databases.expand().expect_err("no database").kind(), ErrorKind::Config);
}

#[test]
fn the_spellings_of_restore_on_boot_and_off() {
    for (text, on_boot) in [
        ("true", RestoreOnBoot::IfMissing),
        ("If-Missing", RestoreOnBoot::IfMissing),
        ("false", RestoreOnBoot::Never),
        ("off", RestoreOnBoot::Never),
        ("always", RestoreOnBoot::Always),
    ] {
        let (config, _) = load(&[("BACKUP_RESTORE_ON_BOOT", text)]).expect(text);
        assert_eq!(config.restore.on_boot, on_boot, "{text}");
    }
    let (config, _) = load(&[("BACKUP_HTTP_ADDR", "off"), ("BACKUP_SCHEDULE", "off")]).expect("off");
    assert_eq!((config.http.addr, config.backup.schedule), (None, None));
}

#[test]
fn flag_beats_environment_beats_file_beats_application_beats_default() {
    let file = file("[storage]\ndirectory = '/file'\n[aws]\nregion = 'file-1'\n[backup]\nzstd_level = 2\n");
    let origin = |sources: &Sources, key: &str| {
        let (_, effective) = Config::load(sources).expect("valid");
        let row = effective.0.into_iter().find(|row| row.key == key).expect(key);
        (row.value.unwrap_or_default(), row.origin.to_string())
    };
    let path = file.path().display().to_string();
    let mut sources =
        sources(&[("LIFEBOAT_CONFIG", &path), ("BACKUP_DIR", ""), ("AWS_DEFAULT_REGION", "app-1")]);
    assert_eq!(origin(&sources, "backup.threads"), ("0".into(), "default".into()));
    assert_eq!(origin(&sources, "storage.directory"), ("/file".into(), format!("file {path}")));
    assert_eq!(origin(&sources, "aws.region"), ("file-1".into(), format!("file {path}")));
    sources.environment = [("BACKUP_DIR", "/env"), ("AWS_DEFAULT_REGION", "app-1")].into_iter().collect();
    assert_eq!(origin(&sources, "aws.region"), ("app-1".into(), "environment AWS_DEFAULT_REGION".into()));
    sources.file = Some(file.path().to_owned());
    assert_eq!(origin(&sources, "storage.directory"), ("/env".into(), "environment BACKUP_DIR".into()));
    sources.flags.insert("storage.directory".into(), "/flag".into());
    assert_eq!(origin(&sources, "storage.directory"), ("/flag".into(), "flag --dir".into()));
}

#[test]
fn unknown_keys_and_variables_are_refused_with_a_hint() {
    for (text, part) in [
        ("[storage]\nbuket = 'abc'", "did you mean `storage.bucket`?"),
        ("[s3]\nbucket = 'abc'", "did you mean `storage.bucket`?"),
        ("bucket = 'abc'", "did you mean `storage.bucket`?"),
        ("[storage.s3]\nbucket = 'abc'", "unknown key=`storage.s3`"),
        ("[zzz]\nqqqqqq = 1", "lists every key"),
    ] {
        assert!(refused(from_file(text)).chain().contains(part), "{text}");
    }
    for (variable, part) in [
        ("BACKUP_S3_BUKET", "did you mean `BACKUP_S3_BUCKET`?"),
        ("BACKUP_ENCRYPTION", "unknown variable=`BACKUP_ENCRYPTION`"),
        ("BACKUP_DATABASES", "did you mean `BACKUP_DATABASE`?"),
    ] {
        assert!(refused(load(&[(variable, "x")])).chain().contains(part), "{variable}");
        load(&[(variable, "")]).expect("an empty value counts as absent");
    }
    let flags = BTreeMap::from([("http.token".to_owned(), "0123456789abcdef".to_owned())]);
    refused(Config::load(&Sources { flags, ..sources(&[]) }));
}

#[test]
fn files_that_are_none() {
    for (text, part) in [
        ("[storage]\nbucket = ['abc']", "accept storage.bucket"),
        ("[storage]\nbucket = 1.5", "accept storage.bucket"),
        ("[databases]\npaths = [1]", "an array of texts"),
        ("[backup]\ndeadline = 300", "needs a unit"),
        ("[backup]\ndeadline = ''", "must have a value"),
        ("[log]\n\nlevel = x", "line=`3`"),
    ] {
        assert!(refused(from_file(text)).chain().contains(part), "{text}");
    }
    let absent = Sources { file: Some("/nowhere/lifeboat.toml".into()), ..sources(&[]) };
    assert!(refused(Config::load(&absent)).chain().contains("/nowhere/lifeboat.toml"));
    refused(from_file(&"#".repeat((1 << 20) + 1)));
}

#[test]
fn what_cannot_be_together() {
    let role = ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/backup");
    let bucket = ("BACKUP_S3_BUCKET", "my-app-backups");
    for (pairs, part) in [
        (&[("BACKUP_USE_AWS", "true")][..], "S3 needs a bucket"),
        (&[bucket, role], "a role needs a region"),
        (&[bucket, role, ("AWS_REGION", "auto")], "no token service"),
        (&[bucket, ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")], "set aws.role_arn"),
        (&[bucket, ("AWS_ENDPOINT_URL_S3", "http://minio:9000")], "in clear"),
        (
            &[bucket, ("AWS_ENDPOINT_URL_STS", "http://sts:8080"), ("BACKUP_S3_ALLOW_HTTP", "true")],
            "the identity token in clear",
        ),
        (&[bucket, role, ("AWS_REGION", "auto")], "`fly storage create`"),
        (&[bucket, ("BACKUP_S3_PROVIDER", "r2")], "needs an endpoint"),
        (&[bucket, ("BACKUP_AWS_AUTH", "web-identity")], "no role is set"),
        (&[bucket, ("BACKUP_AWS_AUTH", "static")], "there is no static key"),
        (&[bucket, KEY, ("BACKUP_AWS_AUTH", "static")], "set AWS_SECRET_ACCESS_KEY"),
        (&[bucket, SECRET, ("BACKUP_AWS_AUTH", "static")], "set AWS_ACCESS_KEY_ID"),
        (&[bucket, role, REGION, KEY], "a static key (AWS_ACCESS_KEY_ID) is set beside it"),
        (&[bucket, role, REGION, TIGRIS], "does not know the credentials of a role"),
        (
            &[
                bucket,
                role,
                REGION,
                ("AWS_ENDPOINT_URL_S3", "https://s3.example.com"),
                ("BACKUP_S3_PROVIDER", "b2"),
            ],
            "does not know the credentials of a role",
        ),
        (&[("BACKUP_DATABASE", "/a/app.db,/b/app.db")], "`/a/app.db`"),
        (
            &[("BACKUP_HTTP_TOKEN", "0123456789abcdef"), ("BACKUP_HTTP_TOKEN_FILE", "/t")],
            "keep one of the two",
        ),
    ] {
        assert!(refused(load(pairs)).chain().contains(part), "{pairs:?}");
    }
    for pairs in [
        &[bucket, ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000")][..],
        &[bucket, ("AWS_ENDPOINT_URL_S3", "http://minio:9000"), ("BACKUP_S3_ALLOW_HTTP", "true")],
        &[bucket, ("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:8080")],
        // A role that is the application's, while backups go to a directory.
        &[("AWS_ROLE_ARN", "arn:aws:iam::<ACCOUNT_ID>:role/x"), ("AWS_ENDPOINT_URL_S3", "http://minio")],
    ] {
        load(pairs).expect("accepted");
    }
}

const REGION: (&str, &str) = ("AWS_REGION", "eu-central-1");
const SECRET: (&str, &str) = ("AWS_SECRET_ACCESS_KEY", "hunter2");
const KEY: (&str, &str) = ("AWS_ACCESS_KEY_ID", "AKIDTEST");
const TIGRIS: (&str, &str) = ("AWS_ENDPOINT_URL_S3", "https://fly.storage.tigris.dev");

fn bucket(pairs: &[(&str, &str)]) -> S3 {
    let (config, _) = with_base(pairs).expect("valid");
    let StorageChoice::S3(s3) = config.storage else { panic!("S3 is used") };
    *s3
}

#[test]
fn a_key_beside_a_role_needs_a_word_about_which_is_meant() {
    let role_with = |pairs: &[(&str, &str)]| bucket(pairs).credentials.role().is_some();
    assert!(role_with(&[KEY, ("BACKUP_AWS_AUTH", "web-identity")]));
    assert!(!role_with(&[KEY, SECRET, ("BACKUP_AWS_AUTH", "static")]));
    // As `fly storage create` leaves it, on a machine whose environment has a role for something else.
    let tigris = [KEY, SECRET, TIGRIS, ("AWS_REGION", "auto"), ("BACKUP_AWS_AUTH", "static")];
    let token_file = ("AWS_WEB_IDENTITY_TOKEN_FILE", "/.fly/oidc_token");
    assert!(!role_with(&tigris) && !role_with(&[&tigris[..], &[token_file]].concat()));
}

#[test]
fn a_provider_is_what_is_said_or_what_the_endpoint_tells() {
    let own = ("AWS_ENDPOINT_URL_S3", "https://s3.example.com");
    assert_eq!(bucket(&[]).provider, Provider::Aws);
    assert_eq!(bucket(&[own]).provider, Provider::Other);
    assert_eq!(bucket(&[own, ("BACKUP_S3_PROVIDER", "minio")]).provider, Provider::Minio);
    assert_eq!(bucket(&[TIGRIS, KEY, SECRET, ("BACKUP_AWS_AUTH", "static")]).provider, Provider::Tigris);
    let (_, effective) = with_base(&[own]).expect("valid");
    let row = effective.0.iter().find(|row| row.key == "storage.provider").expect("a row");
    assert_eq!((row.value.as_deref(), &row.origin), (Some("other"), &Origin::Derived));
}

#[test]
fn the_machine_s_socket_can_be_switched_off() {
    let socket =
        |pairs: &[(&str, &str)]| bucket(pairs).credentials.role().expect("a role").machine_socket.clone();
    assert_eq!(socket(&[]).as_deref(), Some(Path::new("/.fly/api")));
    assert_eq!(socket(&[("BACKUP_MACHINE_SOCKET", "off")]), None);
}

#[test]
fn a_token_is_waited_for_where_somebody_said_that_it_comes() {
    let wait =
        |pairs: &[(&str, &str)]| bucket(pairs).credentials.role().expect("a role").token_wait.as_secs();
    assert_eq!(wait(&[]), 0);
    assert_eq!(wait(&[("BACKUP_MACHINE_SOCKET", "off")]), 0);
    for pair in [
        ("FLY_MACHINE_ID", "148e"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"),
        ("BACKUP_MACHINE_SOCKET", "/.fly/api"),
        ("BACKUP_TOKEN_WAIT", "30s"),
    ] {
        assert_eq!(wait(&[pair]), 30, "{pair:?}");
    }
}

#[test]
fn the_session_is_called_after_the_machine() {
    for (pairs, name) in [
        (&[("FLY_MACHINE_ID", "148e"), ("HOSTNAME", "host")][..], "lifeboat-148e"),
        (&[("HOSTNAME", "my host")], "lifeboat-my-host"),
        (&[("AWS_ROLE_SESSION_NAME", "mine"), ("HOSTNAME", "host")], "mine"),
    ] {
        let (config, effective) = with_base(pairs).expect(name);
        let StorageChoice::S3(s3) = config.storage else { panic!("S3 is used") };
        assert_eq!(s3.credentials.role().expect("a role").session_name, name);
        assert!(effective.render_text().contains(name));
    }
}

#[test]
fn the_application_s_own_variables_name_the_database_in_order() {
    for (pairs, path, skipped) in [
        (&[("DATABASE_PATH", "/a,b.db"), ("DATABASE_URL", "sqlite:///c.db")][..], "/a,b.db", 0),
        (&[("DATABASE_URL", "sqlite:///c.db"), ("DB_DATABASE", "/d.db")], "/c.db", 0),
        (&[("DATABASE_URL", "postgres://u:secret@h/x"), ("DB_DATABASE", "d.db")], "/srv/d.db", 1),
        (&[("DATABASE_URL", "postgres://u:secret@h/x"), ("BACKUP_DATABASE", "/e.db")], "/e.db", 0),
        (&[("DB_DATABASE", "/name=a*.db")], "/name=a*.db", 0),
    ] {
        let (config, effective) = load(pairs).expect(path);
        let files = config.databases.expand().expect(path);
        assert_eq!(files.iter().map(|file| file.path.as_path()).collect::<Vec<_>>(), [Path::new(path)]);
        assert_eq!(config.databases.skipped.len(), skipped, "{path}");
        assert!(!format!("{config:?}{effective:?}").contains("secret"));
    }
    let (config, _) = load(&[("DATABASE_URL", "postgres://u:secret@h/x")]).expect("databases may be absent");
    let error = config.databases.expand().expect_err("none");
    assert!(
        error.chain().contains("DATABASE_URL was skipped: it is not SQLite: scheme=`postgres`"),
        "{error}"
    );
    assert!(!error.chain().contains("secret"));
}

#[test]
fn the_token_may_be_in_a_file() {
    let good = file("0123456789abcdef\n");
    let path = good.path().display().to_string();
    let (config, _) = load(&[("BACKUP_HTTP_TOKEN_FILE", &path)]).expect("a token");
    assert_eq!(
        config.http.tokens.iter().map(ExposeSecret::expose_secret).collect::<Vec<_>>(),
        ["0123456789abcdef"]
    );
    let two = file("0123456789abcdef\nfedcba9876543210\n");
    let path = two.path().display().to_string();
    let (config, _) = load(&[("BACKUP_HTTP_TOKEN_FILE", &path)]).expect("two tokens");
    assert_eq!((config.http.tokens.len(), config.http.token_file.as_deref()), (2, Some(two.path())));
    std::fs::write(two.path(), "hunter2").expect("writes");
    let error = read_tokens(two.path()).expect_err("too short");
    assert!(error.chain().contains(&path) && !error.chain().contains("hunter2"), "{error}");
    let short = file("hunter2");
    let path = short.path().display().to_string();
    let error = refused(load(&[("BACKUP_HTTP_TOKEN_FILE", &path)]));
    assert!(error.chain().contains(&path) && !error.chain().contains("hunter2"), "{error}");
    refused(load(&[("BACKUP_HTTP_TOKEN_FILE", "/nowhere/token")]));
}

#[test]
fn no_secret_is_printed() {
    const SECRET: &str = "hunter2-hunter2-hunter2";
    let check = |text: String| assert!(!text.contains("hunter2"), "{text}");
    let sources = sources(&[("BACKUP_HTTP_TOKEN", SECRET), ("AWS_ACCESS_KEY_ID", SECRET)]);
    let (config, effective) = Config::load(&sources).expect("valid");
    check(format!("{sources:?} {config:?} {effective:?}"));
    check(effective.render_text());
    check(serde_json::to_string(&effective).expect("JSON"));
    assert!(effective.render_text().contains("(redacted)"));
    for result in [
        load(&[("BACKUP_HTTP_TOKEN", "hunter2")]),
        load(&[("BACKUP_DATABASE", "postgres://user:hunter2@host/x")]),
        with_base(&[("AWS_ENDPOINT_URL_S3", "https://user:hunter2@host")]),
        from_file("[http]\ntoken = 'hunter2"),
        from_file("[http]\ntoken = ['hunter2']"),
    ] {
        let error = refused(result);
        check(format!("{} {error:?}", error.chain()));
    }
}

#[test]
fn the_worked_examples_are_valid() {
    let (local, _) = from_file(include_str!("../../config/local.toml")).expect("local.toml");
    assert!(matches!(&local.storage, StorageChoice::Directory(path) if path == Path::new("/srv/backups")));
    assert_eq!(local.restore.on_boot, RestoreOnBoot::IfMissing);
    let (production, _) = from_file(include_str!("../../config/production.toml")).expect("production.toml");
    let StorageChoice::S3(s3) = production.storage else { panic!("S3 is used") };
    assert_eq!(s3.prefix, "my-app/production");
    assert!(s3.credentials.role().is_some());
}

#[test]
fn the_listing() {
    let mut sources = sources(
        &[
            &BASE[..],
            &[
                ("BACKUP_HTTP_TOKEN", "0123456789abcdef"),
                ("FLY_MACHINE_ID", "148e"),
                ("BACKUP_DATABASE", "a.db, b=x.db"),
            ],
        ]
        .concat(),
    );
    sources.flags.insert("log.format".into(), "json".into());
    let (_, effective) = Config::load(&sources).expect("valid");
    insta::assert_snapshot!("listing_text", effective.render_text());
    insta::assert_json_snapshot!("listing_json", effective);
}
