//! The names of what a storage does, shared by metrics, scripted faults and messages.

/// One method of [`super::Storage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`super::Storage::create`]
    Create,
    /// [`super::Storage::replace`]
    Replace,
    /// [`super::Storage::read`]
    Read,
    /// [`super::Storage::read_range`]
    ReadRange,
    /// [`super::Storage::head`]
    Head,
    /// [`super::Storage::list`]
    List,
    /// [`super::Storage::delete`]
    Delete,
    /// [`super::Storage::sweep_unfinished`]
    Sweep,
}

impl Operation {
    /// The stable name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Create => "create",
            Operation::Replace => "replace",
            Operation::Read => "read",
            Operation::ReadRange => "read-range",
            Operation::Head => "head",
            Operation::List => "list",
            Operation::Delete => "delete",
            Operation::Sweep => "sweep",
        }
    }

    /// The same in words.
    pub const fn verb(self) -> &'static str {
        match self {
            Operation::Create => "create an object",
            Operation::Replace => "replace an object",
            Operation::Read => "read an object",
            Operation::ReadRange => "read a range of an object",
            Operation::Head => "look at an object",
            Operation::List => "list the objects",
            Operation::Delete => "delete an object",
            Operation::Sweep => "sweep unfinished writes",
        }
    }
}
