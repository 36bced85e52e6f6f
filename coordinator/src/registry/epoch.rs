//! A new epoch, for a state that was restored.

use time::OffsetDateTime;

use super::{
    error::{RegistryError, corrupt},
    keys,
};
use crate::store::Snapshot;

/// Returns a registry's state with a new epoch, and the epoch.
///
/// It is above the state's own, and at least the time in seconds: so a backup that is restored twice does not begin the same
/// epoch twice, although it knows nothing of the first time, as long as the clock goes forwards.
///
/// # Errors
/// When the state is not a registry's.
pub fn begin_epoch(mut snapshot: Snapshot, now: OffsetDateTime) -> Result<(Snapshot, u64), RegistryError> {
    let found = snapshot.entries.iter_mut().find(|entry| entry.key == keys::EPOCH);
    let entry = found.ok_or_else(|| corrupt(keys::EPOCH, "it is missing"))?;
    let old: u64 =
        serde_json::from_slice(&entry.value).map_err(|error| corrupt(keys::EPOCH, &error.to_string()))?;
    let epoch = old.saturating_add(1).max(u64::try_from(now.unix_timestamp()).unwrap_or(0));
    snapshot.revision = snapshot.revision.next();
    entry.value = epoch.to_string().into_bytes();
    entry.mod_revision = snapshot.revision;
    Ok((snapshot, epoch))
}
