//! The handler of the demo: it looks at an order, takes a moment, and tells the ledger.
//!
//! Stands in for a call to a payment service, so the ledger is that service's book: it keeps the effect key. Orders of
//! an earlier run that was broken off are completed without a word.

use std::sync::Arc;
use std::time::Duration;

use super::ledger::Ledger;
use super::orders::{OrderBody, Plan};
use crate::{Context, Handler, reject, retry_after};

/// What one order costs in time.
const WORK: Duration = Duration::from_millis(1);

/// When an order whose first attempt failed is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(20);

pub(super) struct Charge {
    pub(super) plan: Arc<Plan>,
    pub(super) ledger: Arc<Ledger>,
}

impl Handler<OrderBody> for Charge {
    async fn handle(&self, cx: &mut Context, order: OrderBody) -> crate::Result {
        let id = str::from_utf8(cx.id().as_bytes())?;
        let Some(number) = self.plan.number(id) else {
            return Ok(());
        };
        let run = self.ledger.start(number);
        tokio::time::sleep(WORK).await;
        if order.cents == 0 {
            run.reject();
            return Err(reject("an order of nothing"));
        }
        if order.flaky && cx.attempt() == 1 {
            run.fail();
            return Err(retry_after(RETRY_DELAY, "the payment service is away"));
        }
        run.complete(cx.effect_key("charge"));
        Ok(())
    }
}
