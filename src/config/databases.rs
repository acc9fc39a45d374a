//! Which databases there are: configured paths and patterns, and the files they stand for.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use serde::Serialize;

use super::database_url;
use super::value::Parsed;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::snapshot::DatabaseName;

/// Bounds what one pattern can make a machine do: each database has its own worker.
const DATABASES_MAX: usize = 10_000;

/// Files that SQLite keeps beside a database; a pattern never means them.
const COMPANION_SUFFIXES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// One entry of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabasePattern {
    /// The name that was given with it.
    pub name: Option<DatabaseName>,
    /// Absolute.
    pub path: PathBuf,
    /// Whether it stands for every file that matches: a `*` in its last part is any characters.
    pub is_glob: bool,
}

/// One database: its name in storage and its file, which need not exist yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatabaseFile {
    /// The name in storage.
    pub name: DatabaseName,
    /// The absolute path of its file; a symbolic link is not followed.
    pub path: PathBuf,
}

/// The databases as configured; none at all is an error only where one is needed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DatabasePatterns {
    /// The entries, in the order they were given.
    pub patterns: Vec<DatabasePattern>,
    /// Variables of the application that name a database which is no SQLite file, and why.
    pub skipped: Vec<String>,
}

impl DatabasePattern {
    /// Reads `path`, `URL` or `name=path`.
    pub(super) fn parse(text: &str, current_directory: &Path) -> Parsed<Self> {
        // A name has none of these characters, a path or URL with a `=` that is not ours does.
        let named = text.split_once('=').filter(|(name, _)| !name.contains(['/', ':', '?', '%']));
        let (name, path) = match named {
            Some((name, path)) => (Some(name.parse::<DatabaseName>().map_err(|e| e.to_string())?), path),
            None => (None, text),
        };
        let literal = DatabasePattern::of_application(path, current_directory)?;
        let has_star = |part: Option<&OsStr>| part.is_some_and(|part| part.to_string_lossy().contains('*'));
        if has_star(literal.path.parent().map(Path::as_os_str)) {
            return Err("a * stands only in the last part of a path".into());
        }
        let is_glob = has_star(literal.path.file_name());
        if is_glob && name.is_some() {
            return Err("a pattern stands for several databases and takes no name".into());
        }
        Ok(DatabasePattern { name, is_glob, ..literal })
    }

    /// Reads a variable of the application: one path or URL, taken literally.
    pub(super) fn of_application(text: &str, current_directory: &Path) -> Parsed<Self> {
        let path = database_url::parse(text, current_directory).map_err(|error| error.to_string())?;
        Ok(DatabasePattern { name: None, path, is_glob: false })
    }

    fn literal(&self) -> Result<DatabaseFile> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => name_of(&self.path)?,
        };
        Ok(DatabaseFile { name, path: self.path.clone() })
    }

    /// The regular files (or links to such) that match, in order of path.
    fn matches(&self) -> Result<Vec<DatabaseFile>> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let wanted = self.path.file_name().unwrap_or_default();
        let matcher = matcher_of(wanted)?;
        let failed = || format!("list the databases: path=`{}`", folder.display());
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            // As on a new volume.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context(ErrorKind::Source, failed),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.context(ErrorKind::Source, failed)?;
            let path = entry.path();
            if is_candidate(&entry.file_name(), wanted)
                && matcher.is_match(entry.file_name())
                && path.is_file()
            {
                files.push(DatabaseFile { name: name_of(&path)?, path });
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }
}

impl DatabasePatterns {
    /// The databases there are now: every literal path, and the files that match a pattern.
    ///
    /// `Config` if nothing is configured, or two files would have one name; `Source` if nothing
    /// matches.
    pub fn expand(&self) -> Result<Vec<DatabaseFile>> {
        if self.patterns.is_empty() {
            let mut message =
                "find a database: none is configured; set BACKUP_DATABASE to its path".to_owned();
            for reason in &self.skipped {
                message.push_str("; ");
                message.push_str(reason);
            }
            return Err(Error::new(ErrorKind::Config, message));
        }
        let mut files = self.literals()?;
        for pattern in self.patterns.iter().filter(|pattern| pattern.is_glob) {
            for file in pattern.matches()? {
                // What was also given by its path keeps the name it was given.
                if !files.iter().any(|known| known.path == file.path) {
                    files.push(file);
                }
            }
        }
        if files.is_empty() {
            let paths: Vec<String> = self.patterns.iter().map(|p| p.path.display().to_string()).collect();
            let message = format!("find a database: no file matches pattern=`{}`", paths.join(","));
            return Err(Error::new(ErrorKind::Source, message));
        }
        distinct(files)
    }

    /// The databases that are given by their path; `Config` if two of them clash.
    pub(super) fn literals(&self) -> Result<Vec<DatabaseFile>> {
        let literals = self.patterns.iter().filter(|pattern| !pattern.is_glob);
        distinct(literals.map(DatabasePattern::literal).collect::<Result<_>>()?)
    }
}

/// Refuses two files under one name, one file under two names, and too many.
fn distinct(files: Vec<DatabaseFile>) -> Result<Vec<DatabaseFile>> {
    let refuse = |message: String| Err(Error::new(ErrorKind::Config, message));
    if files.len() > DATABASES_MAX {
        return refuse(format!("tell databases apart: there are {}, at most {DATABASES_MAX}", files.len()));
    }
    let mut by_name: BTreeMap<&DatabaseName, &Path> = BTreeMap::new();
    let mut by_path: BTreeMap<&Path, &DatabaseName> = BTreeMap::new();
    for DatabaseFile { name, path } in &files {
        if let Some(other) = by_path.insert(path, name) {
            return refuse(format!(
                "tell databases apart: one file is given twice: path=`{}` name=`{other}` name=`{name}`",
                path.display()
            ));
        }
        if let Some(other) = by_name.insert(name, path) {
            return refuse(format!(
                "tell databases apart: two have one name, give one of them as `another-name=path`: \
                 name=`{name}` path=`{}` path=`{}`",
                other.display(),
                path.display()
            ));
        }
    }
    Ok(files)
}

/// The name a file gets: its stem in lower case, with `-` for every character a name cannot have.
fn name_of(path: &Path) -> Result<DatabaseName> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let name: String = stem.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    name.trim_start_matches('.').parse().context(ErrorKind::Config, || {
        format!("name a database after its file, give it as `name=path`: path=`{}`", path.display())
    })
}

fn matcher_of(wanted: &OsStr) -> Result<GlobMatcher> {
    let wanted = wanted.to_string_lossy();
    // Every character but `*` stands for itself: `[id].db` is a file's name.
    let glob = wanted.split('*').map(globset::escape).collect::<Vec<_>>().join("*");
    let glob = GlobBuilder::new(&glob).literal_separator(true).build();
    Ok(glob.context(ErrorKind::Config, || format!("read pattern=`{wanted}`"))?.compile_matcher())
}

fn is_candidate(file_name: &OsStr, wanted: &OsStr) -> bool {
    let name = file_name.to_string_lossy();
    let is_hidden = name.starts_with('.') && !wanted.to_string_lossy().starts_with('.');
    !is_hidden && !COMPANION_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str], folder: &Path) -> DatabasePatterns {
        let parse = |text: &&str| DatabasePattern::parse(text, folder).expect("a pattern");
        DatabasePatterns { patterns: texts.iter().map(parse).collect(), skipped: Vec::new() }
    }

    fn expanded(texts: &[&str], folder: &Path) -> Result<Vec<String>> {
        let files = patterns(texts, folder).expand()?;
        let show = |file: DatabaseFile| {
            let path = file.path.strip_prefix(folder).map_or(file.path.clone(), Path::to_owned);
            format!("{}={}", file.name, path.display())
        };
        Ok(files.into_iter().map(show).collect())
    }

    #[test]
    fn a_name_comes_from_the_stem_unless_it_is_given() {
        let root = Path::new("/data");
        for (text, shown) in [
            ("app.db", "app=app.db"),
            ("production_cache.sqlite3", "production_cache=production_cache.sqlite3"),
            ("My App (1).db", "my-app--1-=My App (1).db"),
            (".hidden.db", "hidden=.hidden.db"),
            ("Übung.db", "-bung=Übung.db"),
            ("main=app.db", "main=app.db"),
            ("main=sqlite:///data/a%20b.db", "main=a b.db"),
            ("file:app.db?mode=ro", "app=app.db"),
            ("./a=b.db", "a-b=a=b.db"),
        ] {
            assert_eq!(expanded(&[text], root).expect(text), [shown]);
        }
    }

    #[test]
    fn what_no_entry_may_be() {
        for (text, reason) in [
            ("Main=app.db", "a database name is"),
            ("=app.db", "a database name is"),
            ("main=*.db", "takes no name"),
            ("*/app.db", "last part"),
            ("main=postgres://h/x", "not SQLite"),
        ] {
            let error = DatabasePattern::parse(text, Path::new("/data")).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn clashes_are_refused_naming_both() {
        for (texts, parts) in [
            (["/a/app.db", "/b/app.sqlite"], ["`/a/app.db`", "`/b/app.sqlite`"]),
            (["one=/a/app.db", "two=/a/app.db"], ["`one`", "`two`"]),
            (["/a/app.db", "/a/app.db"], ["`/a/app.db`", "given twice"]),
        ] {
            let error = expanded(&texts, Path::new("/")).expect_err("a clash");
            assert_eq!(error.kind(), ErrorKind::Config);
            for part in parts {
                assert!(error.chain().contains(part), "{part}: {error}");
            }
        }
    }

    #[test]
    fn a_pattern_stands_for_the_database_files_that_are_there() {
        let folder = tempfile::tempdir().expect("folder");
        for name in ["a.db", "b.db", "b.db-wal", "b.db-shm", "c.sqlite", ".d.db", "[id].db"] {
            fs::write(folder.path().join(name), "").expect("file");
        }
        fs::create_dir(folder.path().join("e.db")).expect("folder");
        std::os::unix::fs::symlink("a.db", folder.path().join("link.db")).expect("link");
        let check = |texts: &[&str], shown: &[&str]| {
            assert_eq!(expanded(texts, folder.path()).expect("databases"), shown, "{texts:?}");
        };
        check(&["*.db"], &["-id-=[id].db", "a=a.db", "b=b.db", "link=link.db"]);
        check(&["*", "main=b.db"], &["main=b.db", "-id-=[id].db", "a=a.db", "c=c.sqlite", "link=link.db"]);
        check(&[".*.db"], &["d=.d.db"]);
        check(&["[id]*"], &["-id-=[id].db"]);
        check(&["nothing*", "later.db"], &["later=later.db"]);
        check(&["absent/*.db", "a.db"], &["a=a.db"]);
        let error = expanded(&["absent/*.db"], folder.path()).expect_err("no match");
        assert_eq!(error.kind(), ErrorKind::Source);
    }

    #[test]
    fn no_database_at_all_says_what_was_skipped() {
        let none =
            DatabasePatterns { patterns: Vec::new(), skipped: vec!["DATABASE_URL: not SQLite".into()] };
        let error = none.expand().expect_err("none");
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(
            error.chain().contains("BACKUP_DATABASE") && error.chain().contains("DATABASE_URL"),
            "{error}"
        );
    }
}
