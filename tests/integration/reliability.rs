//! docs/RELIABILITY.md and tests/rules are true: every fault once, every test there, every edit applicable.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

/// The classes of faults and how many each has.
const CLASSES: [(char, usize); 11] = [
    ('P', 14),
    ('D', 12),
    ('N', 22),
    ('K', 10),
    ('O', 14),
    ('S', 20),
    ('F', 8),
    ('R', 18),
    ('A', 13),
    ('G', 12),
    ('W', 10),
];

/// Less is no reason.
const REASON_CHARS_MIN: usize = 40;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// One row of the page.
struct Row {
    id: String,
    does: String,
    /// Tests, or why there is none.
    last: String,
}

impl Row {
    /// The tests, if it is no reason.
    fn tests(&self) -> Vec<&str> {
        match self.last.starts_with("– ") {
            true => Vec::new(),
            false => self.last.split('`').skip(1).step_by(2).collect(),
        }
    }
}

fn page() -> String {
    fs::read_to_string(root().join("docs/RELIABILITY.md")).expect("docs/RELIABILITY.md")
}

fn rows() -> Vec<Row> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect();
        let [id, _, does, last] = cells[..] else { return None };
        let is_id = id.len() == 3 && id[1..].chars().all(|digit| digit.is_ascii_digit());
        is_id.then(|| Row { id: id.to_owned(), does: does.to_owned(), last: last.to_owned() })
    };
    page().lines().filter_map(row).collect()
}

/// A rule, the edit that takes it out, and the test that must fail then.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    says: String,
    file: String,
    old: String,
    new: String,
    test: String,
}

fn rules() -> Vec<Rule> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rules {
        rule: Vec<Rule>,
    }
    let files = fs::read_dir(root().join("tests/rules")).expect("tests/rules");
    let read = |path: &Path| {
        let text = fs::read_to_string(path).expect("readable");
        toml::from_str::<Rules>(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())).rule
    };
    files.flat_map(|file| read(&file.expect("a file").path())).collect()
}

/// The names of the tests in a folder of sources, as the test runner prints them.
fn tests_in(folder: &str) -> BTreeSet<String> {
    fn walk(folder: &Path, module: &str, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).expect("a folder of ours") {
            let path = entry.expect("an entry of ours").path();
            let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let below = match stem.as_str() {
                "mod" | "main" | "lib" => module.to_owned(),
                stem => format!("{module}{stem}::"),
            };
            if path.is_dir() {
                walk(&path, &below, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                tests_of(&fs::read_to_string(&path).expect("UTF-8"), below, found);
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(&root().join(folder), "", &mut found);
    found
}

fn tests_of(text: &str, mut module: String, found: &mut BTreeSet<String>) {
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        if line == "mod tests {" {
            module.push_str("tests::");
        }
        is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
        if let Some(rest) = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")
            && std::mem::take(&mut is_test)
        {
            found.insert(format!("{module}{}", rest.split('(').next().unwrap_or_default()));
        }
    }
}

fn all_tests() -> BTreeSet<String> {
    tests_in("src").into_iter().chain(tests_in("tests/integration")).collect()
}

#[test]
fn tests_are_found_as_the_runner_finds_them() {
    let listed = Command::new(std::env::current_exe().expect("this program"))
        .args(["--list", "--format", "terse"])
        .output()
        .expect("it lists its tests");
    let listed: BTreeSet<String> = String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter_map(|line| line.strip_suffix(": test").map(str::to_owned))
        .collect();
    // `main.rs` takes one of these two into a build.
    let absent = if cfg!(debug_assertions) { "crash_without::" } else { "crash_sweep::" };
    let mut found = tests_in("tests/integration");
    found.retain(|name| !name.starts_with(absent));
    assert_eq!(found, listed);
    let in_modules = tests_in("src");
    assert!(in_modules.iter().all(|name| name.contains("tests::")), "{in_modules:?}");
}

#[test]
fn every_fault_is_on_the_page_once_with_a_test_or_a_reason() {
    let tests = all_tests();
    let rows = rows();
    let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let expected: Vec<String> = CLASSES
        .iter()
        .flat_map(|(class, count)| (1..=*count).map(move |number| format!("{class}{number:02}")))
        .collect();
    assert_eq!(ids, expected);
    for row in &rows {
        let named = row.tests();
        for test in &named {
            assert!(tests.contains(*test), "{}: there is no test {test}", row.id);
        }
        if named.is_empty() {
            let reason = row.last.strip_prefix("– ").unwrap_or_default();
            assert!(reason.chars().count() >= REASON_CHARS_MIN, "{}: no test and no reason", row.id);
            assert_eq!(row.does, "–", "{}: what is done is tried", row.id);
        } else {
            assert!(row.does.len() > 1, "{}: what does Lifeboat do?", row.id);
        }
    }
}

#[test]
fn the_numbers_on_the_page_are_counted() {
    let held: BTreeSet<String> = rules().into_iter().map(|rule| rule.test).collect();
    let rows = rows();
    let tested: Vec<&Row> = rows.iter().filter(|row| !row.tests().is_empty()).collect();
    let shown = tested.iter().filter(|row| row.tests().iter().any(|test| held.contains(*test)));
    let told = format!(
        "**{} of {}** faults have a test. Of these, **{}** have one that was seen to fail",
        tested.len(),
        rows.len(),
        shown.count()
    );
    assert!(page().contains(&told), "the page is to say: {told}");
}

#[test]
fn every_rule_can_be_taken_out_and_has_its_test() {
    let tests = all_tests();
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    let mut said = BTreeSet::new();
    for Rule { says, file, old, new, test } in rules() {
        let text = texts
            .entry(file.clone())
            .or_insert_with(|| fs::read_to_string(root().join(&file)).expect("the file of a rule"));
        assert_eq!(text.matches(&old).count(), 1, "`{says}`: {file} has this once: {old}");
        assert!(file.starts_with("src/") && old != new, "`{says}` changes the program");
        assert!(tests.contains(&test), "`{says}`: there is no test {test}");
        assert!(said.insert(says.clone()), "two rules say `{says}`");
    }
    assert!(said.len() >= 100, "{}", said.len());
}
