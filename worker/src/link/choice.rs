//! Which of the coordinators is asked: the one that leads saves a step, any other that answers will do.
//!
//! Those that the worker was started with are kept for good, and those that it hears of are tried as well.

use common::error::ErrorCode;

/// What asking one came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is what the leader says, and no other coordinator would say anything else.
    Answer,
    /// It is there, and knows of nobody who leads.
    NoLeader,
    /// It is there, and coordinates another cluster.
    Stranger,
    Nothing,
}

impl Heard {
    /// What a refusal with this code says of who gave it.
    pub fn of(code: ErrorCode) -> Heard {
        match code {
            ErrorCode::CoordinatorUnavailable | ErrorCode::ShuttingDown => Heard::NoLeader,
            ErrorCode::WrongCluster => Heard::Stranger,
            _ => Heard::Answer,
        }
    }
}

/// `A`: where one of them is.
#[derive(Clone, Debug)]
pub struct Choice<A> {
    configured: Vec<A>,
    /// As the leader told them.
    learned: Vec<A>,
    current: A,
    /// Has not answered for some time. It is passed over as long as others answer, if only that nobody leads: who asks
    /// it again waits again.
    hanging: Option<A>,
    /// Of another cluster. They are asked only where there is nobody else at all: somebody may have started them anew.
    strangers: Vec<A>,
}

impl<A: Clone + Eq> Choice<A> {
    /// `configured`: at least one.
    pub fn new(configured: Vec<A>) -> Choice<A> {
        let current = configured.first().cloned();
        Choice {
            current: current.expect("the configuration names a coordinator"),
            configured,
            learned: Vec::new(),
            hanging: None,
            strangers: Vec::new(),
        }
    }

    /// The one to ask.
    pub fn current(&self) -> &A {
        &self.current
    }

    /// How many there are to try.
    pub fn count(&self) -> usize {
        self.all().count()
    }

    /// The coordinators are these, the one that leads first.
    pub fn learn(&mut self, coordinators: Vec<A>) {
        if let Some(leader) = coordinators.first() {
            self.current.clone_from(leader);
            self.hanging.take_if(|hanging| hanging == leader);
        }
        self.learned = coordinators;
    }

    pub fn is_stranger(&self, one: &A) -> bool {
        self.strangers.contains(one)
    }

    pub fn hear(&mut self, asked: &A, heard: Heard) {
        match heard {
            Heard::Answer | Heard::NoLeader => {
                self.hanging.take_if(|hanging| hanging == asked);
                self.strangers.retain(|one| one != asked);
            }
            Heard::Stranger => {
                if !self.is_stranger(asked) {
                    self.strangers.push(asked.clone());
                }
            }
            // Where this one is not there either, the one that hung may be back.
            Heard::Nothing => self.hanging = None,
        }
        if heard != Heard::Answer {
            self.pass_over(asked);
        }
    }

    /// This one has not answered for some time, and may yet.
    pub fn doubt(&mut self, asked: &A) {
        self.hanging = Some(asked.clone());
        self.pass_over(asked);
    }

    /// This one did not do. Somebody else may have gone on to the next one already.
    pub fn pass_over(&mut self, failed: &A) {
        if self.current != *failed {
            return;
        }
        let at = self.all().position(|one| one == failed);
        let others = || {
            let in_turn = self.all().chain(self.all()).skip(at.map_or(0, |at| at + 1));
            in_turn.filter(|one| *one != failed)
        };
        let is_ours = |one: &&A| !self.is_stranger(one);
        let answers = |one: &&A| is_ours(one) && self.hanging.as_ref() != Some(*one);
        let next = others().find(answers).or_else(|| others().find(is_ours));
        let next = match self.is_stranger(failed) {
            true => next.or_else(|| others().next()),
            false => next,
        };
        if let Some(next) = next.cloned() {
            self.current = next;
        }
    }

    fn all(&self) -> impl Iterator<Item = &A> {
        let new = self.learned.iter();
        let new = new.filter(|one| !self.configured.contains(one));
        self.configured.iter().chain(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_tried_in_turn_and_the_leader_is_preferred() {
        let mut choice = Choice::new(vec!["a", "b"]);
        assert_eq!(*choice.current(), "a");
        choice.pass_over(&"a");
        // The second to notice does not skip one.
        choice.pass_over(&"a");
        assert_eq!(*choice.current(), "b");
        choice.pass_over(&"b");
        assert_eq!(*choice.current(), "a");

        choice.learn(vec!["c", "a"]);
        assert_eq!(*choice.current(), "c");
        choice.pass_over(&"c");
        assert_eq!(*choice.current(), "a");
        choice.pass_over(&"a");
        assert_eq!(
            *choice.current(),
            "b",
            "what it was told at the start stays"
        );
        choice.pass_over(&"b");
        assert_eq!(*choice.current(), "c");
    }

    #[test]
    fn one_that_hangs_is_passed_over_until_it_answers() {
        let mut choice = Choice::new(vec!["a", "b", "c"]);
        choice.doubt(&"a");
        for other in ["b", "c", "b", "c"] {
            assert_eq!(*choice.current(), other);
            choice.hear(&other, Heard::NoLeader);
        }
        choice.hear(&"a", Heard::NoLeader);
        choice.pass_over(&"b");
        choice.pass_over(&"c");
        assert_eq!(*choice.current(), "a");
    }

    #[test]
    fn one_that_hangs_is_asked_where_there_is_no_other() {
        let mut choice = Choice::new(vec!["a", "b"]);
        choice.doubt(&"a");
        choice.hear(&"b", Heard::NoLeader);
        assert_eq!(*choice.current(), "a", "there is no other");

        let mut choice = Choice::new(vec!["a", "b", "c"]);
        choice.doubt(&"a");
        choice.hear(&"b", Heard::Nothing);
        choice.hear(&"c", Heard::Nothing);
        assert_eq!(*choice.current(), "a", "the others are gone");
    }

    #[test]
    fn one_of_another_cluster_is_not_asked_again_unless_all_are() {
        let mut choice = Choice::new(vec!["a", "b", "c"]);
        choice.hear(&"a", Heard::Stranger);
        for other in ["b", "c", "b", "c"] {
            assert_eq!(*choice.current(), other);
            choice.hear(&other, Heard::Nothing);
        }
        choice.hear(&"b", Heard::Stranger);
        assert_eq!(*choice.current(), "c");
        choice.hear(&"c", Heard::Nothing);
        assert_eq!(*choice.current(), "c", "it may come back");
        choice.hear(&"c", Heard::Stranger);
        assert_eq!(*choice.current(), "a");
        choice.hear(&"a", Heard::Answer);
        assert_eq!(*choice.current(), "a", "it was started anew");
        choice.hear(&"a", Heard::Nothing);
        assert_eq!(*choice.current(), "a");
    }

    #[test]
    fn only_an_answer_keeps_the_one_that_gave_it() {
        for (heard, next) in [
            (Heard::Answer, "a"),
            (Heard::NoLeader, "b"),
            (Heard::Stranger, "b"),
            (Heard::Nothing, "b"),
        ] {
            let mut choice = Choice::new(vec!["a", "b"]);
            choice.hear(&"a", heard);
            assert_eq!(*choice.current(), next, "{heard:?}");
        }
        let mut alone = Choice::new(vec!["a"]);
        alone.hear(&"a", Heard::Nothing);
        assert_eq!(*alone.current(), "a");
    }
}
