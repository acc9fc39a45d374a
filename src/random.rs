//! Random bits from the operating system: ids that two machines never share.

use crate::error::{Context, ErrorKind, Result};

/// 128 random bits.
pub fn u128() -> Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .context(ErrorKind::Internal, || "ask the system for random bits".to_owned())?;
    Ok(u128::from_le_bytes(bytes))
}
