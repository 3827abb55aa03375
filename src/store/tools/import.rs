//! Makes a store of an export, in a directory that has none.
//!
//! All or nothing: until the last line has been read and its checksum is right, the directory is refused as a store.
//! Identities, numbers of queues, order and times stay; only where rows lie is new.

use std::fs::File;
use std::io::{self, BufRead, Read as _};
use std::path::{Path, PathBuf};

use super::super::backend::StoreError;
use super::super::{StoreOptions, directory, swap};
use super::Watch;
use super::line::{FORMAT_NAME, Header, LINE_BYTES_MAX, Line, VERSION};
use super::rebuild::{Rebuild, needs_directory, replace, unusable};
use super::restore::Restore;
use super::text::Hex;

/// What was imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// Lines, the first and last included.
    pub lines: u64,
    /// Records of messages.
    pub records: u64,
    /// What the export says that it left out, because it was damaged.
    pub left_out: u64,
}

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory has something in it: import into a missing or empty one.
    #[error("{path} is not empty: import into a missing or empty directory", path = .path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The export cannot be read.
    #[error("the export cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is no export, or was cut off or changed: make a new one.
    #[error("line {line} of the export: {problem}; nothing was imported")]
    Refused {
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
}

/// Makes the store in `options` of an export; blocks on `input`.
///
/// # Errors
///
/// Each of [`ImportError`]; the directory is empty then, but for its lock. If the process is killed meanwhile, no
/// worker starts on the directory until the import is run again or what is in it is removed.
pub async fn import(
    options: &StoreOptions,
    input: &mut (dyn BufRead + Send),
    watch: &mut dyn Watch,
) -> Result<Imported, ImportError> {
    needs_directory(options)?;
    let path = &options.path;
    let lock = take_empty(path)?;
    let imported = read(options, input, watch).await;
    match imported {
        Ok(imported) => {
            replace(path, &lock)?;
            Ok(imported)
        }
        Err(error) => {
            // Where this fails too, the directory stays refused as a store.
            let _ = swap::give_up(path);
            Err(error)
        }
    }
}

/// Makes the directory if it is missing, and takes it for this process.
fn take_empty(path: &Path) -> Result<File, ImportError> {
    let failed = |error: io::Error| unusable(path, "making the directory", &error);
    let made = directory::make_directory(path).map_err(failed)?;
    directory::refuse_others(path)?;
    // Before the lock, whose file would be put among whatever is there.
    let is_vacant = || swap::is_vacant(path).map_err(failed);
    let not_empty = || ImportError::NotEmpty { path: path.to_owned() };
    if !is_vacant()? {
        return Err(not_empty());
    }
    let lock = directory::lock(path)?;
    if !is_vacant()? {
        return Err(not_empty());
    }
    for parent in made {
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
    }
    swap::begin_import(path).map_err(failed)?;
    Ok(lock)
}

async fn read(
    options: &StoreOptions,
    input: &mut (dyn BufRead + Send),
    watch: &mut dyn Watch,
) -> Result<Imported, ImportError> {
    let mut lines = Lines { input, number: 0, line: Vec::new(), hasher: blake3::Hasher::new() };
    let header = header(&mut lines)?;
    let rebuild = Rebuild::begin(options).await?;
    let mut restore = Restore::begin(rebuild, header).await?;
    loop {
        let blake3 = lines.hasher.finalize();
        if !lines.next()? {
            return Err(lines.refused("it is missing: the export was cut off"));
        }
        let line = serde_json::from_slice(&lines.line)
            .map_err(|error| lines.refused(format!("it cannot be read: {error}")))?;
        let Line::End(end) = line else {
            restore.line(line).await.map_err(|error| error.at(lines.number))?;
            watch.progress(lines.number);
            continue;
        };
        if end.lines != lines.number - 1 || end.blake3 != Hex(*blake3.as_bytes()) {
            return Err(lines.refused("the checksum is another: the export was changed"));
        }
        let number = lines.number;
        if lines.next()? {
            return Err(lines.refused("it is behind the end"));
        }
        let (records, left_out) = restore.end().await.map_err(|error| error.at(number))?;
        return Ok(Imported { lines: number, records, left_out });
    }
}

fn header(lines: &mut Lines<'_>) -> Result<Header, ImportError> {
    if !lines.next()? {
        return Err(lines.refused("it is missing: the export is empty"));
    }
    let header: Header = serde_json::from_slice(&lines.line)
        .map_err(|error| lines.refused(format!("it begins no export: {error}")))?;
    if header.format != FORMAT_NAME {
        return Err(lines.refused(format!("its format is {:?}", header.format)));
    }
    if header.version != VERSION {
        let version = header.version;
        let problem = format!("it has version {version}, this release reads version {VERSION}");
        return Err(lines.refused(problem));
    }
    Ok(header)
}

/// The lines of an export, one at a time, and the hash of all so far.
struct Lines<'a> {
    input: &'a mut (dyn BufRead + Send),
    number: u64,
    line: Vec<u8>,
    hasher: blake3::Hasher,
}

impl Lines<'_> {
    /// Reads the next line; `false` if there is none.
    fn next(&mut self) -> Result<bool, ImportError> {
        self.line.clear();
        let read = (&mut *self.input).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(false);
        }
        self.number += 1;
        if !self.line.ends_with(b"\n") {
            return Err(self.refused("it has no end: the export was cut off, or it is none"));
        }
        self.hasher.update(&self.line);
        Ok(true)
    }

    fn refused(&self, problem: impl Into<String>) -> ImportError {
        ImportError::Refused { line: self.number.max(1), problem: problem.into() }
    }
}
