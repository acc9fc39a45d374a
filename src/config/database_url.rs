//! The ways frameworks write where a SQLite database is, read as one absolute path.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

/// Why a text names no database file. Never shows more of a URL than its scheme or host: the rest
/// may be a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum DatabaseUrlError {
    /// Another kind of database.
    #[error("it is not SQLite: scheme=`{0}`; a SQLite URL begins with sqlite:, sqlite3: or file:")]
    Foreign(String),
    /// Nearly a URL, so that what follows may be a password.
    #[error("what stands before :// is no scheme; a path of that kind begins with ./")]
    NoScheme,
    /// A database that is no file.
    #[error("a database in memory has no file to back up")]
    Memory,
    /// A `file:` URL on another host.
    #[error("a file URL names no host: host=`{0}`; write file:///path or file:path")]
    Host(String),
    /// A URL with nothing behind the scheme, or a path with nothing behind the last slash.
    #[error("it names no file")]
    NoFile,
    /// A NUL character, also one written as `%00`.
    #[error("a path has no NUL character")]
    Nul,
}

/// Reads a path or URL; what is relative starts at `current_directory`, which is absolute.
///
/// `sqlite:///x` is absolute, as in Rails, sqlx and Prisma; only `sqlite:///./x`, which SQLAlchemy's
/// users write, is relative. A query is dropped; percent signs are escapes in URLs only.
pub(super) fn parse(text: &str, current_directory: &Path) -> Result<PathBuf, DatabaseUrlError> {
    let (text, query) = text.split_once('?').unwrap_or((text, ""));
    let (scheme, rest) = match scheme_of(text) {
        Some((scheme, rest)) => (scheme.to_lowercase(), rest.split_once('#').map_or(rest, |(path, _)| path)),
        None => (String::new(), text),
    };
    let path = match scheme.as_str() {
        "" if is_nearly_url(text) => return Err(DatabaseUrlError::NoScheme),
        "" => text,
        "sqlite" | "sqlite3" => path_of_sqlite(rest),
        "file" => path_of_file(rest)?,
        _ => return Err(DatabaseUrlError::Foreign(scheme)),
    };
    let in_memory = |pair: &str| matches!(pair, "mode=memory" | "vfs=memdb");
    if path == ":memory:" || query.to_lowercase().split('&').any(in_memory) {
        return Err(DatabaseUrlError::Memory);
    }
    let bytes = if scheme.is_empty() { path.as_bytes().to_vec() } else { percent_decode_str(path).collect() };
    if bytes.contains(&0) {
        return Err(DatabaseUrlError::Nul);
    }
    if bytes.is_empty() || bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
        return Err(DatabaseUrlError::NoFile);
    }
    // By components: `//a/./b` becomes `/a/b`, and a symbolic link stays what it is.
    let path: PathBuf = current_directory.join(OsString::from_vec(bytes)).components().collect();
    if path.file_name().is_none() || path == current_directory {
        return Err(DatabaseUrlError::NoFile);
    }
    Ok(path)
}

fn scheme_of(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(allowed);
    is_scheme.then_some((scheme, rest))
}

fn is_nearly_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| !scheme.contains('/'))
}

fn path_of_sqlite(rest: &str) -> &str {
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path.starts_with("/./") || path.starts_with("/../") { &path[1..] } else { path }
}

fn path_of_file(rest: &str) -> Result<&str, DatabaseUrlError> {
    let Some(behind) = rest.strip_prefix("//") else { return Ok(rest) };
    let (host, path) = behind.split_at(behind.find('/').unwrap_or(behind.len()));
    match host {
        "" | "localhost" => Ok(path),
        _ => {
            let host = host.rsplit('@').next().unwrap_or_default();
            Err(DatabaseUrlError::Host(host.escape_debug().to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<PathBuf, DatabaseUrlError> {
        parse(text, Path::new("/srv"))
    }

    #[test]
    fn accepted_spellings() {
        for (text, path) in [
            ("/data/app.db", "/data/app.db"),
            ("app.db", "/srv/app.db"),
            ("./data/app.db", "/srv/data/app.db"),
            ("../app.db", "/srv/../app.db"),
            ("//data//app.db", "/data/app.db"),
            ("/data/app.db?mode=ro&cache=shared", "/data/app.db"),
            ("/data/100%25#1.db", "/data/100%25#1.db"),
            ("./a:b.db", "/srv/a:b.db"),
            ("file:app.db", "/srv/app.db"),
            ("file:./dev.db", "/srv/dev.db"),
            ("file:/data/app.db", "/data/app.db"),
            ("file:///data/app.db", "/data/app.db"),
            ("file://localhost/data/app.db", "/data/app.db"),
            ("file:///data/my%20app.db?connection_limit=1", "/data/my app.db"),
            ("file:///data/a%23b.db#fragment", "/data/a#b.db"),
            ("sqlite:app.db", "/srv/app.db"),
            ("sqlite:/data/app.db", "/data/app.db"),
            ("sqlite://data/app.db", "/srv/data/app.db"),
            ("sqlite:///data/app.db", "/data/app.db"),
            ("sqlite:////data/app.db", "/data/app.db"),
            ("sqlite:///./app.db", "/srv/app.db"),
            ("sqlite3:///data/production.sqlite3", "/data/production.sqlite3"),
            ("SQLite:///data/app.db", "/data/app.db"),
        ] {
            assert_eq!(read(text), Ok(PathBuf::from(path)), "{text}");
        }
        assert_eq!(
            read("file:///data/%FF.db").map(|path| path.into_os_string().into_vec()),
            Ok(b"/data/\xff.db".to_vec())
        );
    }

    #[test]
    fn refused_spellings() {
        use DatabaseUrlError::{Foreign, Host, Memory, NoFile, NoScheme, Nul};
        for (text, error) in [
            ("", NoFile),
            ("/", NoFile),
            (".", NoFile),
            ("..", NoFile),
            ("/data/", NoFile),
            ("/data/.", NoFile),
            ("?mode=ro", NoFile),
            ("sqlite:", NoFile),
            ("sqlite://", NoFile),
            ("file:///", NoFile),
            (":memory:", Memory),
            ("sqlite::memory:", Memory),
            ("sqlite://:memory:", Memory),
            ("file::memory:?cache=shared", Memory),
            ("file:app?mode=memory&cache=shared", Memory),
            ("/data/a\0b.db", Nul),
            ("file:///data/a%00b.db", Nul),
            ("file://data/app.db", Host("data".into())),
            ("file://user:secret@host/app.db", Host("host".into())),
            ("postgres://user:secret@host/app", Foreign("postgres".into())),
            ("mysql:app", Foreign("mysql".into())),
            ("libsql://host", Foreign("libsql".into())),
            ("my_sql://user:secret@host/app", NoScheme),
            (" postgres://user:secret@host/app", NoScheme),
            ("://app.db", NoScheme),
        ] {
            assert_eq!(read(text), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_an_absolute_file(
            text in "((sqlite3?|file|[a-z+]{1,5}):/{0,4})?[a-z./%#?=:*\0 é0-9]{0,24}"
        ) {
            if let Ok(path) = read(&text) {
                prop_assert!(path.is_absolute() && path.file_name().is_some());
            }
        }

        #[test]
        fn any_unicode_does_not_panic(text in any::<String>()) {
            let _ = read(&text);
        }
    }
}
