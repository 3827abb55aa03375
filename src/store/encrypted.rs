//! Encryption at rest: between the store and its engine, each value is encrypted on its way down.
//!
//! XChaCha20-Poly1305 with a random nonce for each value, and the row's key as associated data: a value that was
//! changed or put under another key does not decrypt. What does not is handed up as it is: it begins with a byte that
//! no row begins with, so whoever decodes it calls it damaged, and looks at the next one. Row keys stay readable; they
//! are hashes and numbers. Does not notice a whole store that was put back to an earlier state.
//!
//! ```text
//! a row            0xE1                                                  nonce (24 bytes)   value   tag (16)
//! the store's own  0xE1   scheme (1)   id of the key (8)   salt (16)   CRC (4)   nonce (24)   value   tag (16)
//! ```
//!
//! Rows are encrypted with a key made of the operator's key and the salt, so rows of two stores cannot be exchanged.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use futures_util::future::{BoxFuture, FutureExt as _};
use zeroize::Zeroizing;

use super::StoreOptions;
use super::backend::{Backend, Batch, Row, STORED_BYTES_MAX, StoreError, VALUE_BYTES_MAX};
use super::key::StoreKey;
use super::record::{ENCRYPTED, META_KEY, VALUE_FORMAT};

/// How values are encrypted; another way has another number.
const SCHEME: u8 = 1;

const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
const KEY_ID_BYTES: usize = 8;
const SALT_BYTES: usize = 16;
const HEADER_BYTES: usize = 2 + KEY_ID_BYTES + SALT_BYTES + 4;

/// Of the largest value; the store's own row is small. 17 of them in a leaf are still far from a page that spills.
const _: () =
    assert!(VALUE_BYTES_MAX + 1 + NONCE_BYTES + TAG_BYTES <= STORED_BYTES_MAX, "it must fit");

/// Names what the associated data is of, so that the note is never taken for a row.
const OF_ROW: &[u8] = b"row";
const OF_NOTE: &[u8] = b"note";

/// Puts encryption between the store and its engine, if the store is encrypted, and if the key is the right one.
///
/// A store with nothing in it becomes an encrypted one if there is a key.
pub(super) async fn wrap(
    inner: Arc<dyn Backend>,
    options: &StoreOptions,
) -> Result<Arc<dyn Backend>, StoreError> {
    let path = &options.path;
    let wrong = |reason: String| StoreError::Key { path: path.clone(), reason };
    let own = inner.get(META_KEY).await?;
    let format = own.as_deref().map(|own| own.first().copied().unwrap_or_default());
    match (format, &options.key) {
        (None, Some(key)) => {
            let mut salt = [0; SALT_BYTES];
            getrandom::fill(&mut salt).map_err(|error| StoreError::Unusable {
                path: path.clone(),
                reason: format!("the system gives no random salt: {error}"),
            })?;
            Ok(Arc::new(Encrypted::new(inner, key, salt, path)))
        }
        (Some(ENCRYPTED), None) => Err(wrong(
            "it is encrypted, and no key was given: name the file of its key in [store] key_file".to_owned(),
        )),
        (None | Some(_), None) => Ok(inner),
        (Some(VALUE_FORMAT), Some(_)) => Err(wrong(
            "it is not encrypted, and a key was given: take [store] key_file out, or move what it holds into an \
             encrypted store by `onceward store export` and `import`"
                .to_owned(),
        )),
        (Some(ENCRYPTED), Some(key)) => {
            let Some((of, salt)) = own.as_deref().and_then(read_header) else {
                return Err(damaged(path));
            };
            if of != key_id(key) {
                return Err(wrong(format!(
                    "it is encrypted with the key of id {}, and the one of [store] key_file has the id {}",
                    crate::identity::hex(&of),
                    crate::identity::hex(&key_id(key))
                )));
            }
            Ok(Arc::new(Encrypted::new(inner, key, salt, path)))
        }
        (Some(_), Some(_)) => Err(damaged(path)),
    }
}

fn damaged(path: &Path) -> StoreError {
    let reason = "the store's own row: neither encrypted nor plain".to_owned();
    StoreError::Damaged { path: path.to_owned(), reason }
}

/// Tells keys apart and says nothing of them.
fn key_id(key: &StoreKey) -> [u8; KEY_ID_BYTES] {
    let mut id = [0; KEY_ID_BYTES];
    let mut hasher = blake3::Hasher::new_derive_key("onceward 2026 store key id");
    hasher.update(key.expose());
    hasher.finalize_xof().fill(&mut id);
    id
}

/// The id of the key and the salt, of the store's own row.
fn read_header(own: &[u8]) -> Option<([u8; KEY_ID_BYTES], [u8; SALT_BYTES])> {
    let (header, _) = own.split_first_chunk::<HEADER_BYTES>()?;
    let (said, checksum) = header.split_last_chunk::<4>()?;
    let rest = said.strip_prefix(&[ENCRYPTED, SCHEME])?;
    let (id, salt) = rest.split_first_chunk::<KEY_ID_BYTES>()?;
    let is_whole = crc32fast::hash(said) == u32::from_le_bytes(*checksum);
    is_whole.then_some((*id, salt.try_into().ok()?))
}

/// An engine whose values are encrypted.
struct Encrypted {
    inner: Arc<dyn Backend>,
    cipher: XChaCha20Poly1305,
    /// What stands before the store's own row.
    header: Vec<u8>,
    path: PathBuf,
}

impl Encrypted {
    fn new(inner: Arc<dyn Backend>, key: &StoreKey, salt: [u8; SALT_BYTES], path: &Path) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("onceward 2026 store rows");
        hasher.update(key.expose());
        hasher.update(&salt);
        let mut of_rows = Zeroizing::new([0; StoreKey::BYTES]);
        hasher.finalize_xof().fill(of_rows.as_mut_slice());
        let mut header = vec![ENCRYPTED, SCHEME];
        header.extend_from_slice(&key_id(key));
        header.extend_from_slice(&salt);
        let checksum = crc32fast::hash(&header);
        header.extend_from_slice(&checksum.to_le_bytes());
        let cipher = XChaCha20Poly1305::new((&*of_rows).into());
        Self { inner, cipher, header, path: path.to_owned() }
    }

    fn header_of(&self, key: &[u8]) -> &[u8] {
        if key == META_KEY { &self.header } else { &[ENCRYPTED] }
    }

    fn encrypt(&self, header: &[u8], of: &[u8], value: &[u8]) -> Result<Vec<u8>, StoreError> {
        let failed = |what: &dyn std::fmt::Display| StoreError::Failed {
            path: self.path.clone(),
            reason: format!("encrypting: {what}").into(),
        };
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|error| failed(&error))?;
        let payload = Payload { msg: value, aad: of };
        let sealed = self.cipher.encrypt(&XNonce::from(nonce), payload);
        let sealed = sealed.map_err(|error| failed(&error))?;
        Ok([header, &nonce, &sealed].concat())
    }

    /// The value as it was written, or else as it lies there.
    fn decrypt(&self, header_bytes: usize, of: &[u8], stored: Vec<u8>) -> Vec<u8> {
        let sealed = stored.get(header_bytes..).and_then(|rest| rest.split_first_chunk());
        let value = sealed.and_then(|(nonce, sealed): (&[u8; NONCE_BYTES], _)| {
            let payload = Payload { msg: sealed, aad: of };
            self.cipher.decrypt(&XNonce::from(*nonce), payload).ok()
        });
        match value {
            Some(value) if stored.first() == Some(&ENCRYPTED) => value,
            // A plain row that somebody has put here is none of this store's.
            _ => {
                let mut stored = stored;
                if let Some(format) = stored.first_mut() {
                    *format = ENCRYPTED;
                }
                stored
            }
        }
    }

    fn decrypt_row(&self, key: &[u8], stored: Vec<u8>) -> Vec<u8> {
        self.decrypt(self.header_of(key).len(), &[OF_ROW, key].concat(), stored)
    }
}

impl Backend for Encrypted {
    fn get<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Vec<u8>>, StoreError>> {
        async move {
            let stored = self.inner.get(key).await?;
            Ok(stored.map(|stored| self.decrypt_row(key, stored)))
        }
        .boxed()
    }

    fn scan<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Row>, StoreError>> {
        async move {
            let rows = self.inner.scan(prefix, after, limit).await?;
            let decrypted = rows.into_iter().map(|(key, stored)| {
                let value = self.decrypt_row(&key, stored);
                (key, value)
            });
            Ok(decrypted.collect())
        }
        .boxed()
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let encrypted = batch.with_values(|key, value| {
                self.encrypt(self.header_of(key), &[OF_ROW, key].concat(), &value)
            })?;
            self.inner.commit(encrypted).await
        }
        .boxed()
    }

    fn note(&self) -> BoxFuture<'_, Result<Option<Vec<u8>>, StoreError>> {
        async move {
            let stored = self.inner.note().await?;
            Ok(stored.map(|stored| self.decrypt(1, OF_NOTE, stored)))
        }
        .boxed()
    }

    fn leave_note(&self, note: Vec<u8>) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let note = self.encrypt(&[ENCRYPTED], OF_NOTE, &note)?;
            self.inner.leave_note(note).await
        }
        .boxed()
    }

    fn disk_bytes(&self) -> Result<u64, StoreError> {
        self.inner.disk_bytes()
    }
}
