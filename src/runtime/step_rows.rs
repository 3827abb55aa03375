//! Where a handler's steps are kept: rows of the store, durable before the handler goes on.
//!
//! A row that cannot be read ends the run, and with it the worker, as every other failure of the store does.

use futures_util::future::{BoxFuture, FutureExt as _};

use super::queue::Queue;
use crate::effects::{EffectError, StepFound, StepStore};
use crate::failpoint::{self, Point};
use crate::identity::Identity;
use crate::planted::{self, Bug};

impl StepStore for Queue {
    fn queue(&self) -> &str {
        &self.name
    }

    fn find<'a>(
        &'a self,
        identity: Identity,
        name: &'a str,
    ) -> BoxFuture<'a, Result<StepFound, EffectError>> {
        async move {
            let step = self.store.step(identity, name);
            let Some(step) = step.filter(|_| !planted::is(Bug::StepCalledAgain)) else {
                return Ok(StepFound::New);
            };
            let Some(result) = step.result else {
                return Ok(StepFound::Begun);
            };
            let result = self.store.fetch(&result).await.map_err(|error| {
                // The run ends with it, whatever the handler makes of the error.
                let _ = self.unreadable.set(error);
                EffectError::Stopped
            })?;
            self.metrics.steps_replayed.increment(1);
            Ok(StepFound::Done(result))
        }
        .boxed()
    }

    fn put<'a>(
        &'a self,
        identity: Identity,
        name: &'a str,
        result: Option<Vec<u8>>,
    ) -> BoxFuture<'a, Result<(), EffectError>> {
        async move {
            if result.is_none() && planted::is(Bug::IntentNotRecorded) {
                return Ok(());
            }
            let put = self.store.put_step(identity, self.id, name, result).await;
            put.map(drop).ok_or(EffectError::Stopped)?;
            failpoint::reached(Point::StepStored);
            Ok(())
        }
        .boxed()
    }
}
