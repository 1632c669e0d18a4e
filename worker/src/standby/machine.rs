//! Decides what a standby asks for next, what it keeps of the answers, and what it says it holds.
//!
//! Of each worker that runs tasks one call at a time is under way, and it speaks of all of them. What is
//! answered is kept before the next call, which therefore names what is on the disk, and nothing that
//! comes twice or late is kept twice: it does not follow the position that is known here.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use common::ids::{CheckpointId, NodeId, TaskId};
use common::protocol::standby::{BasePosition, PieceOf, StandbyPosition, StatePiece};
use common::time::{Span, Tick};

/// After a call that failed, or a disk that did.
const PAUSE: Span = Span::from_millis(100);
const LONGEST_PAUSE: Span = Span::from_secs(2);

/// A task that is stood by for: where it runs, and the last checkpoint of which everything is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Followed {
    pub task: TaskId,
    pub runs_on: NodeId,
    pub held: Option<CheckpointId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// These are all. What is known of those that stay is better than `held`.
    Follow(Vec<Followed>),
    Answered {
        by: NodeId,
        pieces: Vec<(StatePiece, Bytes)>,
    },
    Unanswered {
        by: NodeId,
    },
    /// What `Effect::Keep` gave is on the disk.
    Kept {
        of: NodeId,
    },
    /// It is not, or not all of it.
    NotKept {
        of: NodeId,
    },
    TimePassed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    Ask {
        worker: NodeId,
        positions: Vec<StandbyPosition>,
    },
    /// In this order, and durably.
    Keep {
        of: NodeId,
        pieces: Vec<(StatePiece, Bytes)>,
    },
    /// Everything up to these checkpoints is on the disk.
    Acknowledge(Vec<(TaskId, CheckpointId)>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct StandbyMachine {
    tasks: BTreeMap<TaskId, Following>,
    conversations: BTreeMap<NodeId, Conversation>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Following {
    runs_on: NodeId,
    position: StandbyPosition,
    /// What the coordinator has been told.
    acknowledged: Option<CheckpointId>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Conversation {
    step: Step,
    /// In a row.
    failures: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum Step {
    #[default]
    Idle,
    Asking,
    Keeping(Vec<StatePiece>),
    Pausing {
        until: Tick,
    },
}

impl StandbyMachine {
    /// Applies one event. Deterministic: same machine, same event, same time, same effects.
    pub fn handle(&mut self, now: Tick, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Follow(tasks) => self.follow(tasks),
            Event::Answered { by, pieces } => self.answered(by, pieces, &mut effects),
            Event::Unanswered { by } => {
                self.end_asking(by);
                self.pause(now, by);
            }
            Event::Kept { of } => self.kept(of),
            Event::NotKept { of } => self.not_kept(now, of),
            Event::TimePassed => {}
        }
        self.acknowledge(&mut effects);
        self.ask(now, &mut effects);
        effects
    }

    /// When the machine wants to be asked again, if nothing happens before.
    pub fn wake_at(&self) -> Option<Tick> {
        let steps = self.conversations.values().map(|known| &known.step);
        let pauses = steps.filter_map(|step| match step {
            Step::Pausing { until } => Some(*until),
            Step::Idle | Step::Asking | Step::Keeping(_) => None,
        });
        pauses.min()
    }

    fn follow(&mut self, tasks: Vec<Followed>) {
        let mut before = std::mem::take(&mut self.tasks);
        for Followed {
            task,
            runs_on,
            held,
        } in tasks
        {
            let known = before.remove(&task);
            let known = known.filter(|known| known.runs_on == runs_on);
            let following = known.unwrap_or(Following {
                runs_on,
                position: StandbyPosition {
                    task,
                    after: held,
                    records: 0,
                    base: None,
                },
                acknowledged: None,
            });
            self.tasks.insert(task, following);
        }
        let asked: BTreeSet<NodeId> = self.tasks.values().map(|task| task.runs_on).collect();
        for worker in &asked {
            self.conversations.entry(*worker).or_default();
        }
        // A call or a write that is under way ends first.
        self.conversations.retain(|worker, known| {
            asked.contains(worker) || matches!(known.step, Step::Asking | Step::Keeping(_))
        });
    }

    fn answered(
        &mut self,
        by: NodeId,
        mut pieces: Vec<(StatePiece, Bytes)>,
        effects: &mut Vec<Effect>,
    ) {
        let mut positions: BTreeMap<TaskId, StandbyPosition> = BTreeMap::new();
        pieces.retain(|(piece, bytes)| {
            let known = self.tasks.get(&piece.task);
            let Some(known) = known.filter(|known| known.runs_on == by) else {
                return false;
            };
            let position = positions.entry(piece.task).or_insert(known.position);
            match after(*position, piece) {
                Some(next) if bytes.len() == piece.bytes as usize => {
                    *position = next;
                    true
                }
                Some(_) | None => false,
            }
        });
        let conversation = self.end_asking(by);
        conversation.failures = 0;
        conversation.step = match pieces.is_empty() {
            true => Step::Idle,
            false => Step::Keeping(pieces.iter().map(|(piece, _)| *piece).collect()),
        };
        if !pieces.is_empty() {
            effects.push(Effect::Keep { of: by, pieces });
        }
    }

    fn kept(&mut self, of: NodeId) {
        for piece in self.end_keeping(of) {
            // It may have begun to run elsewhere, or to be stood by for by others.
            if let Some(known) = self.tasks.get_mut(&piece.task)
                && known.runs_on == of
                && let Some(next) = after(known.position, &piece)
            {
                known.position = next;
            }
        }
    }

    fn not_kept(&mut self, now: Tick, of: NodeId) {
        for piece in self.end_keeping(of) {
            // What was written of it is written over, or again.
            if let Some(known) = self.tasks.get_mut(&piece.task) {
                known.position.records = 0;
                known.position.base = None;
            }
        }
        self.pause(now, of);
    }

    fn end_keeping(&mut self, of: NodeId) -> Vec<StatePiece> {
        match std::mem::take(&mut self.conversation(of).step) {
            Step::Keeping(pieces) => pieces,
            step => panic!("nothing of worker {of} was being kept, but {step:?}"),
        }
    }

    fn end_asking(&mut self, by: NodeId) -> &mut Conversation {
        let conversation = self.conversation(by);
        let step = std::mem::take(&mut conversation.step);
        assert_eq!(step, Step::Asking, "worker {by} was asked nothing");
        conversation
    }

    fn pause(&mut self, now: Tick, by: NodeId) {
        let conversation = self.conversation(by);
        let doublings = conversation.failures.min(8);
        conversation.failures += 1;
        conversation.step = Step::Pausing {
            until: now.plus(Span(PAUSE.0 << doublings).min(LONGEST_PAUSE)),
        };
    }

    fn conversation(&mut self, with: NodeId) -> &mut Conversation {
        let conversation = self.conversations.get_mut(&with);
        conversation.expect("a conversation stays while something is under way")
    }

    fn acknowledge(&mut self, effects: &mut Vec<Effect>) {
        let news = self.tasks.iter_mut().filter_map(|(task, known)| {
            let held = known.position.after?;
            let is_new = known.acknowledged < Some(held);
            known.acknowledged = Some(held);
            is_new.then_some((*task, held))
        });
        let news: Vec<_> = news.collect();
        if !news.is_empty() {
            effects.push(Effect::Acknowledge(news));
        }
    }

    fn ask(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        for (worker, conversation) in &mut self.conversations {
            match &conversation.step {
                Step::Idle => {}
                Step::Pausing { until } if *until <= now => {}
                Step::Pausing { .. } | Step::Asking | Step::Keeping(_) => continue,
            }
            let tasks = self.tasks.values().filter(|task| task.runs_on == *worker);
            let positions: Vec<StandbyPosition> = tasks.map(|task| task.position).collect();
            if positions.is_empty() {
                conversation.step = Step::Idle;
                continue;
            }
            conversation.step = Step::Asking;
            effects.push(Effect::Ask {
                worker: *worker,
                positions,
            });
        }
    }
}

/// Where a standby is with this piece, if the piece is what comes next for it.
fn after(position: StandbyPosition, piece: &StatePiece) -> Option<StandbyPosition> {
    match piece.of {
        PieceOf::Chunk {
            previous,
            checkpoint,
            last,
        } => {
            let follows = position.base.is_none() && previous == position.after;
            let next = match last {
                true => StandbyPosition {
                    after: Some(checkpoint),
                    records: 0,
                    ..position
                },
                false => StandbyPosition {
                    records: position.records + 1,
                    ..position
                },
            };
            follows.then_some(next)
        }
        PieceOf::Base { at, length } => {
            // An older one, if what follows is not for what is here.
            let other = match position.base {
                None => Some(at.checkpoint) != position.after,
                Some(_) => Some(at.checkpoint) > position.after,
            };
            let begins = at.offset == 0 && other;
            if !begins && position.base != Some(at) {
                return None;
            }
            let offset = at.offset + u64::from(piece.bytes);
            Some(match offset >= length {
                true => StandbyPosition {
                    after: Some(at.checkpoint),
                    records: 0,
                    base: None,
                    ..position
                },
                false => StandbyPosition {
                    records: 0,
                    base: Some(BasePosition { offset, ..at }),
                    ..position
                },
            })
        }
    }
}
