//! The archive: a gzipped tar file with one folder of the archive's own name.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use time::OffsetDateTime;

/// Mode of the archive, and of the files in it.
const MODE: u32 = 0o600;
/// What the archive's name ends in; its folder is called what stands before.
const SUFFIX: &str = ".tar.gz";

/// An archive that is not written yet. Dropped, it is gone.
pub(super) struct Archive {
    path: PathBuf,
    file: Option<File>,
    at: OffsetDateTime,
}

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub(super) struct ArchiveError {
    path: PathBuf,
    source: io::Error,
}

impl Archive {
    /// Makes the file, which must not be there.
    pub(super) fn create(path: &Path, at: OffsetDateTime) -> Result<Self, ArchiveError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(path)
            .map_err(|source| ArchiveError { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file: Some(file), at })
    }

    /// Writes names and contents.
    pub(super) fn write(mut self, files: Vec<(String, Vec<u8>)>) -> Result<(), ArchiveError> {
        self.try_write(files).map_err(|source| ArchiveError { path: self.path.clone(), source })?;
        self.file = None;
        Ok(())
    }

    fn try_write(&self, files: Vec<(String, Vec<u8>)>) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let folder = Path::new(name.strip_suffix(SUFFIX).unwrap_or("mesh-bugreport"));
        let mut tar = tar::Builder::new(GzEncoder::new(BufWriter::new(file), Compression::default()));
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(MODE);
            header.set_mtime(u64::try_from(self.at.unix_timestamp()).unwrap_or_default());
            tar.append_data(&mut header, folder.join(name), content.as_slice())?;
        }
        tar.into_inner()?.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if self.file.is_some() {
            // What was begun and not ended helps nobody.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read, os::unix::fs::PermissionsExt};

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn what_is_put_in_comes_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.tar.gz");
        let files =
            [("one.txt", "1"), ("sub/two.txt", "2")].map(|(name, text)| (name.to_owned(), text.into()));
        let archive = Archive::create(&path, OffsetDateTime::UNIX_EPOCH).unwrap();
        archive.write(files.to_vec()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        let mut tar = tar::Archive::new(GzDecoder::new(File::open(&path).unwrap()));
        let read = tar.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (entry.path().unwrap().display().to_string(), text)
        });
        let wanted = [("report/one.txt", "1"), ("report/sub/two.txt", "2")];
        assert_eq!(
            read.collect::<BTreeMap<_, _>>(),
            wanted.map(|(name, text)| (name.to_owned(), text.to_owned())).into()
        );
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_half_written_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.tar.gz");
        fs::write(&path, "mine").unwrap();
        let error = Archive::create(&path, OffsetDateTime::UNIX_EPOCH).err().unwrap();
        assert!(error.to_string().contains("report.tar.gz"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        fs::remove_file(&path).unwrap();
        drop(Archive::create(&path, OffsetDateTime::UNIX_EPOCH).unwrap());
        assert!(!path.exists());
    }
}
