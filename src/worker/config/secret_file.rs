//! Secrets that lie in files: which files there are, who may read them, and what they must hold.
//!
//! Whoever can read the file of a key or of a token has it, so one that everybody may read is refused, and so is one
//! that others may write. A group may read: that is how systemd and Kubernetes hand secrets to a process. No text made
//! here repeats what a file holds.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::{Errors, Origin};
use super::read::Section;
use super::{Secret, values};
use crate::StoreKey;
use crate::worker::url;

/// Longest file of a secret, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A token can be tried out, so it must not be short: 16 characters are 64 bits even as hexadecimal digits.
const TOKEN_CHARS_MIN: usize = 16;
const TOKEN_CHARS_MAX: usize = 1024;

/// Rights that make a file no secret: of the group to write, of everybody to anything.
const EXPOSING: u32 = 0o027;

/// What a file of a secret holds, and who may read it.
#[derive(Clone)]
pub struct SecretContents {
    /// What is in it.
    pub bytes: Zeroizing<Vec<u8>>,
    /// Its mode, as `stat` gives it.
    pub mode: u32,
}

impl SecretContents {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is longer than any secret.
    pub fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mode = file.metadata()?.mode();
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::other(format!("it is longer than {FILE_BYTES_MAX} bytes")));
        }
        Ok(Self { bytes, mode })
    }
}

impl std::fmt::Debug for SecretContents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretContents(..)")
    }
}

/// A file that a key names.
#[derive(Clone, Debug)]
pub(super) struct SecretFile {
    pub(super) path: PathBuf,
    origin: Origin,
    key: String,
}

impl SecretFile {
    /// The file that a key names; `""` is none.
    pub(super) fn read(section: &mut Section<'_>, key: &'static str) -> Option<Self> {
        let path = section.read(key, values::string).filter(|path| !path.is_empty())?;
        let (origin, key) = (section.origin_of(key), section.path_of(key));
        Some(Self { path: path.into(), origin, key })
    }
}

/// All files of secrets.
#[derive(Clone, Debug, Default)]
pub(super) struct Secrets {
    pub(super) url: Option<SecretFile>,
    pub(super) tls_key: Option<SecretFile>,
    /// The first key that is about certificates.
    pub(super) tls_origin: Option<(Origin, String)>,
    pub(super) store_key: Option<SecretFile>,
    pub(super) http_token: Option<SecretFile>,
}

/// Reads them, and notes what is wrong.
pub(super) struct SecretFiles<'a, F> {
    pub(super) read_file: F,
    pub(super) errors: &'a Errors,
}

impl<F: FnMut(&Path) -> io::Result<SecretContents>> SecretFiles<'_, F> {
    /// The broker's url; a warning, if everybody can read it.
    pub(super) fn url(&mut self, file: &SecretFile) -> Option<(Secret, Option<String>)> {
        let contents = self.contents(file)?;
        let checked = text(&contents.bytes).and_then(|url| {
            url::check_broker(url, cfg!(feature = "tls"))?;
            Ok(Secret::new(url))
        });
        let warning = exposed(file, &contents);
        self.noted(file, checked).map(|url| (url, warning))
    }

    /// The key of our certificate, which the broker's part reads again.
    pub(super) fn tls_key(&mut self, file: &SecretFile) {
        let read = self.private(file);
        drop(read);
    }

    /// The key of the store.
    pub(super) fn store_key(&mut self, file: &SecretFile) -> Option<StoreKey> {
        let contents = self.private(file)?;
        let key = StoreKey::parse(&contents.bytes).map_err(|error| error.to_string());
        self.noted(file, key)
    }

    /// The token of the endpoint.
    pub(super) fn token(&mut self, file: &SecretFile) -> Option<Secret> {
        let contents = self.private(file)?;
        let token = text(&contents.bytes).and_then(|token| {
            let chars = token.len();
            if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err("a token is visible ASCII without blanks".to_owned());
            }
            if !(TOKEN_CHARS_MIN..=TOKEN_CHARS_MAX).contains(&chars) {
                return Err(format!(
                    "a token has {TOKEN_CHARS_MIN} to {TOKEN_CHARS_MAX} characters, this one {chars}; make one by \
                     `openssl rand -hex 32`"
                ));
            }
            Ok(Secret::new(token))
        });
        self.noted(file, token)
    }

    /// What a file holds that nobody else may see.
    fn private(&mut self, file: &SecretFile) -> Option<SecretContents> {
        let contents = self.contents(file)?;
        match exposed(file, &contents) {
            None => Some(contents),
            Some(problem) => self.noted(file, Err(problem)),
        }
    }

    fn contents(&mut self, file: &SecretFile) -> Option<SecretContents> {
        let read = (self.read_file)(&file.path);
        self.noted(file, read.map_err(|error| format!("cannot be read: {error}")))
    }

    fn noted<T>(&self, file: &SecretFile, read: Result<T, String>) -> Option<T> {
        read.map_err(|problem| {
            let problem = format!("{}: {problem}", file.path.display());
            self.errors.add(file.origin.clone(), file.key.clone(), problem);
        })
        .ok()
    }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map(str::trim).map_err(|_| "is no text".to_owned())
}

/// That others have the secret too, and what to run.
fn exposed(file: &SecretFile, contents: &SecretContents) -> Option<String> {
    let mode = contents.mode & 0o777;
    (mode & EXPOSING != 0).then(|| {
        let shown = file.path.display();
        format!("others may read or write it (mode {mode:04o}): run `chmod 600 {shown}`")
    })
}
