//! What a handler's success changes beside the record: the state of its key, outgoing messages.
//!
//! Pure: effects are staged in memory and become durable with the record of the message, all or none; those of an
//! attempt that fails are dropped. Knows nothing of where they are kept or how they are sent.

use std::error::Error;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::message::{Message, OUTGOING_ID_HEADER, Properties};
use crate::payload::{Codec, encode_postcard};

mod error;
mod sendable;
mod steps;

pub use self::error::EffectError;
pub use self::steps::Asked;
pub(crate) use self::steps::{StepFound, StepStore};

/// A type whose values are the state of an ordering key; on disk in postcard, which does not describe itself.
///
/// So a stored value carries the name and version of its type, and another name or version is read by
/// [`State::migrate`] or not at all. Raise the version with every change of the type's fields.
///
/// ```
/// use onceward::{OldState, State};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Default, Serialize, Deserialize)]
/// struct Account { cents: i64, transfers: u32 }
///
/// impl State for Account {
///     const NAME: &'static str = "account";
///     const VERSION: u32 = 2;
///
///     fn migrate(old: OldState<'_>) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
///         match old.version {
///             1 => Ok(Self { cents: old.decode()?, transfers: 0 }), // Was an i64.
///             _ => Err("no such version".into()),
///         }
///     }
/// }
/// ```
pub trait State: Serialize + DeserializeOwned {
    /// What the type is called on disk; never change it.
    const NAME: &'static str;

    /// Version of the type's fields; default 1.
    const VERSION: u32 = 1;

    /// Makes a value of one that was stored under another name or version.
    ///
    /// # Errors
    ///
    /// If it is of no known name and version (default): the handler that asked for the state gets
    /// [`EffectError::StateUnreadable`].
    fn migrate(old: OldState<'_>) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let OldState { name, version, .. } = old;
        Err(format!("nothing migrates {name:?} version {version}").into())
    }
}

/// A stored state of another name or version than the type that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct OldState<'a> {
    /// [`State::NAME`] when it was stored.
    pub name: &'a str,
    /// [`State::VERSION`] when it was stored.
    pub version: u32,
    bytes: &'a [u8],
}

impl OldState<'_> {
    /// Decodes it as the type that it was.
    ///
    /// # Errors
    ///
    /// If the stored bytes are no value of `T`, or one with bytes left over.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Box<dyn Error + Send + Sync>> {
        decode_whole(self.bytes)
    }
}

macro_rules! plain_states {
    ($($type:ty),*) => {
        $(impl State for $type {
            const NAME: &'static str = stringify!($type);
        })*
    };
}

plain_states!(bool, i8, i16, i32, i64, i128, u8, u16, u32, u64, u128, f32, f64, char, String);

/// An encoded state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EncodedState {
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) bytes: Bytes,
}

impl EncodedState {
    pub(crate) fn encode<S: State>(state: &S, bytes_max: usize) -> Result<Self, EffectError> {
        const { assert!(S::NAME.len() <= NAME_BYTES_MAX, "State::NAME is longer than 255 bytes") };
        let name = S::NAME;
        let bytes = encode_postcard(state, bytes_max).map_err(|error| {
            EffectError::of_encoding(error, format!("the state {name}"), || {
                EffectError::StateTooLarge { name, bytes_max }
            })
        })?;
        Ok(Self { name: name.to_owned(), version: S::VERSION, bytes: bytes.into() })
    }

    pub(crate) fn decode<S: State>(&self) -> Result<S, EffectError> {
        let Self { name, version, bytes } = self;
        let decoded = if name == S::NAME && *version == S::VERSION {
            decode_whole(bytes)
        } else {
            S::migrate(OldState { name, version: *version, bytes })
        };
        decoded.map_err(|source| EffectError::StateUnreadable {
            name: S::NAME,
            version: S::VERSION,
            found: name.clone(),
            found_version: *version,
            source,
        })
    }
}

fn decode_whole<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Box<dyn Error + Send + Sync>> {
    match postcard::take_from_bytes(bytes)? {
        (value, []) => Ok(value),
        (_, left) => Err(format!("{} bytes are left over", left.len()).into()),
    }
}

/// How large effects may be, and how they are encoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) codec: Codec,
    pub(crate) state_bytes_max: usize,
    pub(crate) result_bytes_max: usize,
    pub(crate) outgoing_bytes_max: usize,
}

/// The state of a key as a handler finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CurrentState {
    pub(crate) value: Option<EncodedState>,
    /// The highest version that a message of the key has carried.
    pub(crate) latest: Option<u64>,
}

/// State as an attempt finds and changes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct StagedState {
    current: CurrentState,
    /// The highest version before this attempt.
    found_latest: Option<u64>,
    is_changed: bool,
}

impl StagedState {
    pub(crate) const fn new(current: CurrentState) -> Self {
        Self { found_latest: current.latest, current, is_changed: false }
    }

    pub(crate) fn get<S: State>(&self) -> Result<Option<S>, EffectError> {
        self.current.value.as_ref().map(EncodedState::decode).transpose()
    }

    pub(crate) fn set<S: State>(&mut self, state: &S, limits: &Limits) -> Result<(), EffectError> {
        let value = Some(EncodedState::encode(state, limits.state_bytes_max)?);
        self.is_changed |= self.current.value != value;
        self.current.value = value;
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.is_changed |= self.current.value.is_some();
        self.current.value = None;
    }

    pub(crate) fn is_stale(&mut self, version: u64) -> bool {
        // What this attempt has staged itself makes nothing stale: it may ask again.
        let is_stale = self.found_latest.is_some_and(|latest| version <= latest);
        if !is_stale {
            self.current.latest = self.current.latest.max(Some(version));
            self.is_changed = true;
        }
        is_stale
    }

    /// The state to commit, if this attempt changed it.
    pub(crate) fn into_change(self) -> Option<CurrentState> {
        self.is_changed.then_some(self.current)
    }
}

/// Messages that go out if the attempt succeeds.
#[derive(Debug, Default)]
pub(crate) struct StagedMessages {
    messages: Vec<Message>,
    bytes: usize,
}

/// Longest name of a step or a state.
const NAME_BYTES_MAX: usize = 255;

impl StagedMessages {
    pub(crate) fn publish<T: Serialize + ?Sized>(
        &mut self,
        exchange: &str,
        routing_key: &str,
        value: &T,
        limits: &Limits,
    ) -> Result<&mut Properties, EffectError> {
        let bytes_max = limits.outgoing_bytes_max;
        let (body, content_type) = limits.codec.encode(value, bytes_max).map_err(|error| {
            let what = format!("a message for exchange {exchange:?}");
            EffectError::of_encoding(error, what, || EffectError::OutgoingTooLarge { bytes_max })
        })?;
        let properties =
            Properties { content_type: Some(content_type.to_owned()), ..Properties::default() };
        let (exchange, routing_key) = (exchange.to_owned(), routing_key.to_owned());
        self.emit(Message { exchange, routing_key, properties, body: body.into() }, limits)
    }

    pub(crate) fn emit(
        &mut self,
        message: Message,
        limits: &Limits,
    ) -> Result<&mut Properties, EffectError> {
        let bytes = self.bytes.saturating_add(sendable_bytes(&message)?);
        if bytes > limits.outgoing_bytes_max {
            return Err(EffectError::OutgoingTooLarge { bytes_max: limits.outgoing_bytes_max });
        }
        self.bytes = bytes;
        self.messages.push(message);
        #[expect(clippy::expect_used, reason = "it was pushed in the line before")]
        let message = self.messages.last_mut().expect("it was pushed just now");
        Ok(&mut message.properties)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Looks at the messages once more, with the properties that the handler gave them.
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), EffectError> {
        let mut bytes: usize = 0;
        for message in &self.messages {
            bytes = bytes.saturating_add(sendable_bytes(message)?);
        }
        if bytes > limits.outgoing_bytes_max {
            return Err(EffectError::OutgoingTooLarge { bytes_max: limits.outgoing_bytes_max });
        }
        Ok(())
    }

    /// The messages in the order in which they were staged, each persistent and with its id.
    pub(crate) fn into_messages(self, id: impl Fn(u32) -> String) -> Vec<Message> {
        (0..)
            .zip(self.messages)
            .map(|(index, mut message)| {
                message.properties.message_id = Some(id(index));
                message.properties.delivery_mode = Some(2);
                // An earlier hop's; left in, it would be taken for the id of this message.
                message.properties.headers.remove(OUTGOING_ID_HEADER);
                message
            })
            .collect()
    }
}

fn sendable_bytes(message: &Message) -> Result<usize, EffectError> {
    sendable::bytes(message).map_err(|reason| EffectError::Unsendable {
        exchange: message.exchange.clone(),
        routing_key: message.routing_key.clone(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    const LIMITS: Limits = Limits {
        codec: Codec::Json,
        state_bytes_max: 100,
        result_bytes_max: 100,
        outgoing_bytes_max: 1000,
    };

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Account {
        cents: i64,
    }

    impl State for Account {
        const NAME: &'static str = "account";
        const VERSION: u32 = 2;

        fn migrate(old: OldState<'_>) -> Result<Self, Box<dyn Error + Send + Sync>> {
            match (old.name, old.version) {
                ("i64", 1) => Ok(Self { cents: old.decode()? }),
                _ => Err("no such version".into()),
            }
        }
    }

    fn staged<S: State>(state: &S) -> StagedState {
        let mut staged = StagedState::default();
        staged.set(state, &LIMITS).expect("it is small");
        StagedState::new(staged.into_change().expect("it was set"))
    }

    #[test]
    fn a_state_of_another_version_is_migrated_or_an_error_and_never_garbage() {
        assert_eq!(staged(&7i64).get::<Account>().expect("known"), Some(Account { cents: 7 }));
        for unknown in [staged(&7i32), staged(&"text".to_owned())] {
            let error = unknown.get::<Account>().expect_err("unknown");
            assert!(matches!(error, EffectError::StateUnreadable { .. }), "{error}");
        }
        let error = staged(&Account { cents: 1 }).get::<i64>().expect_err("no migration");
        assert_eq!(
            error.to_string(),
            r#"the stored state "account" version 2 cannot be read as "i64" version 1"#
        );
    }

    #[test]
    fn a_state_that_is_set_to_what_it_was_is_no_change() {
        let mut state = staged(&7i64);
        state.set(&7i64, &LIMITS).expect("it is small");
        assert!(state.clone().into_change().is_none());
        state.clear();
        assert_eq!(state.into_change(), Some(CurrentState::default()));
    }

    #[test]
    fn a_version_is_stale_if_an_earlier_message_had_it_or_a_later_one() {
        let mut state = StagedState::default();
        assert!(!state.is_stale(3) && !state.is_stale(3), "asked twice in one attempt");
        let mut next = StagedState::new(state.into_change().expect("it is new"));
        assert_eq!([3, 2, 4].map(|version| next.is_stale(version)), [true, true, false]);
        assert_eq!(next.into_change().expect("it is new").latest, Some(4));
    }

    #[test]
    fn a_state_over_the_limit_is_refused_before_it_is_all_encoded() {
        struct Endless;
        impl Serialize for Endless {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeSeq as _;
                let mut sequence = serializer.serialize_seq(Some(usize::MAX))?;
                loop {
                    sequence.serialize_element("more")?;
                }
            }
        }
        impl<'de> Deserialize<'de> for Endless {
            fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
                Ok(Self)
            }
        }
        impl State for Endless {
            const NAME: &'static str = "endless";
        }
        let error = StagedState::default().set(&Endless, &LIMITS).expect_err("too large");
        assert!(matches!(error, EffectError::StateTooLarge { bytes_max: 100, .. }), "{error}");
    }

    #[test]
    fn outgoing_messages_have_their_order_their_ids_and_a_limit() {
        let mut staged = StagedMessages::default();
        staged.publish("billing", "a", &1, &LIMITS).expect("small").app_id = Some("me".to_owned());
        staged.publish("", "b", &"two", &LIMITS).expect("small");
        let error = staged.publish("", "c", &"x".repeat(900), &LIMITS).expect_err("too large");
        assert!(matches!(error, EffectError::OutgoingTooLarge { .. }), "{error}");
        let error = staged.publish(&"x".repeat(256), "c", &1, &LIMITS).expect_err("too long");
        assert!(matches!(error, EffectError::Unsendable { .. }), "{error}");
        let messages = staged.into_messages(|index| format!("id-{index}"));
        let [first, second] = &*messages else { panic!("{messages:?}") };
        assert_eq!(first.properties.message_id.as_deref(), Some("id-0"));
        assert_eq!(first.properties.app_id.as_deref(), Some("me"));
        assert_eq!(first.properties.delivery_mode, Some(2));
        assert_eq!(first.properties.content_type.as_deref(), Some("application/json"));
        assert_eq!((&*second.routing_key, &*second.body), ("b", &br#""two""#[..]));
    }
}
