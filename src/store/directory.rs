//! The store's directory: made, owned by one process, with a note beside the engine's files.
//!
//! All of it is on stable storage when it returns. Knows nothing of what the engine writes.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
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

/// Rights of others to write, and rights of others to anything.
const OTHERS_WRITE: u32 = 0o022;
const OTHERS: u32 = 0o077;

/// Whoever else may write in the directory decides what was done: then it is no store.
///
/// Of the system's administrator, and where others may only look, it may be.
pub(super) fn refuse_others(path: &Path) -> Result<(), StoreError> {
    let metadata = std::fs::metadata(path).map_err(|error| StoreError::Unusable {
        path: path.to_owned(),
        reason: format!("reading its rights: {error}"),
    })?;
    let exposed = |problem: String, remedy: String| {
        Err(StoreError::Exposed { path: path.to_owned(), problem, remedy })
    };
    let (owner, user, shown) = (metadata.uid(), nix::unistd::geteuid().as_raw(), path.display());
    if owner != user && owner != 0 {
        return exposed(
            format!("it belongs to user {owner}, and this is user {user}"),
            format!("run `chown -R {user} {shown}`, or name a directory that is not there yet"),
        );
    }
    let mode = metadata.mode() & 0o7777;
    if mode & OTHERS_WRITE != 0 {
        return exposed(
            format!("its mode {mode:04o} lets others write in it"),
            format!("run `chmod 700 {shown}`, or name a directory in it that is not there yet"),
        );
    }
    Ok(())
}

/// Takes from others what rights they have to the store's files: the engine gives some to all.
pub(super) fn close_to_others(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_ours = ["db", "conf", "blobs"].contains(&&*name)
            || name.starts_with("snap.")
            || name.starts_with("onceward.");
        // Gone meanwhile: the engine renames its snapshots.
        let Ok(metadata) = entry.metadata() else { continue };
        let mode = metadata.mode();
        if is_ours && !metadata.is_symlink() && mode & OTHERS != 0 {
            let closed = std::fs::Permissions::from_mode(mode & 0o7777 & !OTHERS);
            match std::fs::set_permissions(entry.path(), closed) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
    }
    Ok(())
}

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
    let mut options = OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&new)?;
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
