//! The architecture, executable: who may import whom, who may name which crate, and the rules every
//! file keeps. A wrong table is corrected here with a reason; a wrong import is corrected there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use lifeboat::crash::Point;

/// Every module and its floor. A module imports only from its own floor and from those below, and
/// never in a circle.
const FLOORS: [(usize, &[&str]); 6] = [
    // argv → one call → exit code
    (5, &["main", "cli"]),
    // who may ask for work, and when to stop; `setup` is the composition root
    (4, &["daemon", "demo", "http", "schedule", "setup", "supervise", "telemetry"]),
    // what can be done
    (
        3,
        &["adopt", "backup", "capture", "descent", "doctor", "prune", "restore", "spool", "verify", "worker"],
    ),
    // all I/O is here
    (2, &["account", "ask", "catalog", "credentials", "disk", "lanes", "source", "storage"]),
    // pure: no files, no network, no clock
    (1, &["delta", "lineage", "retention", "snapshot"]),
    // ground
    (0, &["clock", "config", "crash", "descriptors", "error", "memory", "metrics", "random"]),
];

/// Imports from a higher floor that are right nevertheless: importer, imported, why.
const EXCEPTIONS: [(&str, &str, &str); 2] = [
    ("config", "snapshot", "a name of a database and a zstd level are checked where they are defined"),
    ("metrics", "snapshot", "numbers are taken from manifests and proofs, which are plain values"),
];

/// Crates that are named in few places: the crate, the places, why.
const CRATES: [(&str, &[&str], &str); 23] = [
    ("libc", &["memory.rs"], "one file speaks to the allocator; all else has safe wrappers"),
    (
        "rusqlite",
        &["source/", "demo/shop.rs"],
        "one module speaks to SQLite; the demo's shop is an application",
    ),
    ("aws_config", &["storage/s3/", "credentials/"], "the SDK changes often"),
    ("aws_credential_types", &["storage/s3/", "credentials/"], "the SDK changes often"),
    ("aws_sdk_s3", &["storage/s3/", "credentials/"], "the SDK changes often"),
    ("aws_sdk_sts", &["credentials/"], "the identity token goes to STS and nowhere else"),
    ("aws_smithy_http_client", &["credentials/wire.rs"], "one file decides what goes where, and how"),
    ("aws_smithy_types", &["storage/s3/", "credentials/"], "the SDK changes often"),
    ("aws_smithy_runtime_api", &["storage/s3/", "credentials/"], "the SDK changes often"),
    ("zstd", &["snapshot/frame.rs"], "one file bounds what a frame may inflate to"),
    ("sha2", &["snapshot/digest.rs"], "one way to hash and one to print it"),
    ("xxhash_rust", &["delta/page.rs"], "one hash of a page"),
    ("axum", &["http/"], "one module serves"),
    ("tower", &["http/"], "one module serves"),
    ("tower_http", &["http/"], "one module serves"),
    ("utoipa", &["http/"], "one module has a contract"),
    (
        "hyper",
        &[
            "http/",
            "config/",
            "storage/s3/settings.rs",
            "credentials/machine_socket.rs",
            "credentials/wire.rs",
        ],
        "one module serves, one asks the machine; others take URLs apart",
    ),
    (
        "http_body_util",
        &["credentials/machine_socket.rs", "credentials/wire.rs"],
        "who reads answers bounds them",
    ),
    ("base64", &["credentials/claims.rs"], "one file reads tokens"),
    ("tokio_cron_scheduler", &["schedule.rs"], "one file knows what a schedule is"),
    ("croner", &["schedule.rs"], "one file knows what a schedule is"),
    ("chrono", &["schedule.rs"], "only the cron crates want it; our time is jiff's"),
    ("prometheus_client", &["metrics/"], "others say what happened, not how it is counted"),
];

/// Words that are found in few places: the word, the places, why.
const WORDS: [(&str, &[&str], &str); 6] = [
    ("getpid", &["crash/armed.rs"], "a process kills itself in tests only"),
    ("unsafe", &["source/stream_vfs.rs", "memory.rs"], "one file speaks C to SQLite, one to the allocator"),
    ("vars_os", &["config/"], "configuration has one gate"),
    ("var_os", &["config/"], "configuration has one gate"),
    ("hyper::server", &["http/"], "only the URL type is used elsewhere"),
    ("process::exit", &[], "exit codes are decided in one place, and destructors run"),
];

/// Those who ask for work never do it: they send a job to the worker of the database.
const ASKERS: [&str; 3] = ["http", "schedule", "supervise"];
const WORK: [&str; 7] = [
    "ship_next",
    "backup::run",
    "verify::run",
    "prune::apply",
    "restore::onto",
    "restore::prepare_online",
    "carry_out",
];

const LINES_MAX: usize = 500;

struct File {
    /// Below `src/` or `tests/`.
    path: String,
    text: String,
}

impl File {
    /// The top-level module the file belongs to.
    fn module(&self) -> &str {
        let top = self.path.split('/').next().unwrap_or_default();
        top.strip_suffix(".rs").unwrap_or(top)
    }

    /// The code without comments.
    fn code(&self) -> String {
        let without_comment = |line: &str| match line.trim_start().starts_with("//") {
            true => String::new(),
            false => line.split(" // ").next().unwrap_or_default().to_owned(),
        };
        self.text.lines().map(without_comment).collect::<Vec<_>>().join("\n")
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, in order of path.
fn files(folder: &str) -> Vec<File> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder of ours") {
            let path = entry.expect("an entry of ours").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let base = root().join(folder);
    let mut paths = Vec::new();
    walk(&base, &mut paths);
    paths.sort();
    let file = |path: PathBuf| File {
        path: path.strip_prefix(&base).expect("below the base").to_string_lossy().into_owned(),
        text: fs::read_to_string(&path).expect("UTF-8"),
    };
    paths.into_iter().map(file).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// What follows each occurrence of `start` that is a whole word or path.
fn after<'a>(code: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    code.match_indices(start).filter_map(move |(at, _)| {
        let before = code[..at].chars().next_back();
        (!before.is_some_and(is_word)).then_some(&code[at + start.len()..])
    })
}

fn leading_word(text: &str) -> &str {
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

/// The modules of this crate that `code` names: `crate::x` and `crate::{x, y::{…}}`.
fn modules_named(code: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for rest in after(code, "crate::") {
        let Some(group) = rest.strip_prefix('{') else {
            named.insert(leading_word(rest).to_owned());
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for c in group.chars() {
            match c {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    named.insert(leading_word(item.trim()).to_owned());
                    item.clear();
                }
                _ if depth == 0 => item.push(c),
                _ => {}
            }
        }
        named.insert(leading_word(item.trim()).to_owned());
    }
    named.retain(|name| !name.is_empty());
    named
}

/// Whether `code` names the crate: `name::`, or `use name as` and the like.
fn names_crate(code: &str, name: &str) -> bool {
    after(code, name).any(|rest| rest.starts_with("::"))
        || after(code, "use ").any(|rest| leading_word(rest) == name)
}

fn floor_of(module: &str) -> usize {
    let row = FLOORS.iter().find(|(_, modules)| modules.contains(&module));
    row.unwrap_or_else(|| panic!("src/{module} stands on no floor: give it one in FLOORS")).0
}

/// Module → the modules it imports, with one file that does.
fn imports() -> BTreeMap<String, BTreeMap<String, String>> {
    let mut imports: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for file in files("src").iter().filter(|file| file.path != "lib.rs") {
        let of_module = imports.entry(file.module().to_owned()).or_default();
        for name in modules_named(&file.code()) {
            if name != file.module() {
                of_module.insert(name, file.path.clone());
            }
        }
    }
    imports
}

#[test]
fn every_module_stands_on_one_floor_and_imports_only_downward() {
    let imports = imports();
    let mut violations = Vec::new();
    let mut exceptions_used = BTreeSet::new();
    for (module, imported) in &imports {
        for (other, file) in imported {
            if floor_of(other) <= floor_of(module) {
                continue;
            }
            match EXCEPTIONS.iter().find(|(from, to, _)| from == module && to == other) {
                Some((from, to, _)) => drop(exceptions_used.insert((from, to))),
                None => violations.push(format!("src/{file} imports {other}, which stands above it")),
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    assert_eq!(exceptions_used.len(), EXCEPTIONS.len(), "an exception that nobody needs any more");
    let listed: BTreeSet<String> =
        FLOORS.iter().flat_map(|(_, modules)| modules.iter().map(|module| (*module).to_owned())).collect();
    assert_eq!(listed, imports.into_keys().collect(), "FLOORS lists what is in src/");
}

#[test]
fn no_module_imports_itself_through_others() {
    let mut left = imports();
    // Whoever imports nobody that is left, or is imported by nobody, is in no circle and is taken away.
    loop {
        let names: BTreeSet<String> = left.keys().cloned().collect();
        let wanted: BTreeSet<String> = left.values().flat_map(BTreeMap::keys).cloned().collect();
        let before = left.len();
        left.retain(|name, imported| {
            wanted.contains(name) && imported.keys().any(|other| names.contains(other))
        });
        if left.len() == before {
            break;
        }
    }
    let edges: Vec<String> = left
        .iter()
        .flat_map(|(module, imported)| imported.iter().map(move |(other, file)| (module, other, file)))
        .filter(|(_, other, _)| left.contains_key(*other))
        .map(|(module, other, file)| format!("{module} → {other} (src/{file})"))
        .collect();
    assert!(left.is_empty(), "modules import each other in a circle:\n{}", edges.join("\n"));
}

#[test]
fn a_crate_is_named_only_where_it_belongs() {
    let files = files("src");
    let mut violations = Vec::new();
    for file in &files {
        let code = file.code();
        let belongs = |places: &[&str]| places.iter().any(|place| file.path.starts_with(place));
        for (name, places, why) in CRATES {
            if names_crate(&code, name) && !belongs(places) {
                violations.push(format!("src/{} names {name}: {why}", file.path));
            }
        }
        for (word, places, why) in WORDS {
            let found = after(&code, word).any(|rest| !rest.starts_with(is_word));
            if found && !belongs(places) {
                violations.push(format!("src/{} has `{word}`: {why}", file.path));
            }
        }
        let reads_variable = after(&code, "env::var").next().is_some();
        if reads_variable && !file.path.starts_with("config/") {
            violations.push(format!("src/{} reads the environment: configuration has one gate", file.path));
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    for (_, places, _) in CRATES {
        for place in places {
            let exists = files.iter().any(|file| file.path.starts_with(place));
            assert!(exists, "CRATES names src/{place}, which is not there");
        }
    }
}

#[test]
fn an_aws_crate_is_in_the_table_of_crates() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let dependencies = manifest.lines().filter_map(|line| line.split_once(" = ").map(|(name, _)| name));
    for name in dependencies.filter(|name| name.starts_with("aws-")) {
        let name = name.replace('-', "_");
        assert!(CRATES.iter().any(|(crate_name, ..)| *crate_name == name), "{name} is missing in CRATES");
    }
}

#[test]
fn who_asks_for_work_does_not_do_it() {
    let files = files("src");
    for work in WORK {
        let callers: Vec<&File> =
            files.iter().filter(|file| after(&file.code(), work).next().is_some()).collect();
        assert!(!callers.is_empty(), "nobody calls {work}: WORK is out of date");
        for file in callers {
            assert!(!ASKERS.contains(&file.module()), "src/{} calls {work}: send a job", file.path);
        }
    }
}

/// So its name says which line it is; and whoever takes a line out takes its row out, too.
#[test]
fn every_crash_point_stands_in_the_code_once() {
    let places: Vec<(String, String)> = files("src")
        .iter()
        .filter(|file| file.module() != "crash")
        .flat_map(|file| {
            let code = file.code();
            let points = after(&code, "Point::").map(leading_word).map(str::to_owned);
            points.map(|point| (point, file.path.clone())).collect::<Vec<_>>()
        })
        .collect();
    for point in Point::ALL {
        let found: Vec<&str> = places
            .iter()
            .filter(|(name, _)| *name == format!("{point:?}"))
            .map(|(_, path)| path.as_str())
            .collect();
        assert_eq!(found.len(), 1, "{point:?} stands in {found:?}");
    }
    let files = files("src");
    let gate = files.iter().find(|file| file.path == "crash/mod.rs").expect("the module is there");
    assert!(
        gate.text.contains("#[cfg(debug_assertions)]\nmod armed;"),
        "a release build has no crash points"
    );
}

#[test]
fn every_file_says_what_it_is_and_is_short() {
    for folder in ["src", "tests"] {
        for File { path, text } in files(folder) {
            assert!(text.starts_with("//! "), "{folder}/{path} does not begin with `//! `");
            let lines = text.lines().count();
            assert!(lines <= LINES_MAX, "{folder}/{path} has {lines} lines, more than {LINES_MAX}");
        }
    }
}

#[test]
fn nothing_is_left_for_later() {
    // Written in two halves, for this file is looked at too.
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("to", "do!("),
        concat!("unimpl", "emented!("),
        concat!("db", "g!("),
        concat!("#[ign", "ore"),
    ];
    for folder in ["src", "tests"] {
        for File { path, text } in files(folder) {
            for mark in marks {
                assert!(!text.contains(mark), "{folder}/{path} has {mark}");
            }
        }
    }
}

#[test]
fn the_scan_sees_what_it_should() {
    let code = "use crate::{clock::Clock, config, worker::{Fleet, Job}};\nfn f() { crate::random::u128() }";
    let named: Vec<String> = modules_named(code).into_iter().collect();
    assert_eq!(named, ["clock", "config", "random", "worker"]);
    assert!(names_crate("let x = zstd::decode();", "zstd") && names_crate("use zstd;", "zstd"));
    assert!(!names_crate("let x = my_zstd::decode();", "zstd"));
    let file = File { path: "a/b.rs".into(), text: "/// crate::x\nlet y = 1; // crate::z\n".into() };
    assert!(modules_named(&file.code()).is_empty());
    assert_eq!(file.module(), "a");
}
