//! A database, backups of it, and what must hold of both whatever became of the disk under them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat::error::ErrorKind;
use lifeboat::storage::Directory;
use rusqlite::Connection;

use crate::support::files::{State, copy_tree, names, state};
use crate::support::lab::Lab;
use crate::support::program::Program;

pub struct Scene {
    pub program: Program,
}

/// The exit code that says a kind of error.
pub fn code(kind: ErrorKind) -> Option<i32> {
    Some(i32::from(kind.exit_code()))
}

impl Scene {
    /// Some 40 KiB that do not compress, and nobody who has them open. In WAL mode half is in the log.
    pub fn new(journal_mode: &str) -> Scene {
        let program = Program::new();
        let app = program.app(&format!(
            "PRAGMA journal_mode={journal_mode}; CREATE TABLE t(n INTEGER, x BLOB); INSERT INTO t VALUES (1, randomblob(20000))"
        ));
        if journal_mode == "wal" {
            app.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("folded in");
        }
        app.execute_batch("UPDATE t SET x = randomblob(40000)").expect("written");
        let (data, copy) = (program.path("data"), program.path("as-killed"));
        copy_tree(&data, &copy);
        drop(app);
        fs::remove_dir_all(&data).expect("removed");
        fs::rename(copy, data).expect("renamed");
        Scene { program }
    }

    /// The database is another one from now on.
    pub fn change(&self) {
        drop(self.program.app("UPDATE t SET n = n + 1, x = randomblob(40000)"));
    }

    /// Moves the database elsewhere, and leaves a link in its place.
    pub fn move_data_to(&self, name: &str) {
        let (data, place) = (self.program.path("data"), self.program.path(name));
        for file in names(&data) {
            copy_tree(&data.join(&file), &place.join(&file));
        }
        fs::remove_dir_all(&data).expect("removed");
        std::os::unix::fs::symlink(place, data).expect("linked");
    }

    pub fn back_up(&self) {
        self.program.succeed(&["backup"]);
    }

    /// Removes everything that is stored, but not the directory.
    pub fn forget_backups(&self) {
        let backups = self.program.path("backups");
        for name in names(&backups) {
            let path = backups.join(name);
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("removed");
        }
    }

    /// The files of the database.
    pub fn source(&self) -> State {
        let mut state = state(&self.program.path("data"));
        state.retain(|name, _| !name.ends_with("-shm"));
        state
    }

    /// What the database says, which must be whole. Looks at a copy.
    pub fn says(&self) -> i64 {
        let copy = tempfile::tempdir().expect("a directory");
        let data = fs::canonicalize(self.program.path("data")).expect("there");
        for name in ["app.db", "app.db-wal", "app.db-journal"] {
            if data.join(name).exists() {
                copy_tree(&data.join(name), copy.path());
            }
        }
        says(&copy.path().join("app.db"))
    }

    /// The size of the newest snapshot's database.
    pub fn plain_bytes(&self) -> u64 {
        self.program.json(&["snapshots"])["snapshots"][0]["plain"]["bytes"].as_u64().expect("a size")
    }

    /// Everything that is listed restores, and nothing that is listed is damaged.
    pub fn assert_storage_is_whole(&self) {
        let dir = tempfile::tempdir().expect("a directory");
        let storage = Directory::open(self.program.path("backups")).expect("opens");
        let lab = Lab::over(dir, Arc::new(storage));
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let listing = lab.catalog().list().await.expect("listed");
            assert!(listing.damaged.is_empty(), "{:?}", listing.damaged);
            for manifest in &listing.snapshots {
                let output = lab.path(manifest.id.as_str());
                lab.restored_to(manifest, &output).await.unwrap_or_else(|error| panic!("{}", error.chain()));
                says(&output);
            }
            lab.catalog().newest().await.expect("there is a whole one or none");
        });
    }

    /// The newest snapshot holds the database as it is.
    pub fn assert_newest_is_now(&self) {
        let output = self.program.path("newest.db");
        self.program.succeed(&["restore", "--output", &output.display().to_string()]);
        assert_eq!(says(&output), self.says());
        fs::remove_file(output).expect("removed");
    }

    /// Temporary files of ours below a folder, and notes of work under way.
    pub fn left_over(&self, folder: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.program.path(folder), &mut |path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_temporary = name.starts_with(".lifeboat-tmp-") || name.starts_with(".lifeboat-copy-");
            if is_temporary || name.ends_with(".lifeboat-intent") {
                found.push(path.to_owned());
            }
        });
        found
    }
}

fn walk(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    for name in names(folder) {
        let path = folder.join(name);
        visit(&path);
        if path.is_dir() {
            walk(&path, visit);
        }
    }
}

fn says(database: &Path) -> i64 {
    let app = Connection::open(database).expect("opens");
    let verdict: String = app.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("checked");
    assert_eq!(verdict, "ok");
    app.query_row("SELECT n FROM t", [], |row| row.get(0)).expect("queries")
}
