//! One checksummed file of the state directory, with the generation before it kept beside it.
//!
//! ```text
//! write X.new, sync -> X becomes X.previous (only if it is whole) -> X.new becomes X -> sync the directory
//! ```
//!
//! A crash between any two steps leaves a whole generation under one of the two names, and [`StateFile::load`]
//! takes the newer one that is whole. A damaged file never pushes out a good one.

use std::{marker::PhantomData, path::PathBuf};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    error::{DamageKind, StateError},
    sealed::{self, Opened},
    state_dir::{Secrecy, StateDir},
};

/// A file that holds a `T`.
#[derive(Debug)]
pub struct StateFile<T> {
    dir: StateDir,
    /// The file's name, and the kind that its header states.
    name: &'static str,
    _content: PhantomData<fn() -> T>,
}

/// What was found on disk.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The content.
    pub value: T,
    /// Why it is not the newest generation, if it is not.
    pub fallback: Option<StateError>,
}

// Derived, it would ask for a `T` that is `Clone`.
impl<T> Clone for StateFile<T> {
    fn clone(&self) -> Self {
        Self { dir: self.dir.clone(), name: self.name, _content: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned> StateFile<T> {
    /// Names a file of a state directory. Nothing is read or written yet.
    #[must_use]
    pub fn new(dir: StateDir, name: &'static str) -> Self {
        Self { dir, name, _content: PhantomData }
    }

    /// Reads the newest generation that is whole; `None` if there never was one.
    ///
    /// # Errors
    /// When there are files, and none of them is whole.
    pub fn load(&self) -> Result<Option<Loaded<T>>, StateError> {
        let error = match self.read(self.name) {
            Ok(Some(opened)) => return Ok(Some(Loaded { value: opened.value, fallback: None })),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        match (self.read(&self.previous_name()), error) {
            (Ok(Some(opened)), error) => {
                let fallback = error.unwrap_or_else(|| StateError::Missing { path: self.path() });
                Ok(Some(Loaded { value: opened.value, fallback: Some(fallback) }))
            }
            (Ok(None), None) => Ok(None),
            (Ok(None) | Err(_), Some(error)) | (Err(error), None) => Err(error),
        }
    }

    /// Writes a new generation.
    ///
    /// # Errors
    /// When it could not be written; the generation before it is still there then.
    pub fn store(&self, value: &T) -> Result<(), StateError> {
        let current = self.read(self.name).ok().flatten();
        let previous = || self.read(&self.previous_name()).ok().flatten();
        let generation = current.as_ref().map(|opened| opened.generation);
        let next =
            generation.or_else(|| previous().map(|opened| opened.generation)).map_or(1, |last| last + 1);
        let content = sealed::seal(self.name, next, value).map_err(|error| StateError::Damaged {
            path: self.path(),
            why: DamageKind::Content(error.to_string()),
        })?;
        let new = self.dir.write_temporary(self.name, &content)?;
        if current.is_some() {
            self.dir.rename(&self.path(), &self.previous_name())?;
        }
        self.dir.rename(&new, self.name)?;
        self.dir.sync()
    }

    fn path(&self) -> PathBuf {
        self.dir.join(self.name)
    }

    fn previous_name(&self) -> String {
        format!("{}.previous", self.name)
    }

    fn read(&self, name: &str) -> Result<Option<Opened<T>>, StateError> {
        let Some(content) = self.dir.read(name, Secrecy::Plain)? else { return Ok(None) };
        sealed::open(self.name, &content)
            .map(Some)
            .map_err(|why| StateError::Damaged { path: self.dir.join(name), why })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file() -> (tempfile::TempDir, StateFile<Vec<u32>>) {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::create(&parent.path().join("state")).unwrap();
        (parent, StateFile::new(dir, "numbers.json"))
    }

    #[test]
    fn nothing_is_not_an_error() {
        assert!(file().1.load().unwrap().is_none());
    }

    #[test]
    fn a_file_cut_at_any_byte_gives_the_generation_before() {
        let (_parent, file) = file();
        file.store(&vec![1]).unwrap();
        file.store(&vec![2]).unwrap();
        let whole = fs::read(file.path()).unwrap();
        for cut in 0..whole.len() {
            fs::write(file.path(), &whole[..cut]).unwrap();
            let loaded = file.load().unwrap().unwrap();
            assert_eq!(loaded.value, [1]);
            assert!(
                loaded.fallback.unwrap().to_string().contains("numbers.json: is damaged"),
                "cut at {cut}"
            );
        }
        fs::remove_file(file.path()).unwrap();
        assert_eq!(file.load().unwrap().unwrap().value, [1]);
    }

    #[test]
    fn a_damaged_file_does_not_push_out_a_good_one() {
        let (_parent, file) = file();
        file.store(&vec![1]).unwrap();
        file.store(&vec![2]).unwrap();
        fs::write(file.path(), "garbage").unwrap();
        file.store(&vec![3]).unwrap();
        assert_eq!(file.load().unwrap().unwrap().value, [3]);
        fs::write(file.path(), "garbage").unwrap();
        assert_eq!(file.load().unwrap().unwrap().value, [1]);
    }

    #[test]
    fn two_damaged_files_are_an_error_that_names_the_first() {
        let (_parent, file) = file();
        file.store(&vec![1]).unwrap();
        fs::write(file.path(), "garbage").unwrap();
        let error = file.load().unwrap_err().to_string();
        assert!(error.ends_with("numbers.json: is damaged: it has no header"), "{error}");
    }

    #[test]
    fn what_a_crash_left_behind_is_replaced() {
        let (_parent, file) = file();
        fs::write(file.dir.join(".numbers.json.new"), "half").unwrap();
        file.store(&vec![1]).unwrap();
        assert!(!file.dir.join(".numbers.json.new").exists());
        assert_eq!(file.load().unwrap().unwrap().value, [1]);
    }
}
