//! The table of settings: file keys, environment names, flags and the listing all derive from it.

/// How the text of a setting is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One value.
    Value,
    /// True or false; its flag may stand without a value.
    Switch,
    /// Several values: an array in a file, separated by commas elsewhere.
    List,
    /// One value that is never printed and has no flag, for other users can read a command line.
    Secret,
}

/// One thing that can be configured.
#[derive(Debug)]
pub struct Setting {
    /// `section.name` in a file.
    pub key: &'static str,
    /// The environment variable.
    pub env: &'static str,
    /// Variables that belong to the application or its framework, taken in this order when neither
    /// a file nor [`Setting::env`] says anything.
    pub fallbacks: &'static [&'static str],
    /// How its text is taken.
    pub kind: Kind,
    /// Stands for the value in the help.
    pub placeholder: &'static str,
    /// A value that is accepted, for messages; of a secret how to make one, which itself is refused.
    pub example: &'static str,
}

impl Setting {
    /// The setting with this file key.
    pub fn of(key: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }

    /// The long flag without its dashes: the variable's name without `BACKUP_`. `None` for secrets.
    pub fn flag(&self) -> Option<String> {
        let name = self.env.strip_prefix("BACKUP_").unwrap_or(self.env);
        (self.kind != Kind::Secret).then(|| name.to_lowercase().replace('_', "-"))
    }

    /// What it means: the comment above its key in `config/default.toml`, on one line.
    pub fn documentation(&self) -> String {
        let mut section = "";
        let mut comment: Vec<&str> = Vec::new();
        for line in super::DEFAULT_FILE.lines().map(str::trim) {
            if let Some(text) = line.strip_prefix('#') {
                comment.push(text.trim());
            } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = name;
                comment.clear();
            } else if let Some((name, _)) = line.split_once(" = ") {
                if self.key.split_once('.') == Some((section, name)) {
                    break;
                }
                comment.clear();
            } else {
                comment.clear();
            }
        }
        comment.join(" ")
    }
}

/// Every setting, in the order of `config/default.toml`.
pub const SETTINGS: &[Setting] = &[
    list("databases.paths", "BACKUP_DATABASE", "PATH", "/data/app.db").or(&[
        "DATABASE_PATH",
        "DATABASE_URL",
        "DB_DATABASE",
    ]),
    switch("storage.use_aws", "BACKUP_USE_AWS", "true"),
    value("storage.bucket", "BACKUP_S3_BUCKET", "NAME", "my-app-backups"),
    value("storage.prefix", "BACKUP_S3_PREFIX", "PREFIX", "my-app/production"),
    value("storage.directory", "BACKUP_DIR", "PATH", "./backups"),
    value("storage.endpoint_url", "AWS_ENDPOINT_URL_S3", "URL", "https://s3.example.com"),
    value("storage.provider", "BACKUP_S3_PROVIDER", "NAME", "aws"),
    switch("storage.path_style", "BACKUP_S3_PATH_STYLE", "true"),
    switch("storage.allow_http", "BACKUP_S3_ALLOW_HTTP", "false"),
    value("storage.part_concurrency", "BACKUP_S3_CONCURRENCY", "NUMBER", "4"),
    value("storage.requests_per_day", "BACKUP_REQUESTS_PER_DAY", "NUMBER", "50000"),
    value("storage.upload_per_day", "BACKUP_UPLOAD_PER_DAY", "SIZE", "50 GiB"),
    value("aws.region", "AWS_REGION", "NAME", "eu-central-1").or(&["AWS_DEFAULT_REGION"]),
    value("aws.auth", "BACKUP_AWS_AUTH", "WHICH", "web-identity"),
    value("aws.role_arn", "AWS_ROLE_ARN", "ARN", "arn:aws:iam::123456789012:role/my-app-backup"),
    value("aws.machine_socket", "BACKUP_MACHINE_SOCKET", "PATH", "/.fly/api"),
    value("aws.web_identity_token_file", "AWS_WEB_IDENTITY_TOKEN_FILE", "PATH", "/.fly/oidc_token"),
    value("aws.token_wait", "BACKUP_TOKEN_WAIT", "DURATION", "30s"),
    value("aws.session_duration", "BACKUP_SESSION_DURATION", "DURATION", "1h"),
    value("aws.role_session_name", "AWS_ROLE_SESSION_NAME", "NAME", "my-app-backup"),
    value("aws.sts_endpoint_url", "AWS_ENDPOINT_URL_STS", "URL", "https://sts.eu-central-1.amazonaws.com"),
    value("backup.schedule", "BACKUP_SCHEDULE", "CRON", "*/5 * * * *"),
    switch("backup.on_shutdown", "BACKUP_ON_SHUTDOWN", "true"),
    value("backup.shutdown_deadline", "BACKUP_SHUTDOWN_DEADLINE", "DURATION", "60s"),
    value("backup.deadline", "BACKUP_DEADLINE", "DURATION", "1h"),
    value("backup.busy_timeout", "BACKUP_BUSY_TIMEOUT", "DURATION", "30s"),
    value("backup.wal_growth_max", "BACKUP_WAL_GROWTH_MAX", "SIZE", "1 GiB"),
    value("backup.writer_blocked_max", "BACKUP_WRITER_BLOCKED_MAX", "DURATION", "10s"),
    value("backup.zstd_level", "BACKUP_ZSTD_LEVEL", "NUMBER", "1"),
    value("backup.threads", "BACKUP_THREADS", "NUMBER", "0"),
    switch("capture.on", "BACKUP_CAPTURE", "true"),
    value("capture.interval", "BACKUP_INTERVAL", "DURATION", "1s"),
    value("capture.point_in_time", "BACKUP_POINT_IN_TIME", "DURATION", "7d"),
    value("spool.bytes_max", "BACKUP_SPOOL_MAX", "SIZE", "2 GiB"),
    value("spool.age_max", "BACKUP_SPOOL_AGE", "DURATION", "7d"),
    value("restore.on_boot", "BACKUP_RESTORE_ON_BOOT", "WHEN", "if-missing"),
    switch("restore.allow_empty", "BACKUP_ALLOW_EMPTY", "false"),
    value("restore.keep_replaced", "BACKUP_KEEP_REPLACED", "NUMBER", "3"),
    value("restore.handover_wait", "BACKUP_HANDOVER_WAIT", "DURATION", "60s"),
    value("command.user", "BACKUP_COMMAND_USER", "USER[:GROUP]", "app"),
    value("http.addr", "BACKUP_HTTP_ADDR", "ADDRESS", "127.0.0.1:9091"),
    Setting {
        kind: Kind::Secret,
        ..value("http.token", "BACKUP_HTTP_TOKEN", "TOKEN", "$(openssl rand -hex 32)")
    },
    value("http.token_file", "BACKUP_HTTP_TOKEN_FILE", "PATH", "/run/secrets/lifeboat-token"),
    list("http.allowed_hosts", "BACKUP_HTTP_ALLOWED_HOSTS", "HOST", "backups.example.com"),
    value("http.connections_max", "BACKUP_HTTP_CONNECTIONS", "NUMBER", "64"),
    value("retention.keep", "BACKUP_RETENTION", "POLICY", "24h 7d 4w 12m"),
    value("retention.safety_age", "BACKUP_PRUNE_SAFETY_AGE", "DURATION", "1h"),
    value("retention.prune_schedule", "BACKUP_PRUNE_SCHEDULE", "CRON", "17 3 * * *"),
    value("verify.schedule", "BACKUP_VERIFY_SCHEDULE", "CRON", "41 4 * * *"),
    value("verify.within", "BACKUP_VERIFY_WITHIN", "DURATION", "30d"),
    value("verify.sql", "BACKUP_VERIFY_SQL", "SELECT", "SELECT count(*) > 0 FROM users"),
    value("verify.check_deadline", "BACKUP_CHECK_DEADLINE", "DURATION", "1h"),
    value("verify.max_age", "BACKUP_MAX_AGE", "DURATION", "15m"),
    value("log.format", "BACKUP_LOG_FORMAT", "FORMAT", "json"),
    value("log.level", "BACKUP_LOG", "FILTER", "info"),
];

const fn value(
    key: &'static str,
    env: &'static str,
    placeholder: &'static str,
    example: &'static str,
) -> Setting {
    Setting { key, env, fallbacks: &[], kind: Kind::Value, placeholder, example }
}

const fn switch(key: &'static str, env: &'static str, example: &'static str) -> Setting {
    Setting { kind: Kind::Switch, ..value(key, env, "true|false", example) }
}

const fn list(
    key: &'static str,
    env: &'static str,
    placeholder: &'static str,
    example: &'static str,
) -> Setting {
    Setting { kind: Kind::List, ..value(key, env, placeholder, example) }
}

impl Setting {
    const fn or(self, fallbacks: &'static [&'static str]) -> Setting {
        Setting { fallbacks, ..self }
    }
}

/// Below this likeness (0 to 1) a hint would mislead more than it helps.
const LIKENESS_MIN: f64 = 0.6;

/// The candidate that `text` was most likely meant to be.
pub(super) fn nearest(text: &str, candidates: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let last = |key: &str| key.rsplit('.').next().map(str::to_owned);
    candidates
        .map(|candidate| {
            // The right name in the wrong section is as good as a match.
            let same_name = last(candidate) == last(text);
            let likeness = strsim::normalized_damerau_levenshtein(candidate, text);
            (if same_name { 1.0 } else { likeness }, candidate)
        })
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn keys_variables_and_flags_are_distinct() {
        let keys: HashSet<_> = SETTINGS.iter().map(|setting| setting.key).collect();
        let flags: HashSet<_> = SETTINGS.iter().filter_map(Setting::flag).collect();
        let variables: Vec<_> =
            SETTINGS.iter().flat_map(|setting| setting.fallbacks.iter().chain([&setting.env])).collect();
        let distinct: HashSet<_> = variables.iter().collect();
        assert_eq!(keys.len(), SETTINGS.len());
        assert_eq!(flags.len(), SETTINGS.len() - 1, "every setting but the token has a flag");
        assert_eq!(distinct.len(), variables.len());
    }

    #[test]
    fn the_default_file_documents_every_key_and_variable_in_the_order_of_the_table() {
        let file: toml::Table = super::super::DEFAULT_FILE.parse().expect("default.toml");
        for (section, table) in &file {
            for name in table.as_table().expect("a section").keys() {
                let key = format!("{section}.{name}");
                assert!(Setting::of(&key).is_some(), "{key} is not in the table");
            }
        }
        let mut position = 0;
        for setting in SETTINGS {
            let (section, name) = setting.key.split_once('.').expect("section.name");
            assert!(file[section].get(name).is_some(), "{} is not in default.toml", setting.key);
            let documentation = setting.documentation();
            assert!(documentation.len() > 20, "{} has no comment", setting.key);
            for variable in setting.fallbacks.iter().chain([&setting.env]) {
                assert!(documentation.contains(variable), "{} does not name {variable}", setting.key);
            }
            let header = super::super::DEFAULT_FILE.find(&format!("\n[{section}]\n")).expect("section");
            let line = super::super::DEFAULT_FILE[header..].find(&format!("\n{name} = ")).expect("key");
            assert!(header + line > position, "{} is out of order", setting.key);
            position = header + line;
        }
    }

    #[test]
    fn a_flag_is_the_variable_without_its_prefix() {
        let flag = |key| Setting::of(key).and_then(Setting::flag);
        assert_eq!(flag("databases.paths").as_deref(), Some("database"));
        assert_eq!(flag("storage.bucket").as_deref(), Some("s3-bucket"));
        assert_eq!(flag("aws.role_arn").as_deref(), Some("aws-role-arn"));
        assert_eq!(flag("restore.allow_empty").as_deref(), Some("allow-empty"));
        assert_eq!(flag("http.token"), None);
    }

    #[test]
    fn the_nearest_name_is_hinted_at_and_a_far_one_is_not() {
        let near = |text| nearest(text, SETTINGS.iter().map(|setting| setting.key));
        assert_eq!(near("storage.buket"), Some("storage.bucket"));
        assert_eq!(near("s3.bucket"), Some("storage.bucket"));
        assert_eq!(near("bucket"), Some("storage.bucket"));
        assert_eq!(near("http.adress"), Some("http.addr"));
        assert_eq!(near("completely.unrelated_thing"), None);
    }
}
