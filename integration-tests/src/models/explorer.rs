//! Looks at every state that can be reached, breadth first, so that a counterexample is a shortest one.
//!
//! States are told apart by a digest of what matters of them, and forgotten once what follows from them is
//! known; a way is found again by walking it. There is no "eventually": where messages may be lost for ever
//! nothing has to happen. What must hold instead is that a goal *stays open*: from wherever the model
//! comes to, some way leads there.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::fmt::{self, Debug};
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A world of machines: where it begins, and what may happen next.
pub trait Model {
    type State: Clone;
    type Action: Copy + Debug;

    fn name(&self) -> String;

    fn initial(&self) -> Self::State;

    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;

    /// What an action makes of a state. A rule that was broken on the way is a panic, as in the product.
    fn act(&self, state: &mut Self::State, action: Self::Action);

    /// What tells states apart: all that can make a difference later.
    fn digest(&self, state: &Self::State, hasher: &mut DefaultHasher);

    fn properties(&self) -> Vec<Property<Self::State>>;
}

/// What is claimed of a model.
pub struct Property<S> {
    pub kind: Kind,
    pub name: &'static str,
    pub holds: fn(&S) -> bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In every state.
    Always,
    /// In one state at least: without it the model would not say much.
    Sometimes,
    /// From every state a way leads to one in which it holds.
    StaysOpen,
}

/// How large a model was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explored {
    pub states: usize,
    pub steps: usize,
    /// The length of the longest of the shortest ways.
    pub depth: usize,
}

/// A claim that does not hold, and how to see that.
#[derive(Clone, Debug)]
pub struct Counterexample {
    pub model: String,
    pub broken: String,
    pub way: Vec<String>,
}

/// More states than this are a mistake in the scope.
const MOST_STATES: usize = 4_000_000;

impl<S> Property<S> {
    pub fn always(name: &'static str, holds: fn(&S) -> bool) -> Property<S> {
        let kind = Kind::Always;
        Property { kind, name, holds }
    }

    pub fn sometimes(name: &'static str, holds: fn(&S) -> bool) -> Property<S> {
        let kind = Kind::Sometimes;
        Property { kind, name, holds }
    }

    pub fn stays_open(name: &'static str, holds: fn(&S) -> bool) -> Property<S> {
        let kind = Kind::StaysOpen;
        Property { kind, name, holds }
    }
}

impl<S> Debug for Property<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.name)
    }
}

struct Explorer<'m, M: Model> {
    model: &'m M,
    properties: Vec<Property<M::State>>,
    seen: HashMap<u64, u32>,
    /// How each state was come to first.
    parents: Vec<Option<(u32, M::Action)>>,
    /// For each state, which of the properties hold in it.
    holding: Vec<u32>,
    steps: Vec<(u32, u32)>,
}

/// Looks at everything. The first claim that is broken ends it.
pub fn explore<M: Model>(model: &M) -> Result<Explored, Counterexample> {
    let properties = model.properties();
    assert!(properties.len() <= 32, "a state's properties are 32 bits");
    let mut explorer = Explorer {
        model,
        properties,
        seen: HashMap::new(),
        parents: Vec::new(),
        holding: Vec::new(),
        steps: Vec::new(),
    };
    explorer.run()
}

impl<M: Model> Explorer<'_, M> {
    fn run(&mut self) -> Result<Explored, Counterexample> {
        let initial = self.model.initial();
        let mut frontier = VecDeque::new();
        let first = self.come_to(&initial, None)?.expect("it is the first");
        frontier.push_back((first, initial));
        while let Some((from, state)) = frontier.pop_front() {
            for action in self.model.actions(&state) {
                let mut next = state.clone();
                let acted = catch_unwind(AssertUnwindSafe(|| self.model.act(&mut next, action)));
                if let Err(panic) = acted {
                    let words = panic.downcast_ref::<String>().cloned();
                    let words = words.unwrap_or_else(|| "a rule was broken".to_owned());
                    return Err(self.counterexample(from, Some(action), words));
                }
                if let Some(new) = self.come_to(&next, Some((from, action)))? {
                    frontier.push_back((new, next));
                }
            }
        }
        self.check_sometimes()?;
        self.check_open()?;
        let last = u32::try_from(self.parents.len() - 1).expect("bounded");
        Ok(Explored {
            states: self.parents.len(),
            steps: self.steps.len(),
            depth: self.way_to(last).len(),
        })
    }

    /// The number of a state that was not seen before.
    fn come_to(
        &mut self,
        state: &M::State,
        parent: Option<(u32, M::Action)>,
    ) -> Result<Option<u32>, Counterexample> {
        let number = u32::try_from(self.parents.len()).expect("bounded");
        let known = match self.seen.entry(digest(self.model, state)) {
            Entry::Occupied(known) => Some(*known.get()),
            Entry::Vacant(new) => {
                new.insert(number);
                None
            }
        };
        if let Some((from, _)) = parent {
            self.steps.push((from, known.unwrap_or(number)));
        }
        if known.is_some() {
            return Ok(None);
        }
        assert!(
            self.parents.len() < MOST_STATES,
            "{}: the scope is too large",
            self.model.name()
        );
        self.parents.push(parent);
        let mut holding = 0;
        let mut broken = None;
        for (bit, property) in self.properties.iter().enumerate() {
            match (property.holds)(state) {
                true => holding |= 1 << bit,
                false if property.kind == Kind::Always => {
                    broken.get_or_insert(property.name);
                }
                false => {}
            }
        }
        self.holding.push(holding);
        match broken {
            None => Ok(Some(number)),
            Some(name) => Err(self.counterexample(number, None, format!("not always: {name}"))),
        }
    }

    fn check_sometimes(&self) -> Result<(), Counterexample> {
        for (bit, property) in self.properties.iter().enumerate() {
            let once = || self.holding.iter().any(|holding| holding & (1 << bit) != 0);
            if property.kind == Kind::Sometimes && !once() {
                return Err(Counterexample {
                    model: self.model.name(),
                    broken: format!("never: {}", property.name),
                    way: Vec::new(),
                });
            }
        }
        Ok(())
    }

    /// Walks back from where the goal is reached; whoever is not met on the way cannot reach it.
    fn check_open(&mut self) -> Result<(), Counterexample> {
        // Sorted by where they lead, so that those that lead to one state lie together.
        self.steps.sort_unstable_by_key(|(_, to)| *to);
        for (bit, property) in self.properties.iter().enumerate() {
            if property.kind != Kind::StaysOpen {
                continue;
            }
            let holds = |state: &u32| self.holding[*state as usize] & (1 << bit) != 0;
            let all = 0..u32::try_from(self.parents.len()).expect("bounded");
            let mut open: Vec<bool> = all.clone().map(|state| holds(&state)).collect();
            let mut reached: Vec<u32> = all.filter(holds).collect();
            while let Some(state) = reached.pop() {
                let first = self.steps.partition_point(|(_, to)| *to < state);
                let into = self.steps[first..]
                    .iter()
                    .take_while(|(_, to)| *to == state);
                for (from, _) in into {
                    if !std::mem::replace(&mut open[*from as usize], true) {
                        reached.push(*from);
                    }
                }
            }
            if let Some(closed) = open.iter().position(|open| !open) {
                let closed = u32::try_from(closed).expect("bounded");
                let broken = format!("out of reach from here: {}", property.name);
                return Err(self.counterexample(closed, None, broken));
            }
        }
        Ok(())
    }

    fn counterexample(
        &self,
        state: u32,
        then: Option<M::Action>,
        broken: String,
    ) -> Counterexample {
        let way = self.way_to(state).into_iter().chain(then);
        Counterexample {
            model: self.model.name(),
            broken,
            way: way.map(|action| format!("{action:?}")).collect(),
        }
    }

    fn way_to(&self, mut state: u32) -> Vec<M::Action> {
        let mut way = Vec::new();
        while let Some((parent, action)) = self.parents[state as usize] {
            way.push(action);
            state = parent;
        }
        way.reverse();
        way
    }
}

/// What tells a state apart.
pub fn digest<M: Model>(model: &M, state: &M::State) -> u64 {
    let mut hasher = DefaultHasher::new();
    model.digest(state, &mut hasher);
    hasher.finish()
}

/// Digests what is only `Debug` or compared elsewhere: by its parts.
pub fn digest_all<T: Hash>(items: impl IntoIterator<Item = T>, hasher: &mut DefaultHasher) {
    let mut count = 0_u32;
    for item in items {
        item.hash(hasher);
        count += 1;
    }
    count.hash(hasher);
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.model, self.broken)?;
        for (step, action) in self.way.iter().enumerate() {
            write!(f, "\n{:>4} {action}", step + 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Two = (u8, Option<u8>);

    /// Two counters up to a limit; the second may be lost for ever.
    struct Counters {
        properties: fn() -> Vec<Property<Two>>,
    }

    #[derive(Clone, Copy, Debug)]
    enum Count {
        First,
        Second,
        Lose,
    }

    impl Model for Counters {
        type State = Two;
        type Action = Count;

        fn name(&self) -> String {
            "counters".to_owned()
        }

        fn initial(&self) -> Self::State {
            (0, Some(0))
        }

        fn actions(&self, _: &Self::State) -> Vec<Count> {
            vec![Count::First, Count::Second, Count::Lose]
        }

        fn act(&self, (first, second): &mut Self::State, action: Count) {
            match action {
                Count::First => *first = (*first + 1) % 4,
                Count::Second => *second = second.map(|second| (second + 1) % 3),
                Count::Lose => {
                    assert!(*first != 3, "it is lost at the worst time");
                    *second = None;
                }
            }
        }

        fn digest(&self, state: &Self::State, hasher: &mut DefaultHasher) {
            state.hash(hasher);
        }

        fn properties(&self) -> Vec<Property<Self::State>> {
            (self.properties)()
        }
    }

    fn broken(properties: fn() -> Vec<Property<Two>>) -> Counterexample {
        explore(&Counters { properties }).unwrap_err()
    }

    #[test]
    fn the_shortest_way_to_a_broken_claim_is_found() {
        let found = broken(|| {
            vec![Property::always("together", |(a, b)| {
                a + b.unwrap_or(0) < 3
            })]
        });
        assert_eq!(found.way.len(), 3, "{found}");
        assert_eq!(found.broken, "not always: together");
    }

    #[test]
    fn what_never_happens_is_told() {
        let found = broken(|| vec![Property::sometimes("four", |(a, _)| *a == 4)]);
        // Its machine breaks first.
        assert_eq!(found.way, ["First", "First", "First", "Lose"]);
        let found = explore(&Calm(|| vec![Property::sometimes("two", |a| *a == 2)]));
        assert_eq!(found.unwrap_err().broken, "never: two");
    }

    #[test]
    fn a_goal_that_gets_out_of_reach_is_told_with_the_way_there() {
        let explored = explore(&Calm(|| vec![Property::stays_open("one", |a| *a == 1)]));
        assert_eq!(explored.unwrap().states, 2);
        let found = explore(&Calm(|| vec![Property::stays_open("none", |a| *a == 0)]));
        assert_eq!(found.unwrap_err().way, ["()"]);
    }

    /// Begins with nothing and comes to one, where it stays.
    struct Calm(fn() -> Vec<Property<u8>>);

    impl Model for Calm {
        type State = u8;
        type Action = ();

        fn name(&self) -> String {
            "calm".to_owned()
        }

        fn initial(&self) -> u8 {
            0
        }

        fn actions(&self, _: &u8) -> Vec<()> {
            vec![()]
        }

        fn act(&self, state: &mut u8, (): ()) {
            *state = 1;
        }

        fn digest(&self, state: &u8, hasher: &mut DefaultHasher) {
            state.hash(hasher);
        }

        fn properties(&self) -> Vec<Property<u8>> {
            (self.0)()
        }
    }
}
