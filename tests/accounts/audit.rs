//! What must be true of accounts in the end, from outside: of what is downstream, the answers, and the ledger.

use std::collections::{BTreeMap, HashMap};

use lapin::message::Delivery;
use serde::Deserialize;

use super::support::ledger::{Charge, Ledger};
use super::{ACCOUNTS, Transfer, account};

/// What a worker says downstream of each change of an account.
#[derive(Debug, Deserialize)]
struct Change {
    account: String,
    after: Account,
    entry: Entry,
    receipt: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Account {
    cents: i64,
    changes: u64,
}

#[derive(Debug, Deserialize)]
enum Entry {
    Transfer { id: u64, to: String, cents: i64 },
    Arrival { id: u64, cents: i64 },
}

/// What was asked for, and what is downstream of it.
pub(crate) struct Audit<'a> {
    transfers: &'a [Transfer],
    /// In the order in which they first arrived.
    changes: Vec<Change>,
}

impl<'a> Audit<'a> {
    /// Of everything downstream, each message once; a repeated one has the same id and the same bytes.
    pub(crate) fn of(transfers: &'a [Transfer], arrived: &[Delivery]) -> Self {
        let mut bodies: HashMap<String, &[u8]> = HashMap::new();
        let mut changes = Vec::new();
        for delivery in arrived {
            let id = delivery.properties.message_id().clone().expect("an id").to_string();
            let first = *bodies.entry(id.clone()).or_insert_with(|| {
                changes.push(serde_json::from_slice(&delivery.data).expect("a change"));
                &delivery.data
            });
            let (first, again) =
                (String::from_utf8_lossy(first), String::from_utf8_lossy(&delivery.data));
            assert_eq!(first, again, "{id} is repeated with other bytes");
        }
        Self { transfers, changes }
    }

    pub(crate) const fn changes(&self) -> usize {
        self.changes.len()
    }

    /// Each transfer left once and arrived once, in order, and every balance follows from the one before.
    pub(crate) fn check_order_and_balances(&self) {
        let mut accounts: BTreeMap<&str, (i64, u64)> = BTreeMap::new();
        let (mut left, mut came) = (Vec::new(), Vec::new());
        for change in &self.changes {
            let Change { account: name, after, entry, .. } = change;
            let moved = match entry {
                Entry::Transfer { id, to, cents } => {
                    left.push((*id, name.clone(), to.clone(), *cents));
                    -cents
                }
                Entry::Arrival { id, cents } => {
                    came.push((*id, name.clone(), *cents));
                    *cents
                }
            };
            let (cents, changes) = accounts.entry(name).or_default();
            (*cents, *changes) = (*cents + moved, *changes + 1);
            assert_eq!((after.cents, after.changes), (*cents, *changes), "{change:?}");
        }
        // Within an account in the order of publishing; and so from one account to another.
        let mut last: HashMap<(&str, &str), u64> = HashMap::new();
        let mut in_order = |from, to, id: u64| {
            let last = last.insert((from, to), id);
            assert!(last.is_none_or(|last| last < id), "{id} from {from} to {to} after {last:?}");
        };
        let from: Vec<String> = self.transfers.iter().map(|sent| account(sent.from)).collect();
        for (id, name, ..) in &left {
            in_order(name, "", *id);
        }
        for (id, name, _) in &came {
            in_order(&from[*id as usize], name, *id);
        }
        left.sort_unstable();
        came.sort_unstable();
        let sent = self.transfers.iter();
        let sent = sent.map(|sent| (sent.id, account(sent.from), account(sent.to), sent.cents));
        assert!(left.iter().cloned().eq(sent.clone()), "each transfer leaves once");
        let sent = sent.map(|(id, _, to, cents)| (id, to, cents));
        assert!(came.iter().cloned().eq(sent), "each transfer arrives once");
    }

    /// Every copy of a transfer was answered, with the balance after the first; a question in the end with what all
    /// transfers make.
    pub(crate) fn check_answers(&self, published: &[Transfer], answers: &[Delivery]) {
        let mut expected: BTreeMap<String, i64> = BTreeMap::new();
        for change in &self.changes {
            if let Entry::Transfer { id, .. } = change.entry {
                expected.insert(format!("transfer-{id}"), change.after.cents);
            }
        }
        let mut balances = [0; ACCOUNTS];
        for Transfer { from, to, cents, .. } in self.transfers {
            balances[*from] -= cents;
            balances[*to] += cents;
        }
        let questions = balances.iter().enumerate();
        expected.extend(questions.map(|(number, cents)| (format!("question-{number}"), *cents)));
        let mut answered: BTreeMap<String, i64> = BTreeMap::new();
        let mut unanswered: BTreeMap<String, i32> = BTreeMap::new();
        for Transfer { id, .. } in published {
            *unanswered.entry(format!("transfer-{id}")).or_default() += 1;
        }
        for answer in answers {
            let asked = answer.properties.correlation_id().clone().expect("what was asked");
            let cents = serde_json::from_slice(&answer.data).expect("a balance");
            *unanswered.entry(asked.to_string()).or_default() -= 1;
            let before = answered.insert(asked.to_string(), cents);
            assert!(before.is_none_or(|before| before == cents), "{asked}: {before:?}, {cents}");
        }
        let wrong: Vec<_> =
            expected.iter().filter(|(id, cents)| answered.get(*id) != Some(cents)).collect();
        assert!(wrong.is_empty() && answered.len() == expected.len(), "answers: {wrong:?}");
        unanswered.retain(|_, copies| *copies > 0);
        assert!(unanswered.is_empty(), "copies without an answer: {unanswered:?}");
    }

    /// Each transfer was charged once under one key, and its receipt is what the account knows; gives the number of
    /// calls.
    pub(crate) fn check_fees(&self, ledger: &Ledger) -> usize {
        let (charges, calls) = ledger.charges();
        let mut receipts: BTreeMap<u64, &str> = BTreeMap::new();
        for (key, Charge { transfer, receipt, calls }) in &charges {
            let other = receipts.insert(*transfer, receipt);
            assert_eq!(
                other, None,
                "transfer {transfer} is charged twice, now by {key}: {calls} calls"
            );
        }
        assert_eq!(receipts.len(), self.transfers.len(), "each transfer is charged");
        for change in &self.changes {
            if let Entry::Transfer { id, .. } = &change.entry {
                assert_eq!(change.receipt.as_deref(), receipts.get(id).copied(), "{change:?}");
            }
        }
        assert!(calls > charges.len(), "answers were lost: {calls} calls");
        calls
    }
}
