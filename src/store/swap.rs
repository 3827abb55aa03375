//! Replacing a store as a whole: the new one is built in a directory inside the old one's, then takes its place.
//!
//! Inside, because the store's directory may be a mount, which can neither be renamed nor have a neighbour. A marker
//! says how far it is; whoever opens the store next finishes what was decided, or throws away what was not. So after a
//! crash there is the old store or the new one, never a mixture and never none. All is done by who holds the lock.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::directory::{self, LOCK};

/// Where the new store is built.
const NEW: &str = "onceward.new";

/// Says how far the replacement is; without it there is nothing to finish.
const MARKER: &str = "onceward.swap";

/// The engine's files and directories in a store, beside its snapshots.
const ENGINE_FILES: [&str; 3] = ["db", "conf", "blobs"];

/// What a file system may have in an empty directory.
const FOREIGN: &str = "lost+found";

/// How far a replacement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is no old store, and the new one is not whole yet: nothing may be opened.
    Importing,
    /// The new one is whole; files of the old one go.
    Removing,
    /// Files of the new one come.
    Moving,
}

impl Phase {
    const ALL: [Self; 3] = [Self::Importing, Self::Removing, Self::Moving];

    const fn text(self) -> &'static str {
        match self {
            Self::Importing => "importing",
            Self::Removing => "removing",
            Self::Moving => "moving",
        }
    }
}

/// The directory for the new store.
pub(super) fn new_store(path: &Path) -> PathBuf {
    path.join(NEW)
}

/// Whether there is an engine, or a replacement that has begun and is not finished.
pub(super) fn has_files(path: &Path) -> bool {
    ENGINE_FILES.into_iter().chain([MARKER]).any(|name| path.join(name).exists())
}

/// Whether there is nothing in the directory that an import would replace.
pub(super) fn is_vacant(path: &Path) -> io::Result<bool> {
    let importing = matches!(phase(path)?, Some(Phase::Importing));
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name();
        let marker_begun = name.to_string_lossy() == format!("{MARKER}.new");
        let left_over = marker_begun || importing && (name == NEW || name == MARKER);
        if name != LOCK && name != FOREIGN && !left_over {
            return Ok(false);
        }
    }
    Ok(true)
}

/// From now on the directory is refused as a store, until the import is whole or given up.
pub(super) fn begin_import(path: &Path) -> io::Result<()> {
    enter(path, Phase::Importing)?;
    remove(&path.join(NEW))
}

/// Throws away what was built.
pub(super) fn give_up(path: &Path) -> io::Result<()> {
    remove(&path.join(NEW))?;
    remove(&path.join(MARKER))?;
    sync(path)
}

/// Puts the new store, whole and closed, in the place of the old one.
pub(super) fn complete(path: &Path) -> io::Result<()> {
    sync_tree(&path.join(NEW))?;
    enter(path, Phase::Removing)?;
    settle(path).map(drop)
}

/// What is to be done with a store before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// It can be opened.
    Whole,
    /// An import into it has not ended.
    Unfinished,
}

/// Finishes or throws away what a crash has interrupted.
pub(super) fn settle(path: &Path) -> io::Result<Settled> {
    match phase(path)? {
        None => remove(&path.join(NEW))?,
        Some(Phase::Importing) => return Ok(Settled::Unfinished),
        Some(Phase::Removing) => {
            remove_old(path)?;
            enter(path, Phase::Moving)?;
            move_new(path)?;
        }
        Some(Phase::Moving) => move_new(path)?,
    }
    Ok(Settled::Whole)
}

fn remove_old(path: &Path) -> io::Result<()> {
    for name in ENGINE_FILES {
        remove(&path.join(name))?;
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("snap.") {
            remove(&entry.path())?;
        }
    }
    sync(path)
}

fn move_new(path: &Path) -> io::Result<()> {
    let new = path.join(NEW);
    if new.exists() {
        for entry in std::fs::read_dir(&new)? {
            let entry = entry?;
            // The old lock is held, and stays the one that counts.
            if entry.file_name() != LOCK {
                std::fs::rename(entry.path(), path.join(entry.file_name()))?;
            }
        }
        sync(&new)?;
        sync(path)?;
    }
    give_up(path)
}

fn phase(path: &Path) -> io::Result<Option<Phase>> {
    let text = match std::fs::read_to_string(path.join(MARKER)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match Phase::ALL.into_iter().find(|phase| phase.text() == text.trim_end()) {
        Some(phase) => Ok(Some(phase)),
        None => Err(io::Error::other(format!("{MARKER} says {text:?}, which is unknown"))),
    }
}

fn enter(path: &Path, phase: Phase) -> io::Result<()> {
    directory::replace_file(path, MARKER, phase.text().as_bytes())
}

/// Removes a file or a directory with all that is in it; one that is not there is fine.
fn remove(path: &Path) -> io::Result<()> {
    let removed =
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn sync_tree(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            sync_tree(&entry?.path())?;
        }
    }
    sync(path)
}

/// Bytes of all files in a store's directory.
pub(super) fn files_bytes(path: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { files_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::directory::NOTE;
    use super::*;

    /// A directory with an old store, and a new one that is whole.
    fn scene() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path();
        fs::create_dir_all(path.join(NEW).join("blobs")).expect("made");
        fs::create_dir_all(path.join("blobs")).expect("made");
        fs::write(path.join("blobs/1"), "old").expect("written");
        for name in ["db", "conf", "snap.1", NOTE, LOCK] {
            fs::write(path.join(name), "old").expect("written");
        }
        for name in ["db", "conf", "snap.2", NOTE, LOCK] {
            fs::write(path.join(NEW).join(name), "new").expect("written");
        }
        dir
    }

    fn check_is_new(path: &Path) {
        for name in ["db", "conf", "snap.2", NOTE] {
            assert_eq!(fs::read_to_string(path.join(name)).expect("there"), "new", "{name}");
        }
        for name in [NEW, MARKER, "snap.1", "blobs/1"] {
            assert!(!path.join(name).exists(), "{name} is left");
        }
        assert_eq!(fs::read_to_string(path.join(LOCK)).expect("there"), "old");
    }

    #[test]
    fn a_replacement_that_was_decided_is_finished_wherever_it_stopped() {
        let dir = scene();
        complete(dir.path()).expect("complete");
        check_is_new(dir.path());

        let dir = scene();
        enter(dir.path(), Phase::Removing).expect("entered");
        fs::remove_file(dir.path().join("db")).expect("removed");
        assert_eq!(settle(dir.path()).expect("settled"), Settled::Whole);
        check_is_new(dir.path());

        for moved in [vec!["db"], vec!["conf", NOTE, "snap.2", "db", "blobs"]] {
            let dir = scene();
            remove_old(dir.path()).expect("removed");
            enter(dir.path(), Phase::Moving).expect("entered");
            for name in moved {
                fs::rename(dir.path().join(NEW).join(name), dir.path().join(name)).expect("moved");
            }
            assert_eq!(settle(dir.path()).expect("settled"), Settled::Whole);
            check_is_new(dir.path());
        }
    }

    #[test]
    fn a_replacement_that_was_not_decided_leaves_the_old_store() {
        let dir = scene();
        assert_eq!(settle(dir.path()).expect("settled"), Settled::Whole);
        assert_eq!(fs::read_to_string(dir.path().join("db")).expect("there"), "old");
        assert!(!dir.path().join(NEW).exists());
    }

    #[test]
    fn an_import_that_has_not_ended_is_refused_as_a_store_and_can_be_begun_again() {
        let dir = tempfile::tempdir().expect("a directory");
        begin_import(dir.path()).expect("begun");
        fs::create_dir(new_store(dir.path())).expect("made");
        assert_eq!(settle(dir.path()).expect("settled"), Settled::Unfinished);
        assert!(is_vacant(dir.path()).expect("read"));
        fs::write(dir.path().join("db"), "old").expect("written");
        assert!(!is_vacant(dir.path()).expect("read"));
    }
}
