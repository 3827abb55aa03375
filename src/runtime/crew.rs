//! How many actors are at work, and when another one is called: pure.
//!
//! As many actors are awake as there are threads to run them. While handlers end at once these few work off one ready
//! key after the other, and no task is made or woken for each message; an actor that waits for something is none of
//! them, and another one is called in its place. So as long as a key is ready an actor is awake that will look for it.
//! Those may be held up by handlers that block their threads: each time that a key is seen to be ready for too long one
//! more may be awake, until an actor finds nothing to do. So under saturation many are, which costs nothing: they go on
//! with the next key instead of calling each other. Knows neither keys nor tasks.

/// Actors that rest at most; one more ends instead, so that a flood leaves nothing behind.
pub(crate) const RESTING_MAX: usize = 64;

/// Most actors that are awake beside one for each thread.
const EXTRA_MAX: usize = 256;

#[derive(Debug)]
pub(crate) struct Crew {
    /// Threads that run actors.
    threads: usize,
    /// How many more than these may be awake.
    extra: usize,
    /// Actors that are called, look for a key or work on one, and do not wait.
    awake: usize,
    resting: usize,
    /// Called ones that are not started yet.
    starting: usize,
    is_dismissed: bool,
}

/// Who is to be told that a key is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Call {
    /// Enough are awake.
    Nobody,
    /// One of those who rest.
    Resting,
    /// Nobody rests: another actor is to be started.
    New,
}

impl Crew {
    pub(crate) const fn new(threads: usize) -> Self {
        Self { threads, extra: 0, awake: 0, resting: 0, starting: 0, is_dismissed: false }
    }

    /// A key is ready.
    pub(crate) const fn call(&mut self) -> Call {
        if self.awake >= self.threads + self.extra {
            return Call::Nobody;
        }
        self.awake += 1;
        if self.resting == 0 {
            self.starting += 1;
            return Call::New;
        }
        self.resting -= 1;
        Call::Resting
    }

    /// A key has been ready for too long, whoever is awake.
    pub(crate) const fn relieve(&mut self) -> Call {
        if self.extra < EXTRA_MAX {
            self.extra += 1;
        }
        self.call()
    }

    /// How many actors are to be started.
    pub(crate) const fn take_starting(&mut self) -> usize {
        std::mem::replace(&mut self.starting, 0)
    }

    /// An actor that works waits for something.
    pub(crate) const fn waits(&mut self) {
        self.awake -= 1;
    }

    /// It does not wait any more.
    pub(crate) const fn goes_on(&mut self) {
        self.awake += 1;
    }

    /// Whether an actor that has no key may take one: enough others are awake if not.
    pub(crate) const fn may_look(&self) -> bool {
        self.awake <= self.threads + self.extra
    }

    /// An actor that looked for a key found none.
    pub(crate) const fn found_none(&mut self) {
        self.extra = self.extra.saturating_sub(1);
    }

    /// An actor takes no key; whether it rests until it is called, or ends.
    pub(crate) const fn rests(&mut self) -> bool {
        self.awake -= 1;
        let rests = !self.is_dismissed && self.resting < RESTING_MAX;
        if rests {
            self.resting += 1;
        }
        rests
    }

    /// Nobody rests from now on; those who do are to be woken.
    pub(crate) const fn dismiss(&mut self) {
        self.is_dismissed = true;
        // They find out by themselves that there is nothing to do.
        self.awake += self.resting;
        self.resting = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Act {
        Arrive,
        Relieve,
        Dismiss,
        /// The actor of this number goes on: it looks, or ends what it works on and looks.
        Step(usize),
        /// It waits, or does not wait any more.
        Wait(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => Just(Act::Arrive),
            1 => Just(Act::Relieve),
            6 => (0..100usize).prop_map(Act::Step),
            3 => (0..100usize).prop_map(Act::Wait),
        ]
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Actor {
        /// Called or at work.
        Awake,
        Waiting,
        Resting,
    }

    /// The actors as the runtime has them.
    struct Model {
        crew: Crew,
        ready: usize,
        actors: Vec<Actor>,
    }

    impl Model {
        fn count(&self, which: Actor) -> usize {
            self.actors.iter().filter(|actor| **actor == which).count()
        }

        fn answer(&mut self, call: Call) {
            match call {
                Call::Nobody => {}
                Call::New => {
                    assert_eq!(self.crew.take_starting(), 1);
                    self.actors.push(Actor::Awake);
                }
                Call::Resting => {
                    let resting = self.actors.iter().position(|actor| *actor == Actor::Resting);
                    self.actors[resting.expect("one rests")] = Actor::Awake;
                }
            }
        }

        fn act(&mut self, act: Act) {
            match act {
                Act::Arrive => {
                    self.ready += 1;
                    let call = self.crew.call();
                    self.answer(call);
                }
                Act::Relieve => {
                    if self.ready > 0 {
                        let call = self.crew.relieve();
                        self.answer(call);
                    }
                }
                Act::Dismiss => {
                    self.crew.dismiss();
                    for actor in self.actors.iter_mut().filter(|of| **of == Actor::Resting) {
                        *actor = Actor::Awake;
                    }
                }
                Act::Step(number) | Act::Wait(number) if self.actors.is_empty() => {
                    let _ = number;
                }
                Act::Step(number) => {
                    let number = number % self.actors.len();
                    if self.actors[number] != Actor::Awake {
                        return;
                    }
                    if self.crew.may_look() {
                        if self.ready > 0 {
                            self.ready -= 1;
                            return;
                        }
                        self.crew.found_none();
                    }
                    if self.crew.rests() {
                        self.actors[number] = Actor::Resting;
                    } else {
                        self.actors.swap_remove(number);
                    }
                }
                Act::Wait(number) => {
                    let number = number % self.actors.len();
                    match self.actors[number] {
                        Actor::Awake => {
                            self.actors[number] = Actor::Waiting;
                            self.crew.waits();
                            if self.ready > 0 {
                                let call = self.crew.call();
                                self.answer(call);
                            }
                        }
                        Actor::Waiting => {
                            self.actors[number] = Actor::Awake;
                            self.crew.goes_on();
                        }
                        Actor::Resting => {}
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn while_a_key_is_ready_an_actor_is_awake(
            threads in 1..4usize,
            acts in prop::collection::vec(act(), 1..400),
            of_the_drain in prop::collection::vec(act(), 0..50),
        ) {
            let mut model = Model { crew: Crew::new(threads), ready: 0, actors: Vec::new() };
            for act in acts.into_iter().chain([Act::Dismiss]).chain(of_the_drain) {
                model.act(act);
                prop_assert_eq!(model.crew.awake, model.count(Actor::Awake));
                prop_assert_eq!(model.crew.resting, model.count(Actor::Resting));
                prop_assert!(model.ready == 0 || model.crew.awake > 0, "{:?}", model.actors);
                prop_assert!(model.crew.resting <= RESTING_MAX);
                prop_assert!(model.crew.resting == 0 || !model.crew.is_dismissed);
            }
        }
    }

    #[test]
    fn more_actors_than_threads_are_awake_only_where_a_key_was_ready_for_too_long() {
        let mut crew = Crew::new(2);
        let calls = [(); 3].map(|()| crew.call());
        assert_eq!(calls, [Call::New, Call::New, Call::Nobody]);
        crew.waits();
        assert_eq!(crew.call(), Call::New, "in the place of the one that waits");
        assert_eq!(crew.relieve(), Call::New);
        assert!(crew.may_look(), "also the one that was called");
        crew.goes_on();
        assert!(!crew.may_look(), "one too many");
        assert!(crew.rests());
        assert!(crew.may_look());
        crew.found_none();
        assert!(crew.rests());
        assert!(crew.may_look());
        assert_eq!(crew.call(), Call::Nobody, "as many as threads");
        assert_eq!(crew.take_starting(), 4);
    }

    #[test]
    fn who_is_dismissed_does_not_rest() {
        let mut crew = Crew::new(1);
        assert_eq!(crew.call(), Call::New);
        assert!(crew.rests());
        crew.dismiss();
        assert!(!crew.rests());
        assert_eq!(crew.call(), Call::New);
    }
}
