//! The order in which things are sent: lanes, each with one head under way at a time.
//!
//! Pure: no clock, no task; `now` is an argument. A lane's head stays in its place until it is finished, so nothing
//! overtakes it, however often it is tried. Lanes that are ready take turns. A lane that is held has no turn until its
//! time has come, and one that was closed never has one again: what would come behind is handed back.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};

use tokio::time::Instant;

use super::Kind;
use crate::planted::{self, Bug};
use crate::store::KeyId;

/// What keeps its order: a key's messages, and apart from them its dead letters.
pub(super) type LaneId = (KeyId, Kind);

/// All lanes that have something to send.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    lanes: HashMap<LaneId, Lane<T>>,
    /// Whose turn is next; one that is not ready any more is passed over.
    ready: VecDeque<LaneId>,
    held: BTreeSet<(Instant, LaneId)>,
}

#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<T>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In `ready`.
    Ready,
    UnderWay,
    /// In `held`, until then.
    Held(Instant),
    /// Never sent from again.
    Closed,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { lanes: HashMap::new(), ready: VecDeque::new(), held: BTreeSet::new() }
    }
}

impl<T> Lanes<T> {
    /// Puts it at the end of its lane; gives it back if the lane is closed.
    pub(super) fn push(&mut self, id: LaneId, new: T) -> Option<T> {
        match self.lanes.entry(id) {
            Entry::Occupied(lane) if lane.get().state == State::Closed => return Some(new),
            Entry::Occupied(mut lane) => lane.get_mut().waiting.push_back(new),
            Entry::Vacant(place) => {
                place.insert(Lane { waiting: VecDeque::from([new]), state: State::Ready });
                self.ready.push_back(id);
            }
        }
        None
    }

    /// The lane whose turn it is: its head is under way from now on.
    pub(super) fn start(&mut self) -> Option<LaneId> {
        loop {
            let id = self.ready.pop_front()?;
            if let Some(lane) = self.lanes.get_mut(&id)
                && lane.state == State::Ready
            {
                lane.state = State::UnderWay;
                return Some(id);
            }
        }
    }

    pub(super) fn head(&mut self, id: &LaneId) -> Option<&mut T> {
        self.lanes.get_mut(id)?.waiting.front_mut()
    }

    /// The head is no longer under way and has more to send: the lane waits for its next turn.
    pub(super) fn again(&mut self, id: LaneId) {
        if let Some(lane) = self.lanes.get_mut(&id)
            && lane.state == State::UnderWay
        {
            lane.state = State::Ready;
            self.ready.push_back(id);
        }
    }

    /// The head is no longer under way, and the lane has no turn before `until`.
    pub(super) fn hold(&mut self, id: LaneId, until: Instant) {
        if let Some(lane) = self.lanes.get_mut(&id)
            && lane.state == State::UnderWay
        {
            if planted::is(Bug::HeldIsOvertaken) {
                lane.waiting.rotate_left(1);
            }
            lane.state = State::Held(until);
            self.held.insert((until, id));
        }
    }

    /// Takes out the head that was under way: the next one is the head.
    pub(super) fn finish(&mut self, id: LaneId) -> Option<T> {
        let lane = self.lanes.get_mut(&id).filter(|lane| lane.state == State::UnderWay)?;
        let head = lane.waiting.pop_front();
        if lane.waiting.is_empty() {
            self.lanes.remove(&id);
        } else {
            lane.state = State::Ready;
            self.ready.push_back(id);
        }
        head
    }

    /// Lets the lanes go on whose time has come.
    pub(super) fn release_due(&mut self, now: Instant) {
        while let Some(&(until, id)) = self.held.first()
            && until <= now
        {
            self.held.pop_first();
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.state = State::Ready;
                self.ready.push_back(id);
            }
        }
    }

    /// When the next held lane may go on.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.held.first().map(|(until, _)| *until)
    }

    /// Takes out those of a lane that are not wanted any more, in order; one that is under way stays.
    pub(super) fn remove_if(&mut self, id: LaneId, unwanted: impl Fn(&T) -> bool) -> Vec<T> {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return Vec::new();
        };
        let under_way = if lane.state == State::UnderWay { lane.waiting.pop_front() } else { None };
        let head_goes = under_way.is_none() && lane.waiting.front().is_some_and(&unwanted);
        let (removed, kept): (Vec<T>, Vec<T>) = lane.waiting.drain(..).partition(&unwanted);
        lane.waiting = kept.into();
        if let Some(head) = under_way {
            lane.waiting.push_front(head);
        }
        // It was held for its head, and the new one is not to blame.
        if head_goes && let State::Held(until) = lane.state {
            self.held.remove(&(until, id));
            lane.state = State::Ready;
            self.ready.push_back(id);
        }
        if lane.waiting.is_empty() && lane.state == State::Ready {
            self.lanes.remove(&id);
        }
        removed
    }

    /// Closes the lane, whose head may be under way, and takes out all of it, in order.
    pub(super) fn close(&mut self, id: LaneId) -> Vec<T> {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return Vec::new();
        };
        if let State::Held(until) = lane.state {
            self.held.remove(&(until, id));
        }
        lane.state = State::Closed;
        lane.waiting.drain(..).collect()
    }

    /// The lanes that are held now.
    pub(super) fn held(&self) -> Vec<LaneId> {
        self.held.iter().map(|(_, id)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::store::QueueId;

    fn lane(number: u8) -> LaneId {
        (KeyId { queue: QueueId(0), hash: [number; 16] }, Kind::Message)
    }

    fn drain(lanes: &mut Lanes<u32>) -> Vec<u32> {
        let mut sent = Vec::new();
        while let Some(id) = lanes.start() {
            sent.extend(lanes.finish(id));
        }
        sent
    }

    #[test]
    fn lanes_take_turns_and_keep_their_order() {
        let mut lanes = Lanes::default();
        for (id, number) in [(0, 0), (0, 1), (0, 2), (1, 10), (1, 11)] {
            assert_eq!(lanes.push(lane(id), number), None);
        }
        assert_eq!(drain(&mut lanes), [0, 10, 1, 11, 2]);
        assert!(lanes.lanes.is_empty() && lanes.ready.is_empty());
    }

    #[test]
    fn dead_letters_do_not_wait_for_messages_of_their_key() {
        let mut lanes = Lanes::default();
        lanes.push(lane(0), 1);
        lanes.push((lane(0).0, Kind::DeadLetter), 2);
        assert_eq!(
            (lanes.start(), lanes.start()),
            (Some(lane(0)), Some((lane(0).0, Kind::DeadLetter)))
        );
    }

    #[test]
    fn a_closed_lane_gives_back_what_comes_later() {
        let mut lanes = Lanes::default();
        for number in 0..3 {
            lanes.push(lane(0), number);
        }
        let id = lanes.start().expect("it is ready");
        lanes.hold(id, Instant::now());
        assert_eq!(lanes.held(), [id]);
        assert_eq!(lanes.close(id), [0, 1, 2]);
        assert_eq!(lanes.push(id, 3), Some(3));
        assert_eq!((lanes.next_due(), lanes.start()), (None, None));
    }

    #[test]
    fn what_is_not_wanted_leaves_and_a_lane_that_was_held_for_it_goes_on() {
        let mut lanes = Lanes::default();
        for number in 0..4 {
            lanes.push(lane(0), number);
        }
        let id = lanes.start().expect("it is ready");
        assert_eq!(lanes.remove_if(id, |number| number % 2 == 0), [2], "0 is under way");
        lanes.hold(id, Instant::now());
        assert_eq!(lanes.remove_if(id, |number| *number == 0), [0]);
        assert_eq!(lanes.next_due(), None);
        assert_eq!(drain(&mut lanes), [1, 3]);
        lanes.push(lane(0), 9);
        assert_eq!(lanes.remove_if(lane(0), |_| true), [9]);
        assert_eq!(lanes.start(), None);
        assert!(lanes.lanes.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8),
        Start,
        Again(usize),
        Hold(usize, u64),
        Finish(usize),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..4).prop_map(Step::Push),
            Just(Step::Start),
            any::<usize>().prop_map(Step::Again),
            (any::<usize>(), 0u64..20).prop_map(|(which, ms)| Step::Hold(which, ms)),
            any::<usize>().prop_map(Step::Finish),
            (0u64..20).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn a_lane_has_one_head_under_way_and_all_leave_in_order(
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut now = Instant::now();
            let mut lanes = Lanes::default();
            let mut under_way: Vec<LaneId> = Vec::new();
            let mut pushed: BTreeMap<LaneId, Vec<u32>> = BTreeMap::new();
            let mut left: BTreeMap<LaneId, Vec<u32>> = BTreeMap::new();
            let mut until: BTreeMap<LaneId, Instant> = BTreeMap::new();
            let mut number = 0;
            for step in steps {
                let mut take = |which: usize| {
                    (!under_way.is_empty()).then(|| under_way.remove(which % under_way.len()))
                };
                match step {
                    Step::Push(id) => {
                        pushed.entry(lane(id)).or_default().push(number);
                        prop_assert!(lanes.push(lane(id), number).is_none());
                        number += 1;
                    }
                    Step::Again(which) => take(which).into_iter().for_each(|id| lanes.again(id)),
                    Step::Hold(which, ms) => {
                        if let Some(id) = take(which) {
                            until.insert(id, now + Duration::from_millis(ms));
                            lanes.hold(id, now + Duration::from_millis(ms));
                        }
                    }
                    Step::Finish(which) => {
                        if let Some(id) = take(which) {
                            left.entry(id).or_default().extend(lanes.finish(id));
                        }
                    }
                    Step::Pass(ms) => {
                        now += Duration::from_millis(ms);
                        lanes.release_due(now);
                    }
                    Step::Start => {
                        if let Some(id) = lanes.start() {
                            prop_assert!(!under_way.contains(&id), "two heads under way");
                            prop_assert!(until.get(&id).is_none_or(|until| *until <= now));
                            under_way.push(id);
                        }
                    }
                }
            }
            for id in under_way {
                lanes.again(id);
            }
            lanes.release_due(now + Duration::from_secs(1));
            while let Some(id) = lanes.start() {
                left.entry(id).or_default().extend(lanes.finish(id));
            }
            prop_assert_eq!(pushed, left);
        }
    }
}
