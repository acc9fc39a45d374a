//! The props of the demonstration: a directory, an application, a daemon, and what is said of them.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::shop::{self, Orders};
use super::{broken, failed};
use crate::ask::ask;
use crate::error::Result;

/// No single step takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A demonstration under way. Its processes end with it.
pub struct Stage {
    directory: TempDir,
    addr: SocketAddr,
    application: Option<Child>,
    daemon: Option<Child>,
    began: Instant,
}

impl Stage {
    /// Sets everything up in a new temporary directory and on a free port.
    pub fn set() -> Result<Stage> {
        let directory =
            failed(tempfile::Builder::new().prefix("lifeboat-demo-").tempdir(), "create a directory")?;
        // Free now; whoever takes it before the daemon does makes the daemon say so.
        let listener = failed(std::net::TcpListener::bind("127.0.0.1:0"), "find a free port")?;
        let addr = failed(listener.local_addr(), "find a free port")?;
        Ok(Stage { directory, addr, application: None, daemon: None, began: Instant::now() })
    }

    /// Says what happens, with the seconds since the beginning.
    pub fn say(&self, what: &str) {
        println!("{:6.2}s  {what}", self.began.elapsed().as_secs_f64());
    }

    fn database(&self) -> PathBuf {
        self.directory.path().join("shop.db")
    }

    /// This very program, free of whatever configuration surrounds it.
    fn lifeboat(&self) -> Result<Command> {
        let mut command = Command::new(failed(std::env::current_exe(), "find this program")?);
        command
            .env_clear()
            .env("BACKUP_DATABASE", self.database())
            .env("BACKUP_DIR", self.directory.path().join("backups"))
            .env("BACKUP_USE_AWS", "false")
            .env("BACKUP_HTTP_ADDR", self.addr.to_string())
            .env("BACKUP_LOG", "warn")
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }

    /// Starts the application, which begins or goes on to take orders.
    pub fn start_application(&mut self) -> Result<()> {
        let database = self.database();
        let child = self.lifeboat()?.args(["demo", "--writer"]).arg(database).spawn();
        self.application = Some(failed(child, "start the application")?);
        Ok(())
    }

    /// Starts the real daemon and waits until it answers.
    pub async fn start_daemon(&mut self) -> Result<()> {
        let child = self.lifeboat()?.arg("run").process_group(0).spawn();
        self.daemon = Some(failed(child, "start the daemon")?);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = ask(self.addr, "GET", "/snapshots", Duration::from_secs(1)).await;
            if answer.is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(broken("the daemon does not answer"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The orders committed by now.
    pub fn orders(&self) -> Result<Orders> {
        shop::orders(&self.database())
    }

    /// Waits until at least `count` orders are committed.
    pub async fn wait_for_orders(&self, count: i64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.orders().is_ok_and(|orders| orders.count >= count) {
            if Instant::now() > deadline {
                return Err(broken("the application takes no orders"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Asks the daemon for a backup, as `curl` would.
    pub async fn back_up(&self) -> Result<()> {
        let orders = self.orders()?.count;
        let answer = self.ask("GET", "/backup-now").await?;
        let snapshot = &answer["snapshot"];
        let bytes = |field: &str| ByteSize(snapshot[field].as_u64().unwrap_or(0));
        self.say(&format!(
            "curl http://{}/backup-now   {}: {} -> {} in {} ms, at order {orders} or later, while more come in",
            self.addr,
            snapshot["id"].as_str().unwrap_or("?"),
            bytes("plain_bytes"),
            bytes("stored_bytes"),
            snapshot["took_ms"],
        ));
        Ok(())
    }

    /// Has the newest snapshot proven.
    pub async fn prove(&self) -> Result<()> {
        let answer = self.ask("POST", "/verify").await?;
        self.say(&format!(
            "curl -X POST http://{}/verify  proven: read back, both hashes right, restored to scratch, {} ok",
            self.addr,
            answer["proof"]["check"].as_str().unwrap_or("?")
        ));
        Ok(())
    }

    async fn ask(&self, method: &str, path: &str) -> Result<Value> {
        let answer = failed(ask(self.addr, method, path, PATIENCE).await, "ask the daemon")?;
        match answer.status {
            200 => failed(serde_json::from_str(&answer.body), "read the daemon's answer"),
            status => Err(broken(format!("{method} {path} was answered with {status}: {}", answer.body))),
        }
    }

    /// Kills the application in the middle of its work and removes its database.
    pub async fn lose_everything(&mut self) -> Result<()> {
        if let Some(mut application) = self.application.take() {
            failed(application.kill().await, "kill the application")?;
        }
        for name in ["shop.db", "shop.db-wal", "shop.db-shm"] {
            let removed = fs::remove_file(self.directory.path().join(name));
            if name == "shop.db" {
                failed(removed, "lose the database")?;
            }
        }
        self.say("kill -9 the application, rm shop.db*    everything is gone");
        Ok(())
    }

    /// Restores with the real command.
    pub async fn restore(&self) -> Result<()> {
        let output = failed(self.lifeboat()?.arg("restore").output().await, "run lifeboat restore")?;
        if !output.status.success() {
            return Err(broken(format!("the restore failed: {}", String::from_utf8_lossy(&output.stderr))));
        }
        self.say(&format!("lifeboat restore    {}", String::from_utf8_lossy(&output.stdout).trim_end()));
        Ok(())
    }

    /// Holds what came back against what had to.
    pub fn compare(&self, before_snapshot: Orders, restored: Orders) -> Result<()> {
        if restored.count < before_snapshot.count || restored.count != restored.last {
            return Err(broken(format!(
                "orders are missing: {} were committed before the snapshot, {} came back, the last is number {}",
                before_snapshot.count, restored.count, restored.last
            )));
        }
        self.say(&format!(
            "{} orders were committed before the last snapshot was asked for, {} came back, none is missing",
            before_snapshot.count, restored.count
        ));
        Ok(())
    }

    /// Tells where to look while the daemon runs on.
    pub fn say_where_to_look(&self) {
        println!("\nThe daemon runs on until Ctrl-C. Look at it:");
        for path in ["snapshots", "ready", "metrics", "backup-now"] {
            println!("  curl http://{}/{path}", self.addr);
        }
        println!("  ls -R {}", self.directory.path().join("backups").display());
    }

    /// Ends the application, then the daemon as a platform would: SIGTERM, and it takes a last backup.
    pub async fn end(mut self) -> Result<()> {
        if let Some(mut application) = self.application.take() {
            failed(application.kill().await, "end the application")?;
        }
        if let Some(mut daemon) = self.daemon.take() {
            if let Some(id) = daemon.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)) {
                failed(rustix::process::kill_process(id, rustix::process::Signal::TERM), "stop the daemon")?;
            }
            let status = failed(daemon.wait().await, "wait for the daemon")?;
            if !status.success() {
                return Err(broken(format!("the daemon ended with {status}")));
            }
        }
        self.say("SIGTERM    the daemon took a last backup and left");
        Ok(())
    }
}
