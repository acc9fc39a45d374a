//! What can go wrong on the way to an identity, each with a name of its own.

use std::error::Error as StdError;

use serde::{Serialize, Serializer};

use crate::error::{Error, ErrorKind};

/// What kind of failure it was. The names are stable: metrics and reports carry them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// There is no machine socket.
    SocketAbsent,
    /// Only root may use the machine socket.
    SocketDenied,
    /// Nobody listens at the machine socket, or the connection broke.
    SocketRefused,
    /// The machine socket does not answer.
    SocketSilent,
    /// The machine socket answers with something else than a token.
    SocketAnswer,
    /// There is no token file.
    FileAbsent,
    /// The token file cannot be read.
    FileUnreadable,
    /// What was found is no token: nothing, half of one, or something else.
    TokenMalformed,
    /// The token has ended.
    TokenExpired,
    /// The token is for somebody else than AWS.
    TokenAudience,
    /// Neither a machine socket nor a token file is there or named.
    NoToken,
    /// STS did not answer.
    StsUnreachable,
    /// STS is in trouble, or overloaded.
    StsUnavailable,
    /// STS answered with something that is no answer.
    StsAnswer,
    /// STS could not ask the issuer of the token for its keys.
    IdpCommunication,
    /// STS does not know the issuer, or does not take the token.
    InvalidToken,
    /// The role does not trust the token, or does not exist.
    AccessDenied,
    /// STS refused for another reason.
    StsRefused,
    /// A provider of the default chain is out of reach, or in trouble.
    ChainUnavailable,
    /// Environment, profile and container had no credentials, or bad ones.
    NoCredentials,
}

impl Class {
    /// Every class.
    pub const ALL: [Class; 20] = [
        Class::SocketAbsent,
        Class::SocketDenied,
        Class::SocketRefused,
        Class::SocketSilent,
        Class::SocketAnswer,
        Class::FileAbsent,
        Class::FileUnreadable,
        Class::TokenMalformed,
        Class::TokenExpired,
        Class::TokenAudience,
        Class::NoToken,
        Class::StsUnreachable,
        Class::StsUnavailable,
        Class::StsAnswer,
        Class::IdpCommunication,
        Class::InvalidToken,
        Class::AccessDenied,
        Class::StsRefused,
        Class::ChainUnavailable,
        Class::NoCredentials,
    ];

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Class::SocketAbsent => "socket-absent",
            Class::SocketDenied => "socket-denied",
            Class::SocketRefused => "socket-refused",
            Class::SocketSilent => "socket-silent",
            Class::SocketAnswer => "socket-answer",
            Class::FileAbsent => "file-absent",
            Class::FileUnreadable => "file-unreadable",
            Class::TokenMalformed => "token-malformed",
            Class::TokenExpired => "token-expired",
            Class::TokenAudience => "token-audience",
            Class::NoToken => "no-token",
            Class::StsUnreachable => "sts-unreachable",
            Class::StsUnavailable => "sts-unavailable",
            Class::StsAnswer => "sts-answer",
            Class::IdpCommunication => "idp-communication",
            Class::InvalidToken => "invalid-token",
            Class::AccessDenied => "access-denied",
            Class::StsRefused => "sts-refused",
            Class::ChainUnavailable => "chain-unavailable",
            Class::NoCredentials => "no-credentials",
        }
    }

    /// Whose turn it is to act: nobody's, where it may pass by itself.
    pub(super) const fn kind(self) -> ErrorKind {
        match self {
            Class::SocketRefused
            | Class::SocketSilent
            | Class::StsUnreachable
            | Class::StsUnavailable
            | Class::StsAnswer
            | Class::IdpCommunication
            | Class::ChainUnavailable => ErrorKind::Unavailable,
            Class::SocketAbsent
            | Class::SocketDenied
            | Class::SocketAnswer
            | Class::FileAbsent
            | Class::FileUnreadable
            | Class::TokenMalformed
            | Class::TokenExpired
            | Class::TokenAudience
            | Class::NoToken
            | Class::InvalidToken
            | Class::AccessDenied
            | Class::StsRefused
            | Class::NoCredentials => ErrorKind::Denied,
        }
    }

    /// Whether a source of tokens that fails so may be on its way up, and is waited for.
    pub(super) const fn may_pass_soon(self) -> bool {
        matches!(
            self,
            Class::SocketAbsent
                | Class::SocketRefused
                | Class::SocketSilent
                | Class::FileAbsent
                | Class::TokenMalformed
                | Class::TokenExpired
        )
    }
}

impl Serialize for Class {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A failure with its class.
#[derive(Debug)]
pub struct Fault {
    /// What kind of failure it was.
    pub class: Class,
    /// What happened and what to do, in words, without secrets.
    pub text: String,
}

impl Fault {
    pub(super) fn new(class: Class, text: impl Into<String>) -> Fault {
        Fault { class, text: text.into() }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        Error::new(fault.class.kind(), fault.text)
    }
}

/// An error and its causes.
pub(super) fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (*error).source())
}

/// An error and its causes, each said once.
pub(super) fn said(error: &(dyn StdError + 'static)) -> String {
    let mut texts: Vec<String> = causes(error).map(ToString::to_string).collect();
    texts.dedup();
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_distinct() {
        let names: HashSet<&str> = Class::ALL.into_iter().map(Class::name).collect();
        assert_eq!(names.len(), Class::ALL.len());
    }

    #[test]
    fn an_error_and_its_causes_are_each_said_once() {
        let inner = Error::new(ErrorKind::Denied, "no");
        let outer = Error::new(ErrorKind::Denied, "no").because(inner);
        assert_eq!(said(&Error::new(ErrorKind::Denied, "sign").because(outer)), "sign: no");
    }
}
