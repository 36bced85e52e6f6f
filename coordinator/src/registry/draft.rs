//! A change in the making: what was read, and what will be written.
//!
//! Every key that is read joins the transaction as a comparison, so a change is committed only if everything
//! it was decided on still holds (etcd's client calls this software transactional memory).

use std::collections::BTreeMap;

use serde::{Serialize, de::DeserializeOwned};

use super::{RegistryError, corrupt};
use crate::store::{Compare, KeyValue, Op, Revision, Snapshot, Store, Transaction};

/// Something that is asked for, and decided on what the store holds. Where another change came between
/// deciding and committing it is decided again.
pub(super) trait Decision: Sync {
    /// What the asker gets.
    type Output: Send;

    /// Reads what matters and drafts what is to be done.
    fn decide(
        &self,
        draft: &mut Draft<'_>,
    ) -> impl Future<Output = Result<Self::Output, RegistryError>> + Send;
}

/// Reads and writes that will be one transaction.
pub(super) struct Draft<'a> {
    store: &'a dyn Store,
    read: BTreeMap<String, Revision>,
    written: BTreeMap<String, Op>,
}

/// A value and when its key was made and changed.
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) create_revision: Revision,
    pub(super) mod_revision: Revision,
}

impl<'a> Draft<'a> {
    pub(super) fn new(store: &'a dyn Store) -> Self {
        Self { store, read: BTreeMap::new(), written: BTreeMap::new() }
    }

    /// Reads a key of the store. What this draft has written is not seen.
    pub(super) async fn find<T: DeserializeOwned + Send>(
        &mut self,
        key: &str,
    ) -> Result<Option<Found<T>>, RegistryError> {
        let found = self.store.get(key).await?;
        let mod_revision = found.as_ref().map_or(Revision(0), |entry| entry.mod_revision);
        // A key that is read twice must not have changed in between: the older revision stays in the comparison.
        self.read.entry(key.to_owned()).or_insert(mod_revision);
        found.map(Found::parse).transpose()
    }

    /// Reads a value.
    pub(super) async fn get<T: DeserializeOwned + Send>(
        &mut self,
        key: &str,
    ) -> Result<Option<T>, RegistryError> {
        Ok(self.find(key).await?.map(|found| found.value))
    }

    /// Reads a value that must be there because another key points to it.
    pub(super) async fn expect<T: DeserializeOwned + Send>(&mut self, key: &str) -> Result<T, RegistryError> {
        self.get(key).await?.ok_or_else(|| corrupt(key, "it is missing"))
    }

    /// Reads a whole range, without joining it to the comparisons: a hint, to be checked by key.
    pub(super) async fn peek_range(&self, prefix: &str) -> Result<Snapshot, RegistryError> {
        Ok(self.store.range(prefix).await?)
    }

    /// Writes a value.
    pub(super) fn put<T: Serialize>(&mut self, key: String, value: &T) -> Result<(), RegistryError> {
        let value = serde_json::to_vec(value).map_err(|error| corrupt(&key, &error.to_string()))?;
        self.written.insert(key.clone(), Op::Put { key, value });
        Ok(())
    }

    /// Deletes a key.
    pub(super) fn delete(&mut self, key: String) {
        self.written.insert(key.clone(), Op::Delete { key });
    }

    pub(super) fn into_transaction(self) -> Transaction {
        let compares =
            self.read.into_iter().map(|(key, mod_revision)| Compare { key, mod_revision }).collect();
        Transaction { compares, ops: self.written.into_values().collect() }
    }
}

impl<T: DeserializeOwned> Found<T> {
    fn parse(entry: KeyValue) -> Result<Self, RegistryError> {
        Ok(Self {
            value: parse(&entry.key, &entry.value)?,
            create_revision: entry.create_revision,
            mod_revision: entry.mod_revision,
        })
    }
}

/// Reads a stored value.
pub(super) fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, RegistryError> {
    serde_json::from_slice(value).map_err(|error| corrupt(key, &error.to_string()))
}
