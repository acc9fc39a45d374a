//! The layers of configuration, merged: for every key the text that counts, and who said it.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Serialize;

use super::environment::{CONFIG_VARIABLE, OWN_PREFIX};
use super::setting::{Kind, SETTINGS, Setting, nearest};
use super::value::Parsed;
use super::{DEFAULT_FILE, Environment, Sources, database_url};
use crate::error::{Context, Error, ErrorKind, Result};

/// The one setting whose fallbacks may be about something else.
pub(super) const DATABASES: &str = "databases.paths";

/// The largest file that is read as configuration, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Who said a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "name", rename_all = "kebab-case")]
pub enum Origin {
    /// `config/default.toml`.
    Default,
    /// Nobody; it follows from other settings.
    Derived,
    /// A configuration file.
    File(String),
    /// An environment variable.
    Environment(String),
    /// A flag, with its dashes.
    Flag(String),
}

impl Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Derived => f.write_str("derived"),
            Origin::File(path) => write!(f, "file {path}"),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// The text of one setting: no item (not set), one, or for a list several.
pub(super) struct Value {
    pub(super) items: Vec<String>,
    pub(super) origin: Origin,
}

/// The text of every setting of the table. Not `Debug`: one of them is a secret.
pub(super) struct Values {
    by_key: BTreeMap<&'static str, Value>,
    /// Variables of the application that name a database which is no SQLite file, and why.
    pub(super) skipped: Vec<String>,
}

impl Values {
    /// Defaults, the application's own variables, the file, our variables, flags: the last one wins.
    pub(super) fn layered(sources: &Sources) -> Result<Self> {
        let environment = &sources.environment;
        refuse_unknown_variables(environment)?;
        let mut values = Values { by_key: BTreeMap::new(), skipped: Vec::new() };
        values.add_file(DEFAULT_FILE, &Origin::Default)?;
        values.add_fallbacks(environment, &sources.current_directory);
        let named = || environment.get(CONFIG_VARIABLE).map(Path::new);
        if let Some(path) = sources.file.as_deref().or_else(named) {
            let text = read_file(path)?;
            values.add_file(&text, &Origin::File(path.display().to_string()))?;
        }
        for setting in SETTINGS {
            if let Some(text) = environment.get(setting.env) {
                values.add(setting, split(setting, text), Origin::Environment(setting.env.to_owned()));
            }
        }
        for (key, text) in &sources.flags {
            let setting = Setting::of(key).ok_or_else(|| unknown_key(key, "a flag"))?;
            let flag = setting.flag().ok_or_else(|| unknown_key(key, "a flag"))?;
            values.add(setting, split(setting, text), Origin::Flag(format!("--{flag}")));
        }
        Ok(values)
    }

    fn add_file(&mut self, text: &str, origin: &Origin) -> Result<()> {
        let file = parse_file(text, origin)?;
        for (section, content) in file {
            let toml::Value::Table(content) = content else {
                return Err(unknown_key(&section, &origin.to_string()));
            };
            for (name, content) in content {
                let key = format!("{section}.{name}");
                let setting = Setting::of(&key).ok_or_else(|| unknown_key(&key, &origin.to_string()))?;
                let items = items_of(setting, content).ok_or_else(|| wrong_type(setting, origin))?;
                self.add(setting, items, origin.clone());
            }
        }
        Ok(())
    }

    /// The first variable of each setting that means something to us, its text taken as it is.
    fn add_fallbacks(&mut self, environment: &Environment, current_directory: &Path) {
        for setting in SETTINGS {
            for name in setting.fallbacks {
                let Some(text) = environment.get(name) else { continue };
                // A framework may keep its main database elsewhere and name a SQLite file further on.
                if setting.key == DATABASES
                    && let Err(reason) = database_url::parse(text, current_directory)
                {
                    self.skipped.push(format!("{name} was skipped: {reason}"));
                    continue;
                }
                self.add(setting, vec![text.to_owned()], Origin::Environment((*name).to_owned()));
                break;
            }
        }
    }

    fn add(&mut self, setting: &'static Setting, items: Vec<String>, origin: Origin) {
        self.by_key.insert(setting.key, Value { items, origin });
    }

    /// The value of a key of the table.
    pub(super) fn get(&self, key: &str) -> &Value {
        self.by_key.get(key).expect("the default file has every key of the table")
    }

    /// The text of a setting that may be absent.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).items.first().map(String::as_str)
    }

    /// Whether the value of `key` was taken from a variable that is the application's.
    pub(super) fn is_of_application(&self, key: &str) -> bool {
        let setting = setting_of(key);
        matches!(&self.get(key).origin, Origin::Environment(name) if setting.fallbacks.contains(&name.as_str()))
    }

    /// Every item of a list.
    pub(super) fn list<T>(&self, key: &str, parse: impl Fn(&str) -> Parsed<T>) -> Result<Vec<T>> {
        let items = self.get(key).items.iter();
        items.map(|item| parse(item).map_err(|reason| self.refuse_text(key, item, &reason))).collect()
    }

    /// A setting that may be absent.
    pub(super) fn optional<T>(&self, key: &str, parse: impl FnOnce(&str) -> Parsed<T>) -> Result<Option<T>> {
        let parsed = self.text(key).map(parse).transpose();
        parsed.map_err(|reason| self.refuse(key, &reason))
    }

    /// A setting that must have a value.
    pub(super) fn required<T>(&self, key: &str, parse: impl FnOnce(&str) -> Parsed<T>) -> Result<T> {
        self.optional(key, parse)?.ok_or_else(|| self.refuse(key, "it must have a value"))
    }

    /// Why the value of `key` cannot be: with key, value, origin, reason and example.
    pub(super) fn refuse(&self, key: &str, reason: &str) -> Error {
        self.refuse_text(key, self.text(key).unwrap_or_default(), reason)
    }

    fn refuse_text(&self, key: &str, text: &str, reason: &str) -> Error {
        let origin = &self.get(key).origin;
        let setting = setting_of(key);
        let example = setting.example;
        let text = shown(setting, text);
        Error::new(
            ErrorKind::Config,
            format!("accept {key}=`{text}` from {origin}: {reason}; for example `{example}`"),
        )
    }
}

/// The text as it may be printed: no secret, no password of a URL, no control character.
pub(super) fn shown(setting: &Setting, text: &str) -> String {
    if setting.kind == Kind::Secret && !text.is_empty() {
        return "(redacted)".to_owned();
    }
    let masked = match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://…{}", &text[..scheme], &text[at..]),
        _ => text.to_owned(),
    };
    masked.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn setting_of(key: &str) -> &'static Setting {
    Setting::of(key).expect("a key of the table")
}

fn split(setting: &Setting, text: &str) -> Vec<String> {
    let parts: Vec<&str> = if setting.kind == Kind::List { text.split(',').collect() } else { vec![text] };
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// The text of a TOML value; `None` if the setting cannot have a value of this type.
fn items_of(setting: &Setting, value: toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(text) => Some(split(setting, &text)),
        toml::Value::Integer(number) => Some(vec![number.to_string()]),
        toml::Value::Boolean(switch) => Some(vec![switch.to_string()]),
        toml::Value::Array(items) if setting.kind == Kind::List => {
            items.into_iter().map(|item| item.as_str().map(str::to_owned)).collect()
        }
        _ => None,
    }
}

fn wrong_type(setting: &Setting, origin: &Origin) -> Error {
    let expected = if setting.kind == Kind::List { "an array of texts" } else { "a text, number or boolean" };
    Error::new(
        ErrorKind::Config,
        format!("accept {} from {origin}: it is {expected}; for example `{}`", setting.key, setting.example),
    )
}

fn unknown_key(key: &str, origin: &str) -> Error {
    let hint = match nearest(key, SETTINGS.iter().map(|setting| setting.key)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`lifeboat config` lists every key".to_owned(),
    };
    Error::new(ErrorKind::Config, format!("accept {origin}: unknown key=`{}`; {hint}", key.escape_debug()))
}

fn refuse_unknown_variables(environment: &Environment) -> Result<()> {
    let is_known = |name: &str| SETTINGS.iter().any(|setting| setting.env == name);
    let Some(unknown) = environment.names().find(|name| name.starts_with(OWN_PREFIX) && !is_known(name))
    else {
        return Ok(());
    };
    let own = SETTINGS.iter().map(|setting| setting.env).filter(|env| env.starts_with(OWN_PREFIX));
    let hint = match nearest(unknown, own) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`lifeboat config` lists every variable".to_owned(),
    };
    Err(Error::new(
        ErrorKind::Config,
        format!("accept the environment: unknown variable=`{}`; {hint}", unknown.escape_debug()),
    ))
}

/// A file of at most [`FILE_BYTES_MAX`], as text.
pub(super) fn read_file(path: &Path) -> Result<String> {
    let failed = || format!("read the file: path=`{}`", path.display());
    let mut text = String::new();
    let file = File::open(path).context(ErrorKind::Config, failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).context(ErrorKind::Config, failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::Config,
            format!("read the file: it has more than {FILE_BYTES_MAX} bytes: path=`{}`", path.display()),
        ));
    }
    Ok(text)
}

/// The error tells the line only: the parser's own text would quote it, and it may hold a secret.
fn parse_file(text: &str, origin: &Origin) -> Result<toml::Table> {
    text.parse().map_err(|error: toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(start).filter(|b| *b == b'\n').count() + 1;
        Error::new(ErrorKind::Config, format!("accept {origin}: it is not TOML: line=`{line}`"))
    })
}
