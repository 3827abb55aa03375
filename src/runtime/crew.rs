//! How many actors look for a key to work on: pure.
//!
//! As long as a key is ready, an actor is on its way to take one. Whoever takes a key and leaves others behind calls the
//! next; so a handler that waits, or blocks its thread, holds nobody up, and with handlers that end at once a few actors
//! work off all keys, one after the other, without being started or woken for each. Knows neither keys nor tasks.

/// Actors that rest at most; one more ends instead, so that a flood leaves nothing behind.
pub(crate) const RESTING_MAX: usize = 64;

/// Messages after which an actor rests if another one is on its way: or more and more would share the work of a few.
const TURN_MESSAGES: u32 = 64;

#[derive(Debug, Default)]
pub(crate) struct Crew {
    resting: usize,
    is_looking: bool,
    is_dismissed: bool,
}

/// Who is to be told that a key is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Call {
    /// Somebody is on its way.
    Nobody,
    /// One of those who rest.
    Resting,
    /// All are at work: another actor is to be started.
    New,
}

/// What an actor has done since it was called.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    has_looked: bool,
    messages: u32,
}

impl Turn {
    pub(crate) const fn count(&mut self) {
        self.messages = self.messages.saturating_add(1);
    }
}

impl Crew {
    /// A key is ready.
    pub(crate) const fn call(&mut self) -> Call {
        if self.is_looking {
            return Call::Nobody;
        }
        self.is_looking = true;
        if self.resting == 0 {
            return Call::New;
        }
        self.resting -= 1;
        Call::Resting
    }

    /// An actor asks for a key; whether it may take one.
    pub(crate) const fn looks(&mut self, turn: &mut Turn) -> bool {
        if !turn.has_looked {
            turn.has_looked = true;
            self.is_looking = false;
        }
        turn.messages < TURN_MESSAGES || !self.is_looking
    }

    /// An actor has no key; whether it rests until it is called, or ends.
    pub(crate) const fn rests(&mut self) -> bool {
        let rests = !self.is_dismissed && self.resting < RESTING_MAX;
        if rests {
            self.resting += 1;
        }
        rests
    }

    /// Nobody rests from now on; those who do are to be woken.
    pub(crate) const fn dismiss(&mut self) {
        self.is_dismissed = true;
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
        /// The actor of this number goes on: it looks, or ends what it works on and looks.
        Step(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![2 => Just(Act::Arrive), 3 => (0..100usize).prop_map(Act::Step)]
    }

    #[derive(Debug)]
    enum Actor {
        Called(Turn),
        Working(Turn),
        Resting,
        Ended,
    }

    /// The actors as the runtime has them.
    #[derive(Default)]
    struct Model {
        crew: Crew,
        ready: usize,
        actors: Vec<Actor>,
    }

    impl Model {
        fn call(&mut self) {
            match self.crew.call() {
                Call::Nobody => {}
                Call::New => self.actors.push(Actor::Called(Turn::default())),
                Call::Resting => {
                    let mut resting =
                        self.actors.iter_mut().filter(|actor| matches!(actor, Actor::Resting));
                    *resting.next().expect("one rests") = Actor::Called(Turn::default());
                }
            }
        }

        fn step(&mut self, number: usize) {
            let number = number % self.actors.len().max(1);
            let Some(actor) = self.actors.get_mut(number) else { return };
            let mut turn = match std::mem::replace(actor, Actor::Ended) {
                Actor::Called(turn) => turn,
                Actor::Working(mut turn) => {
                    turn.count();
                    turn
                }
                other => {
                    *actor = other;
                    return;
                }
            };
            if self.crew.looks(&mut turn) && self.ready > 0 {
                self.ready -= 1;
                *actor = Actor::Working(turn);
                if self.ready > 0 {
                    self.call();
                }
            } else if self.crew.rests() {
                *actor = Actor::Resting;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn while_a_key_is_ready_an_actor_is_on_its_way(
            acts in prop::collection::vec(act(), 1..400),
        ) {
            let mut model = Model::default();
            for act in acts {
                match act {
                    Act::Arrive => {
                        model.ready += 1;
                        model.call();
                    }
                    Act::Step(number) => model.step(number),
                }
                let called =
                    model.actors.iter().filter(|actor| matches!(actor, Actor::Called(_))).count();
                prop_assert!(called <= 1);
                prop_assert!(model.ready == 0 || called == 1, "{:?}", model.actors);
                let resting =
                    model.actors.iter().filter(|actor| matches!(actor, Actor::Resting)).count();
                prop_assert!(resting <= RESTING_MAX);
                model.actors.retain(|actor| !matches!(actor, Actor::Ended));
            }
        }
    }

    #[test]
    fn an_actor_that_has_had_its_turn_leaves_the_rest_to_the_one_that_was_called() {
        let mut crew = Crew::default();
        assert_eq!(crew.call(), Call::New);
        let mut turn = Turn::default();
        assert!(crew.looks(&mut turn));
        for _ in 0..TURN_MESSAGES {
            turn.count();
        }
        assert!(crew.looks(&mut turn), "nobody else looks");
        assert_eq!(crew.call(), Call::New);
        assert!(!crew.looks(&mut turn));
    }

    #[test]
    fn who_is_dismissed_does_not_rest() {
        let mut crew = Crew::default();
        assert!(crew.rests());
        crew.dismiss();
        assert!(!crew.rests());
        assert_eq!(crew.call(), Call::New);
    }
}
