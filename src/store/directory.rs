//! The store's directory: made, owned by one process, with a note beside the engine's files.
//!
//! All of it is on stable storage when it returns. Knows nothing of what the engine writes.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::backend::StoreError;

/// How often a locked store is tried again: after a kill -9 the system may hold the lock for a moment.
pub(super) const LOCK_TRIES: u32 = 25;
pub(super) const LOCK_RETRY_DELAY: Duration = Duration::from_millis(200);

/// Locked by the process that has the store open.
pub(super) const LOCK: &str = "onceward.lock";

/// Holds the note; made when the store's first commit is on disk. A directory with it and without rows has lost them.
pub(super) const NOTE: &str = "onceward.note";

/// Makes the directory and all above it that are missing; gives those that got a new entry.
pub(super) fn make_directory(path: &Path) -> io::Result<Vec<PathBuf>> {
    let parents = path
        .ancestors()
        .skip(1)
        .map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    let mut made = Vec::new();
    for (directory, parent) in path.ancestors().zip(parents) {
        made.push(parent.to_owned());
        if directory.exists() || parent.exists() {
            break;
        }
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    Ok(made)
}

/// Takes the store for this process; after a kill -9 the system may hold the lock for a moment.
pub(super) fn lock(path: &Path) -> Result<File, StoreError> {
    let unusable = |error: io::Error| StoreError::Unusable {
        path: path.to_owned(),
        reason: format!("locking it: {error}"),
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path.join(LOCK))
        .map_err(unusable)?;
    for attempt in 1.. {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if attempt < LOCK_TRIES => {
                std::thread::sleep(LOCK_RETRY_DELAY);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse { path: path.to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
    }
    Ok(file)
}

/// Replaces the note: after a crash there is the old one or the new one.
pub(super) fn write_note(path: &Path, note: &[u8]) -> io::Result<()> {
    replace_file(path, NOTE, note)
}

/// Replaces a file in the directory, or makes it: after a crash there is the old one or the new one.
pub(super) fn replace_file(path: &Path, name: &str, contents: &[u8]) -> io::Result<()> {
    let new = path.join(format!("{name}.new"));
    let mut file = File::create(&new)?;
    file.write_all(contents)?;
    file.sync_all()?;
    std::fs::rename(new, path.join(name))?;
    File::open(path)?.sync_all()
}

/// The note that was left last.
pub(super) fn read_note(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path.join(NOTE)) {
        // Left by the first commit, before there was anything to note.
        Ok(note) if note.is_empty() => Ok(None),
        Ok(note) => Ok(Some(note)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether anything was ever committed in this directory.
pub(super) fn was_used(path: &Path) -> bool {
    path.join(NOTE).exists()
}
