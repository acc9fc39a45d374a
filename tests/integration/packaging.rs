//! The files around the program against the program: documents, container, platform, dependencies.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lifeboat::config::SETTINGS;
use toml::{Table, Value};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn table(file: &str) -> Table {
    text(file).parse().unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The documents people read.
const DOCUMENTS: [&str; 5] =
    ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/FORMAT.md", "deploy/README.md"];

/// Every word of a text that looks like an environment variable of ours or of AWS.
fn variables(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .filter(|word| ["BACKUP_", "AWS_"].iter().any(|prefix| word.starts_with(prefix)))
        .collect()
}

/// Variables that AWS's own library reads, and a secret of the workflows under `deploy/github`.
const OF_OTHERS: [&str; 5] =
    ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ACCOUNT_ID", "AWS_ENDPOINT_URL"];

fn is_read(variable: &str) -> bool {
    OF_OTHERS.contains(&variable) || is_setting(variable)
}

fn is_setting(variable: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.env == variable || setting.fallbacks.contains(&variable))
}

#[test]
fn every_variable_that_is_written_about_exists() {
    let files = DOCUMENTS.iter().chain(&["fly.toml", "Dockerfile", "deploy/examples/Dockerfile.app"]);
    for file in files {
        for variable in variables(&text(file)) {
            assert!(is_read(variable), "{file} speaks of {variable}");
        }
    }
}

/// A row of the table of errors is found by what the program prints, so every one must be printed.
#[test]
fn every_error_that_the_runbook_explains_is_one_of_ours() {
    let mut sources = Vec::new();
    gather(&root().join("src"), &mut sources);
    // A text that continues on the next line, as one line.
    let said: Vec<String> = sources
        .iter()
        .map(|source| source.split("\\\n").map(str::trim_start).collect::<Vec<_>>().concat())
        .collect();
    let runbook = text("deploy/README.md");
    let table = runbook.split("| it says |").nth(1).expect("the table of errors");
    let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with("| `")).collect();
    for row in &rows {
        let quoted = row.split('`').nth(1).expect("quoted");
        assert!(said.iter().any(|source| source.contains(quoted)), "nothing says `{quoted}`");
    }
    assert!(rows.len() >= 20, "the table has {} rows", rows.len());
}

fn gather(folder: &Path, sources: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder of ours") {
        let path = entry.expect("an entry of ours").path();
        match path.is_dir() {
            true => gather(&path, sources),
            false => sources.push(fs::read_to_string(&path).expect("UTF-8")),
        }
    }
}

#[test]
fn the_readme_names_every_setting() {
    let readme = text("README.md");
    let named = variables(&readme);
    for setting in SETTINGS {
        assert!(named.contains(setting.env), "README.md does not name {}", setting.env);
    }
}

#[test]
fn the_defaults_in_the_readme_are_the_defaults() {
    let defaults = table("config/default.toml");
    let readme = text("README.md");
    let shown = |variable: &str| {
        let setting = SETTINGS.iter().find(|setting| setting.env == variable).expect("a setting");
        let (section, name) = setting.key.split_once('.').expect("section.name");
        match &defaults[section][name] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    };
    let mut rows = 0;
    for row in readme.lines().filter(|line| line.starts_with("| `BACKUP_")) {
        let columns: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [names, _, default] = columns[..] else { panic!("three columns: {row}") };
        let names: Vec<&str> = names.split('`').skip(1).step_by(2).collect();
        let values: Vec<&str> = default.split('`').skip(1).step_by(2).collect();
        for (name, value) in names.iter().zip(values) {
            assert_eq!(shown(name), value, "{name}");
            rows += 1;
        }
    }
    assert!(rows >= 9, "the table of settings has {rows} defaults");
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    for document in DOCUMENTS {
        let text = text(document);
        let folder = root().join(document).parent().expect("a folder").to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if !link.contains("://") {
                assert!(folder.join(link).exists(), "{document} links to {link}");
            }
        }
    }
}

#[test]
fn fly_toml_and_the_program_agree() {
    let fly = table("fly.toml");
    let seconds = |value: &Value| {
        let text = value.as_str().expect("a duration");
        text.strip_suffix('s').and_then(|digits| digits.parse::<u64>().ok()).expect("seconds")
    };
    let env = fly["env"].as_table().expect("a table");
    let port = i64::from(
        env["BACKUP_HTTP_ADDR"]
            .as_str()
            .expect("text")
            .parse::<std::net::SocketAddr>()
            .expect("an address")
            .port(),
    );
    assert!(
        env["BACKUP_HTTP_ADDR"].as_str().expect("text").starts_with("0.0.0.0:"),
        "checks come from outside"
    );
    assert_eq!(fly["checks"]["backup"]["port"].as_integer(), Some(port));
    assert_eq!(fly["metrics"]["port"].as_integer(), Some(port));
    assert_ne!(fly["http_service"]["internal_port"].as_integer(), Some(port), "the internet stays out");
    assert!(seconds(&fly["kill_timeout"]) > seconds(&env["BACKUP_SHUTDOWN_DEADLINE"]));
    assert!(seconds(&fly["kill_timeout"]) <= 300, "what fly.io allows");
    let volume = fly["mounts"][0]["destination"].as_str().expect("a path");
    for variable in ["BACKUP_DIR", "DATABASE_URL"] {
        let path = env[variable].as_str().expect("text").trim_start_matches("sqlite://");
        assert!(Path::new(path).starts_with(volume), "{variable} is on the volume");
    }
    let image = text("deploy/examples/Dockerfile.app");
    assert!(image.contains("BACKUP_DATABASE=/data/app.db"));
    let user = env["BACKUP_COMMAND_USER"].as_str().expect("text");
    assert!(image.contains(&format!("useradd --system {user}\n")), "the image has the command's user");
    assert!(!image.contains("\nUSER"), "the machine socket is for root");
}

#[test]
fn the_container_files_use_exec_form_and_name_what_exists() {
    for file in ["Dockerfile", "deploy/examples/Dockerfile.app"] {
        for line in text(file).lines() {
            let words = line.split_once("CMD ").or_else(|| line.split_once("ENTRYPOINT "));
            if let (Some((_, command)), false) = (words, line.starts_with('#')) {
                let command: Vec<String> =
                    serde_json::from_str(command).unwrap_or_else(|error| panic!("{file}: {line}: {error}"));
                assert!(!command.is_empty());
            }
        }
    }
    let ignored = text(".dockerignore");
    for line in text("Dockerfile").lines().filter_map(|line| line.strip_prefix("COPY ")) {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        words.pop();
        for word in words.iter().filter(|word| !word.starts_with("--from") && !word.starts_with('/')) {
            assert!(root().join(word).exists(), "Dockerfile copies {word}");
            assert!(ignored.contains(&format!("!{word}\n")), ".dockerignore keeps {word} out");
        }
    }
    let version = table("Cargo.toml")["package"]["rust-version"].as_str().expect("text").to_owned();
    assert!(text("Dockerfile").contains(&format!("FROM rust:{version}-")), "the toolchain of Cargo.toml");
}

/// `cargo deny` says the same and more; this much is looked at wherever tests run.
#[test]
fn the_dependencies_are_of_one_source_and_none_is_banned() {
    let lock = table("Cargo.lock");
    let packages = lock["package"].as_array().expect("packages");
    let sources: BTreeSet<&str> =
        packages.iter().filter_map(|package| package.get("source")?.as_str()).collect();
    assert_eq!(sources.len(), 1, "{sources:?}");
    assert!(sources.iter().all(|source| source.starts_with("registry+")), "{sources:?}");

    let policy = table("deny.toml");
    let banned = policy["bans"]["deny"].as_array().expect("bans");
    assert!(banned.len() >= 5);
    for ban in banned {
        let (name, below) = match ban["crate"].as_str().expect("text").split_once(":<") {
            Some((name, below)) => (name, Some(numbers(below))),
            None => (ban["crate"].as_str().expect("text"), None),
        };
        assert!(ban["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{name} has a reason");
        for package in packages.iter().filter(|package| package["name"].as_str() == Some(name)) {
            let version = numbers(package["version"].as_str().expect("text"));
            assert!(below.as_ref().is_some_and(|below| version >= *below), "{name} is banned");
        }
    }
}

fn numbers(version: &str) -> Vec<u64> {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    core.split('.').map(|part| part.parse().expect("a number")).collect()
}

#[test]
fn every_ban_of_the_linter_has_a_reason() {
    let clippy = table("clippy.toml");
    let bans: Vec<&Value> =
        clippy.values().filter_map(Value::as_array).flatten().filter(|ban| ban.is_table()).collect();
    assert!(!bans.is_empty());
    for ban in bans {
        assert!(ban.get("reason").and_then(Value::as_str).is_some_and(|reason| reason.len() > 10), "{ban}");
    }
}

#[test]
fn the_routes_of_the_readme_are_those_of_the_contract() {
    // The contract itself is held against the program by the test that keeps this snapshot.
    let snapshot = text("tests/integration/snapshots/integration__http__the_contract_is_what_is_served.snap");
    let contract = snapshot.splitn(3, "---\n").nth(2).expect("a document behind its head");
    let contract: serde_json::Value = serde_json::from_str(contract).expect("JSON");
    let served: BTreeSet<String> = contract["paths"].as_object().expect("paths").keys().cloned().collect();
    let readme = text("README.md");
    let rows = readme.lines().filter(|line| line.starts_with("| `GET") || line.starts_with("| `POST"));
    let shown: BTreeSet<String> = rows
        .filter_map(|row| row.split(" | ").next())
        .flat_map(|routes| routes.split('`').skip(1).step_by(2))
        .filter_map(|route| route.split(' ').nth(1))
        .map(str::to_owned)
        .collect();
    assert_eq!(shown, served);
}

#[test]
fn the_commands_of_the_readme_exist_and_every_command_is_there() {
    let help =
        std::process::Command::new(env!("CARGO_BIN_EXE_lifeboat")).arg("--help").output().expect("runs");
    let help = String::from_utf8(help.stdout).expect("text");
    let listed: BTreeSet<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        // What is indented further goes on with the line before.
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    let readme = text("README.md");
    let shown: BTreeSet<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `lifeboat "))
        .filter_map(|line| line.split([' ', '`']).next())
        .collect();
    assert_eq!(shown, listed);
}
