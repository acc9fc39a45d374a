//! The application as our child: started, signalled, waited for. Its end is our end.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::account::Account;
use crate::config::{Kind, SETTINGS};
use crate::error::{Context, Error, ErrorKind, Result};

/// A running application.
pub struct Application {
    child: Child,
    group: Option<Pid>,
}

impl Application {
    /// Starts `command` in a process group of its own, so that a terminal's Ctrl-C reaches it through
    /// us, once.
    pub fn start(command: &[OsString], account: Option<&Account>) -> Result<Application> {
        let mut command = prepared(command, account)?;
        command.process_group(0);
        let program = command.get_program().to_owned();
        let child = Command::from(command).spawn().context(ErrorKind::Config, || {
            format!("start the application: command=`{}`", program.display())
        })?;
        let group = child.id().and_then(|id| Pid::from_raw(id as i32));
        Ok(Application { child, group })
    }

    /// Sends a signal to the application and whatever it started in its group.
    pub fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // It may be gone already.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Waits for its end; the exit code a shell would show: its own, or 128 and the signal.
    pub async fn wait(&mut self) -> Result<u8> {
        let status =
            self.child.wait().await.context(ErrorKind::Internal, || "wait for the application".to_owned())?;
        Ok(exit_code(status))
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Becomes `command`; returns only if that fails.
pub fn become_command(command: &[OsString], account: Option<&Account>) -> Error {
    match prepared(command, account) {
        Ok(mut command) => {
            let cause = command.exec();
            let program = command.get_program().display();
            Error::new(ErrorKind::Config, format!("start the application: command=`{program}`"))
                .because(cause)
        }
        Err(error) => error,
    }
}

/// The command as `account`, with none of our groups and secrets, and with the home it has there.
fn prepared(command: &[OsString], account: Option<&Account>) -> Result<std::process::Command> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| Error::new(ErrorKind::Config, "there is no command after `--`"))?;
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    // To be who one is already takes no right; only root may set it.
    if let Some(account) = account.filter(|account| !account.is_own()) {
        command.uid(account.uid).gid(account.gid);
        // What opens the HTTP interface is not the application's.
        for setting in SETTINGS.iter().filter(|setting| setting.kind == Kind::Secret) {
            command.env_remove(setting.env);
        }
        if let Some(entry) = &account.entry {
            command.env("USER", &entry.name).env("LOGNAME", &entry.name).env("HOME", &entry.home);
        }
    }
    Ok(command)
}

/// The signals that are meant for us and the application, as they arrive. Without an application
/// each of them ends us, as it would by itself, but in order.
pub fn signals() -> Result<mpsc::Receiver<Signal>> {
    let (sender, receiver) = mpsc::channel(4);
    let kinds = [
        (SignalKind::terminate(), Signal::TERM),
        (SignalKind::interrupt(), Signal::INT),
        (SignalKind::hangup(), Signal::HUP),
        (SignalKind::quit(), Signal::QUIT),
        (SignalKind::user_defined1(), Signal::USR1),
        (SignalKind::user_defined2(), Signal::USR2),
    ];
    for (kind, name) in kinds {
        let mut arriving = signal(kind).context(ErrorKind::Internal, || "listen for signals".to_owned())?;
        let sender = sender.clone();
        tokio::spawn(
            async move { while arriving.recv().await.is_some() && sender.send(name).await.is_ok() {} },
        );
    }
    Ok(receiver)
}
