//! The handlers of a run: they play their parts, and write into the history what they were asked to do.
//!
//! One plays single messages, one batches. A run that is dropped, by a timeout or with its worker, is noticed by a
//! guard. Knows nothing of what the worker makes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::history::{Event, RunEnd, Seen};
use super::log::Log;
use super::model::{State as Chain, Touch};
use super::names::Names;
use super::part::{Casting, Failure, Outages, Part};
use super::step::OtherSide;
use crate::batch::{Batch, BatchHandler};
use crate::clock::duration_ms;
use crate::context::Context;
use crate::effects::{EffectError, State};
use crate::handler::{HandleError, Handler, Result, reject, retry_after};
use crate::payload::{Body, Reply};

/// Longer than any attempt may take.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// The state of a key: what the checker computes again, and at times so much that it does not fit a row.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    /// JSON of the model's state.
    pub(super) model: String,
    ballast: Vec<u8>,
}

impl State for Kept {
    const NAME: &'static str = "kept";
}

/// The model's state in the bytes of a stored one; the bytes if they are none.
pub(super) fn model_of(stored: &[u8]) -> Vec<u8> {
    postcard::from_bytes(stored).map_or_else(|_| stored.to_vec(), |kept: Kept| kept.model.into())
}

/// Bytes beside a large state: more than fit a row.
const BALLAST_BYTES: usize = 5000;

/// Handles one queue for one life of a worker.
#[derive(Clone)]
pub(super) struct Player {
    pub(super) log: Log,
    pub(super) names: Arc<Names>,
    pub(super) casting: Casting,
    pub(super) life: u32,
    pub(super) queue: Arc<str>,
    /// Where what it sends goes, in turn.
    pub(super) targets: Vec<String>,
    pub(super) has_state: bool,
    pub(super) replies: bool,
    pub(super) other_side: OtherSide,
    /// Of what it calls, if the queue has a breaker.
    pub(super) outages: Option<Outages>,
    pub(super) batches: Arc<AtomicU64>,
}

/// Says how a run ended, whatever ended it.
struct Run<'a> {
    player: &'a Player,
    seen: Seen,
    attempt: u32,
    batch: Option<u64>,
    deadline: std::time::Instant,
    ended: Option<RunEnd>,
}

impl<'a> Run<'a> {
    fn begin(player: &'a Player, cx: &Context, batch: Option<u64>) -> Option<(Self, Part)> {
        let seen = player.names.seen(&player.queue, cx.message())?;
        let part = player.casting.part(&seen.name, seen.fingerprint);
        let (life, attempt) = (player.life, cx.attempt());
        player.log.put_of(life, Event::Run { life, seen: seen.clone(), attempt, batch });
        let deadline = cx.deadline();
        Some((Self { player, seen, attempt, batch, deadline, ended: None }, part))
    }

    fn ends(mut self, ended: RunEnd) {
        self.ended = Some(ended);
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let is_late = tokio::time::Instant::now().into_std() >= self.deadline;
        let dropped = match (std::thread::panicking(), is_late) {
            (true, _) => RunEnd::Panicked,
            (false, true) => RunEnd::Failed,
            (false, false) => RunEnd::Dropped,
        };
        let Self { player: Player { life, .. }, attempt, batch, .. } = *self;
        let ended = self.ended.unwrap_or(dropped);
        let end = Event::End { life: *life, seen: self.seen.clone(), attempt, batch, ended };
        self.player.log.put_of(*life, end);
    }
}

impl Player {
    /// What a part does before its state.
    async fn play(&self, cx: &mut Context, run: &mut Run<'_>, part: &Part) -> Result {
        if !part.takes.is_zero() {
            tokio::time::sleep(part.takes).await;
        }
        for number in 0..part.steps {
            self.step(cx, &run.seen.name, part, number).await?;
        }
        if part.is_rejected {
            return Err(reject("no attempt will ever succeed"));
        }
        match self.failure(part, run.attempt) {
            Some(Failure::Error) => Err(std::io::Error::other("not now").into()),
            Some(Failure::RetryAfter) => {
                Err(retry_after(Duration::from_millis(300), std::io::Error::other("in a moment")))
            }
            Some(Failure::Panic) => {
                run.ended = Some(RunEnd::Panicked);
                // Without the hook, which would print it.
                std::panic::resume_unwind(Box::new("as its part says"))
            }
            Some(Failure::Hang) => {
                tokio::time::sleep(FOR_EVER).await;
                Ok(())
            }
            None => self.send(cx, part),
        }
    }

    /// How this attempt goes wrong: as its part says, or because what it calls is dead. Behind a breaker that comes to
    /// an end, or no message would.
    fn failure(&self, part: &Part, attempt: u32) -> Option<Failure> {
        let failure = part.failure(attempt);
        let Some(outages) = &self.outages else { return failure };
        let now_ms = self.now_ms();
        if outages.windows_ms.iter().any(|window| window.contains(&now_ms)) {
            return Some(Failure::Error);
        }
        failure.filter(|failure| !self.is_over() || *failure == Failure::Panic)
    }

    /// Whether nothing is dead any more that the breaker stands before.
    pub(super) fn is_over(&self) -> bool {
        self.outages.as_ref().is_some_and(|outages| self.now_ms() >= outages.over_ms)
    }

    fn now_ms(&self) -> u64 {
        duration_ms(self.log.started().elapsed())
    }

    fn send(&self, cx: &mut Context, part: &Part) -> Result {
        for (number, target) in (0..part.sends).zip(self.targets.iter().cycle()) {
            let key = cx.key().map(ToString::to_string);
            let body = format!("{number} of {}", cx.effect_key("body"));
            let properties = cx.send(target, &body)?;
            if let Some(key) = key {
                properties.headers.insert("key".to_owned(), key.into());
            }
        }
        Ok(())
    }

    /// The state after the message: `None` leaves it, `Some(None)` removes it.
    fn touched(&self, before: Option<Chain>, seen: &Seen) -> Option<Option<Chain>> {
        if !self.has_state || seen.key.is_none() {
            return None;
        }
        match Touch::of(seen.fingerprint) {
            Touch::Keeps => None,
            Touch::Removes => Some(None),
            Touch::Sets => Some(Some(Chain::after(before, &seen.name, seen.fingerprint))),
        }
    }
}

impl Kept {
    fn of(chain: Chain, is_large: bool) -> Self {
        let model = String::from_utf8_lossy(&chain.to_bytes()).into_owned();
        let ballast = if is_large { vec![7; BALLAST_BYTES] } else { Vec::new() };
        Self { model, ballast }
    }

    fn chain(&self) -> Option<Chain> {
        Chain::from_bytes(self.model.as_bytes())
    }
}

fn end_of(result: &Result) -> RunEnd {
    match result {
        Ok(()) => RunEnd::Ok,
        Err(HandleError::Retry { error, .. }) => match EffectError::find(error.as_ref()) {
            Some(EffectError::InDoubt { .. }) => RunEnd::InDoubt,
            _ => RunEnd::Failed,
        },
        Err(HandleError::Reject { .. }) => RunEnd::Rejected,
    }
}

impl Handler<Body, Option<Reply>> for Player {
    async fn handle(&self, cx: &mut Context, body: Body) -> Result<Option<Reply>> {
        let Some((mut run, part)) = Run::begin(self, cx, None) else { return Ok(None) };
        let mut played = self.play(cx, &mut run, &part).await;
        if played.is_ok() && self.has_state && run.seen.key.is_some() {
            let before = cx.state::<Kept>()?.as_ref().and_then(Kept::chain);
            played = match self.touched(before, &run.seen) {
                None => Ok(()),
                Some(None) => cx.clear_state().map_err(HandleError::from),
                Some(Some(chain)) => {
                    cx.set_state(&Kept::of(chain, part.is_large)).map_err(HandleError::from)
                }
            };
        }
        let ended = end_of(&played);
        run.ends(ended);
        played?;
        Ok(self
            .replies
            .then(|| Reply { content_type: None, body: body.0.slice(..body.0.len().min(20)) }))
    }
}

impl BatchHandler<Body> for Player {
    async fn handle(&self, batch: &mut Batch<Body>) -> Result {
        let number = self.batches.fetch_add(1, Ordering::Relaxed);
        let number = (batch.len() > 1).then_some(number);
        let has_key = batch.key().is_some();
        let mut chain = match self.has_state && has_key {
            true => batch.state::<Kept>()?.as_ref().and_then(Kept::chain),
            false => None,
        };
        let mut runs = Vec::new();
        for item in batch.iter() {
            runs.extend(Run::begin(self, &item.cx, number));
        }
        let (mut changed, mut is_large) = (None, false);
        let mut ends = Vec::new();
        for (item, (run, part)) in batch.iter_mut().zip(&mut runs) {
            let played = self.play(&mut item.cx, run, part).await;
            let ended = end_of(&played);
            ends.push(ended);
            match played {
                Ok(()) => {}
                Err(error @ HandleError::Reject { .. }) => {
                    item.fail(error);
                    continue;
                }
                Err(error) => {
                    runs.into_iter().for_each(|(run, _)| run.ends(ended));
                    return Err(error);
                }
            }
            if let Some(after) = self.touched(chain, &run.seen) {
                chain = after;
                changed = Some(after);
                is_large = part.is_large;
            }
        }
        match changed {
            None => {}
            Some(None) => batch.clear_state()?,
            Some(Some(chain)) => batch.set_state(&Kept::of(chain, is_large))?,
        }
        runs.into_iter().zip(ends).for_each(|((run, _), ended)| run.ends(ended));
        Ok(())
    }
}
