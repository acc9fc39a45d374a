//! `lifeboat demo`: the whole promise shown on one machine, with real processes and nothing faked.
//!
//! An application in a process of its own writes to its database; the real daemon backs it up over
//! a directory; the database is lost on purpose and restored with the real command.

mod shop;
mod stage;

use std::time::Duration;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::supervise;
use stage::Stage;

pub use shop::write_orders;

/// How long the application writes before and between backups.
const WRITING: Duration = Duration::from_millis(1500);

/// Shows it all; with `once` it cleans up and ends, else the daemon stays until a signal.
pub async fn run(once: bool) -> Result<u8> {
    let mut signals = supervise::signals()?;
    let shown = tokio::select! {
        shown = show() => shown?,
        Some(_) = signals.recv() => return Err(Error::cancelled()),
    };
    if !once {
        shown.say_where_to_look();
        signals.recv().await;
    }
    shown.end().await?;
    Ok(0)
}

async fn show() -> Result<Stage> {
    let mut stage = Stage::set()?;
    stage.say("an application starts in a process of its own and takes orders");
    stage.start_application()?;
    stage.wait_for_orders(1).await?;
    stage.say("lifeboat starts beside it, keeping backups in a directory");
    stage.start_daemon().await?;

    for _ in 0..3 {
        tokio::time::sleep(WRITING).await;
        stage.back_up().await?;
    }
    stage.prove().await?;
    let before_snapshot = stage.orders()?;
    stage.back_up().await?;
    tokio::time::sleep(WRITING / 3).await;

    stage.lose_everything().await?;
    stage.restore().await?;
    let restored = stage.orders()?;
    stage.compare(before_snapshot, restored)?;
    stage.start_application()?;
    stage.wait_for_orders(restored.count + 1).await?;
    stage.say("the application is back and takes orders where it left off");
    Ok(stage)
}

/// Something of the demonstration did not go as promised: that is a defect.
fn broken(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Internal, what)
}

fn failed<T, E>(result: std::result::Result<T, E>, what: &str) -> Result<T>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    result.context(ErrorKind::Internal, || what.to_owned())
}
