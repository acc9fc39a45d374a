//! The real program, in a process of its own, with an environment of which nothing is inherited.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Nothing is waited for longer, unless something hangs; a schedule lets up to a minute pass.
const PATIENCE: Duration = Duration::from_secs(100);

/// A folder, a configuration in the environment, and the program.
pub struct Program {
    pub dir: TempDir,
    environment: BTreeMap<String, String>,
    runs: AtomicU32,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

/// A run under way; it is killed when dropped.
pub struct Running {
    child: Child,
    began: Instant,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Program {
    /// Backs `data/app.db` up to `backups/`, with no schedule, no capture and no HTTP.
    pub fn new() -> Program {
        Program::within(&std::env::temp_dir())
    }

    /// The same in a folder of its own below `base`.
    pub fn within(base: &Path) -> Program {
        let dir = tempfile::tempdir_in(base).expect("a temporary directory");
        fs::create_dir(dir.path().join("data")).expect("a folder for the database");
        fs::create_dir(dir.path().join("runs")).expect("a folder for what runs print");
        let program = Program { dir, environment: BTreeMap::new(), runs: AtomicU32::new(0) };
        let database = program.path("data/app.db").display().to_string();
        let backups = program.path("backups").display().to_string();
        program
            .with("PATH", std::env::var("PATH").expect("a path"))
            .with("BACKUP_DATABASE", database)
            .with("BACKUP_DIR", backups)
            .with("BACKUP_HTTP_ADDR", "off")
            .with("BACKUP_SCHEDULE", "off")
            .with("BACKUP_CAPTURE", "off")
            .with("BACKUP_ZSTD_LEVEL", "1")
    }

    /// The same with a variable set; an empty value is as good as none.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Program {
        self.environment.insert(name.to_owned(), value.into());
        self
    }

    /// Sets a variable for the runs to come.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.environment.insert(name.to_owned(), value.into());
    }

    /// A variable that was set.
    pub fn variable(&self, name: &str) -> &str {
        &self.environment[name]
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn database(&self) -> PathBuf {
        self.path("data/app.db")
    }

    /// A connection to `data/app.db` on which `sql` was run.
    pub fn app(&self, sql: &str) -> Connection {
        let connection = Connection::open(self.database()).expect("the database opens");
        connection.execute_batch(sql).expect("the statements run");
        connection
    }

    /// Any program, in this folder and with this configuration.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path()).env_clear().envs(&self.environment).stdin(Stdio::null());
        command
    }

    /// Starts the program.
    pub fn start(&self, arguments: &[&str]) -> Running {
        self.launch(&[], arguments, &[])
    }

    /// Starts the program through another one, which is named with its own arguments.
    pub fn start_under(&self, wrapper: &[&str], arguments: &[&str]) -> Running {
        self.launch(wrapper, arguments, &[])
    }

    /// Starts the program with more variables than it has otherwise.
    pub fn start_with(&self, arguments: &[&str], more: &[(&str, String)]) -> Running {
        self.launch(&[], arguments, more)
    }

    fn launch(&self, wrapper: &[&str], arguments: &[&str], more: &[(&str, String)]) -> Running {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let (stdout, stderr) = (self.path(&format!("runs/{run}.out")), self.path(&format!("runs/{run}.err")));
        let line = [wrapper, &[env!("CARGO_BIN_EXE_lifeboat")], arguments].concat();
        let child = self
            .command(line[0])
            .args(&line[1..])
            .envs(more.iter().map(|(name, value)| (name, value)))
            .stdout(File::create(&stdout).expect("a file for the output"))
            .stderr(File::create(&stderr).expect("a file for the errors"))
            .spawn()
            .expect("the program starts");
        Running { child, began: Instant::now(), stdout, stderr }
    }

    /// Runs the program to its end.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.start(arguments).wait()
    }

    /// Runs the program, which must succeed; what it printed.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
        ended.stdout
    }

    /// Runs the program, which must succeed; what it printed as JSON.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let printed = self.succeed(&[arguments, &["--json"]].concat());
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    /// The ids of all snapshots, newest first, by the program's own account.
    pub fn snapshots(&self) -> Vec<String> {
        let listing = self.json(&["snapshots"]);
        assert_eq!(listing["damaged"], serde_json::json!([]), "nothing is damaged");
        let ids = listing["snapshots"].as_array().expect("a list").iter();
        ids.map(|manifest| manifest["id"].as_str().expect("an id").to_owned()).collect()
    }
}

impl Running {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(self.child.id().cast_signed()).expect("a process id");
        // It may have ended by itself.
        let _ = kill_process(id, signal);
    }

    /// What it has printed on standard error so far.
    pub fn log(&self) -> String {
        read(&self.stderr)
    }

    /// Waits until its standard error has `text`.
    pub fn wait_for_log(&mut self, text: &str) {
        self.wait_for_line(&[text]);
    }

    /// Waits until its standard error has a line with all of `parts`.
    pub fn wait_for_line(&mut self, parts: &[&str]) {
        let waiting = Instant::now();
        let is_there = |log: &str| log.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        while !is_there(&self.log()) {
            let ended = self.child.try_wait().expect("asked");
            assert!(
                ended.is_none() && waiting.elapsed() < PATIENCE,
                "no {parts:?} ({ended:?}): {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until its standard error has `text`; `false` if it ends without.
    pub fn says(&mut self, text: &str) -> bool {
        let waiting = Instant::now();
        loop {
            let ended = self.child.try_wait().expect("asked").is_some();
            if self.log().contains(text) {
                return true;
            }
            if ended {
                return false;
            }
            assert!(waiting.elapsed() < PATIENCE, "no `{text}`: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("asked").is_some()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Ended {
        let waiting = Instant::now();
        let status: ExitStatus = loop {
            match self.child.try_wait().expect("asked") {
                Some(status) => break status,
                None if waiting.elapsed() > PATIENCE => panic!("it hangs: {}", self.log()),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        Ended {
            code: status.code(),
            signal: status.signal(),
            stdout: read(&self.stdout),
            stderr: read(&self.stderr),
            took: self.began.elapsed(),
        }
    }

    /// Sends a signal and waits for the end.
    pub fn end(self, signal: Signal) -> Ended {
        self.signal(signal);
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// Fails unless it ended with `code` and exactly one line on standard error with each of `parts`.
    #[track_caller]
    pub fn refused(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "one line: {}", self.stderr);
        assert!(self.stderr.starts_with("lifeboat: "), "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "no `{part}` in: {}", self.stderr);
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).expect("the file is there")).into_owned()
}

/// An address on which nobody listens.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound")
}

/// The answer of a daemon at `address`, head and body; `line` is a method and a target, `body` is JSON.
pub fn ask(address: SocketAddr, line: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the daemon listens");
    let length = body.len();
    write!(
        stream,
        "{line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
    .expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    answer
}

/// The numbers in the table `t(n)` of a database, in order.
pub fn rows(database: &Path) -> Vec<i64> {
    let connection = Connection::open(database).expect("opens");
    let mut statement = connection.prepare("SELECT n FROM t ORDER BY n").expect("prepares");
    let rows = statement.query_map([], |row| row.get(0)).expect("queries");
    rows.collect::<Result<_, _>>().expect("rows")
}
