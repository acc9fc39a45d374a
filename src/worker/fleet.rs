//! All databases of this process, whether their workers have started yet or not.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::Handle;
use super::job::Answer;
use super::status::{Freshness, Readiness, Status};
use crate::capture;
use crate::clock::Timestamp;
use crate::config::DatabaseFile;
use crate::error::{Error, ErrorKind, Result};
use crate::spool::{self, Spool};

/// The databases, in the order of the configuration. Clones share the state.
#[derive(Clone)]
pub struct Fleet {
    members: Arc<Vec<Member>>,
    freshness: Freshness,
}

/// One database of the fleet.
pub struct Member {
    /// The database: name in storage and path.
    pub database: DatabaseFile,
    state: watch::Sender<MemberState>,
    spool: OnceLock<Spool>,
}

#[derive(Clone)]
enum MemberState {
    /// Storage has not been reached yet; why not.
    Opening(Option<Answer>),
    /// The worker is there.
    Open(Box<Handle>),
}

/// A member as it is shown.
#[derive(Debug, Clone)]
pub struct MemberView {
    /// The database: name in storage and path.
    pub database: DatabaseFile,
    /// Whether it could be lost now without losing its data.
    pub readiness: Readiness,
    /// The worker's state; none while storage has not been reached.
    pub status: Option<Status>,
    /// What waits for storage; none where there is no spool.
    pub spool: Option<spool::State>,
    /// What follows the database between its snapshots, once it has begun.
    pub capture: Option<capture::State>,
}

impl Fleet {
    /// A fleet whose workers have not started.
    pub fn new(databases: Vec<DatabaseFile>, freshness: Freshness) -> Fleet {
        let member = |database| {
            let state = watch::Sender::new(MemberState::Opening(None));
            Member { database, state, spool: OnceLock::new() }
        };
        Fleet { members: Arc::new(databases.into_iter().map(member).collect()), freshness }
    }

    /// Every member.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member of this name; without a name, the only one.
    pub fn member(&self, name: Option<&str>) -> Result<&Member> {
        let names =
            || self.members.iter().map(|member| member.database.name.as_str()).collect::<Vec<_>>().join(", ");
        match (name, self.members.as_slice()) {
            (None, [only]) => Ok(only),
            (None, _) => Err(Error::new(
                ErrorKind::Config,
                format!("there are several databases, say which (database=NAME): databases=`{}`", names()),
            )),
            (Some(name), members) => {
                members.iter().find(|member| member.database.name.as_str() == name).ok_or_else(|| {
                    Error::new(
                        ErrorKind::NotFound,
                        format!("there is no database of this name: databases=`{}`", names()),
                    )
                })
            }
        }
    }

    /// Whether what is committed between two snapshots of this member is stored soon.
    pub fn is_captured(&self, handle: &Handle, now: Timestamp) -> bool {
        let state = handle.capture().map(|capture| capture.state());
        self.freshness.is_captured(state.as_ref(), now)
    }

    /// What every member shows at `now`.
    pub fn view(&self, now: Timestamp) -> Vec<MemberView> {
        self.members.iter().map(|member| self.view_of(member, now)).collect()
    }

    /// What one member shows at `now`.
    pub fn view_of(&self, member: &Member, now: Timestamp) -> MemberView {
        member.view(self.freshness, now)
    }
}

impl Member {
    /// Says that the worker has started.
    pub fn opened(&self, handle: Handle) {
        self.state.send_replace(MemberState::Open(Box::new(handle)));
    }

    /// Gives it a spool, before anything waits there; a second call changes nothing.
    pub fn give_spool(&self, spool: Spool) {
        self.spool.get_or_init(|| spool);
    }

    /// Where its snapshots wait while storage cannot be reached, if anywhere.
    pub fn spool(&self) -> Option<&Spool> {
        self.spool.get()
    }

    /// Why storage has not been reached yet, if it was tried and is out of reach.
    pub fn outage(&self) -> Option<Error> {
        match &*self.state.borrow() {
            MemberState::Opening(Some(answer)) => Some(Error::from(answer.clone())).filter(spool::is_outage),
            MemberState::Opening(None) | MemberState::Open(_) => None,
        }
    }

    /// Says why the worker cannot start yet.
    pub fn not_yet(&self, error: &Error) {
        self.state.send_replace(MemberState::Opening(Some(error.into())));
    }

    /// The worker; `Unavailable` while storage has not been reached.
    pub fn handle(&self) -> Result<Handle> {
        match &*self.state.borrow() {
            MemberState::Open(handle) => Ok(Handle::clone(handle)),
            MemberState::Opening(answer) => {
                let why = answer.as_ref().map_or("it is being opened", |answer| answer.message.as_str());
                Err(Error::new(ErrorKind::Unavailable, format!("storage has not been reached yet: {why}")))
            }
        }
    }

    /// The worker, or why it cannot start; waits for the first try to end.
    pub async fn handle_or_reason(&self) -> Result<Handle> {
        let mut state = self.state.subscribe();
        // The sender is this member's own, so it outlives the wait.
        let _ = state.wait_for(|state| !matches!(state, MemberState::Opening(None))).await.map(drop);
        self.handle()
    }

    /// The worker, however long it takes until it is there.
    pub async fn opened_handle(&self) -> Handle {
        let mut state = self.state.subscribe();
        loop {
            if let MemberState::Open(handle) = &*state.borrow_and_update() {
                return Handle::clone(handle);
            }
            // The sender is this member's own, so it outlives the wait.
            let _ = state.changed().await;
        }
    }

    fn view(&self, freshness: Freshness, now: Timestamp) -> MemberView {
        let (status, capture, readiness) = match self.handle() {
            Ok(handle) => {
                let status = handle.status();
                let capture = handle.capture().map(|capture| capture.state());
                let freshness = freshness.of(capture.as_ref(), now);
                let reasons = status.behind(capture.as_ref(), freshness, now);
                let readiness = status.readiness(freshness, now).and(reasons);
                (Some(status), capture, readiness)
            }
            Err(error) => (None, None, Readiness { ready: false, reasons: vec![error.to_string()] }),
        };
        let spool = self.spool().map(Spool::state);
        let readiness = spool.iter().fold(readiness, |readiness, spool| readiness.and(spool.reasons()));
        MemberView { database: self.database.clone(), readiness, status, spool, capture }
    }
}
