//! Decides when a job's next archive is begun, and which of its archives go.
//!
//! An archive is a savepoint that nobody asked for. The interval counts from when this coordinator heard of the last
//! one, so another coordinator may be up to one interval late, and no wall clock is asked. What is left of one that failed
//! goes at once; one that is complete stays until so many newer ones are complete as are to be kept.

use uuid::Uuid;

use common::objects::location::Location;
use common::protocol::job::JobState;
use common::time::{Span, Tick};

use crate::metadata::jobs::JobRow;
use crate::metadata::savepoints::SavepointOutcome;

/// What did not come about is tried again after this.
const AGAIN: Span = Span::from_secs(10);

/// What the metadata says of the job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Facts {
    /// `None`: archives are not wanted.
    pub wanted: Option<Wanted>,
    /// Every task runs, and nothing else is being saved.
    pub ready: bool,
    /// The last one last.
    pub archives: Vec<Archive>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    pub interval: Span,
    pub keep: usize,
    pub location: Location,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Archive {
    pub id: Uuid,
    pub standing: Standing,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    UnderWay,
    Failed,
    Complete(Location),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    MetadataChanged(Facts),
    /// What was last decided is a fact now, or did not come about.
    Done,
    NotDone,
    TimePassed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    Begin {
        location: Location,
    },
    /// It goes from its store, if it is there, and then from the metadata.
    Remove {
        id: Uuid,
        place: Option<Location>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ArchiveMachine {
    facts: Facts,
    /// When the next one is due, if one is wanted: an interval after this.
    since: Tick,
    newest: Option<Uuid>,
    doing: Option<Doing>,
    not_before: Tick,
    asked: Tick,
}

/// What is not decided yet. What is begun came after `since`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doing {
    Beginning { since: Tick },
    Removing,
}

impl ArchiveMachine {
    pub fn new(now: Tick) -> ArchiveMachine {
        ArchiveMachine {
            facts: Facts::default(),
            since: now,
            newest: None,
            doing: None,
            not_before: now,
            asked: now,
        }
    }

    /// Applies one event. Deterministic: same machine, same event, same time, same effects.
    pub fn handle(&mut self, now: Tick, event: Event) -> Vec<Effect> {
        self.asked = now;
        match event {
            Event::MetadataChanged(facts) => {
                let newest = facts.archives.last().map(|archive| archive.id);
                if newest.is_some() && newest != self.newest {
                    self.newest = newest;
                    self.since = now;
                }
                self.facts = facts;
            }
            Event::Done => self.doing = None,
            Event::NotDone => {
                if let Some(Doing::Beginning { since }) = self.doing.take() {
                    self.since = since;
                }
                self.not_before = now.plus(AGAIN);
            }
            Event::TimePassed => {}
        }
        let effect = self.next(now);
        match &effect {
            Some(Effect::Begin { .. }) => {
                let since = std::mem::replace(&mut self.since, now);
                self.doing = Some(Doing::Beginning { since });
            }
            Some(Effect::Remove { .. }) => self.doing = Some(Doing::Removing),
            None => {}
        }
        effect.into_iter().collect()
    }

    /// When the machine wants to be asked again, if nothing happens before.
    pub fn wake_at(&self) -> Option<Tick> {
        let due = self.due().unwrap_or(self.not_before);
        let at = due.max(self.not_before);
        (self.doing.is_none() && at > self.asked).then_some(at)
    }

    fn due(&self) -> Option<Tick> {
        let wanted = self.facts.wanted.as_ref().filter(|_| self.facts.ready)?;
        Some(self.since.plus(wanted.interval))
    }

    fn next(&self, now: Tick) -> Option<Effect> {
        if self.doing.is_some() || now < self.not_before {
            return None;
        }
        let wanted = self.facts.wanted.as_ref()?;
        let complete =
            self.facts
                .archives
                .iter()
                .rev()
                .filter_map(|archive| match &archive.standing {
                    Standing::Complete(place) => Some((archive.id, place)),
                    Standing::UnderWay | Standing::Failed => None,
                });
        if let Some((id, place)) = complete.skip(wanted.keep).last() {
            let place = Some(place.clone());
            return Some(Effect::Remove { id, place });
        }
        // The last one says why there is none.
        let earlier = self.facts.archives.split_last().map(|(_, earlier)| earlier);
        let mut earlier = earlier.unwrap_or_default().iter();
        if let Some(failed) = earlier.find(|archive| archive.standing == Standing::Failed) {
            let (id, place) = (failed.id, None);
            return Some(Effect::Remove { id, place });
        }
        (self.due()? <= now).then(|| Effect::Begin {
            location: wanted.location.clone(),
        })
    }
}

impl Facts {
    pub fn of(row: &JobRow) -> Facts {
        let wanted = row.spec.config.archive.as_ref().and_then(|config| {
            Some(Wanted {
                interval: config.interval,
                keep: config.keep as usize,
                location: config.location.clone()?,
            })
        });
        let archives = row.savepoints.iter().filter(|savepoint| savepoint.archive);
        let standing = |outcome: &SavepointOutcome| match outcome {
            SavepointOutcome::Complete { place, .. } => Standing::Complete(place.clone()),
            SavepointOutcome::Failed { .. } => Standing::Failed,
        };
        Facts {
            wanted,
            ready: row.state == JobState::Running && row.savepoint_under_way().is_none(),
            archives: archives
                .map(|savepoint| Archive {
                    id: savepoint.id,
                    standing: match &savepoint.ended {
                        None => Standing::UnderWay,
                        Some(ended) => standing(&ended.outcome),
                    },
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Span = Span::from_secs(60);

    fn place(number: u128) -> Location {
        format!("file:///archives/{number}").parse().unwrap()
    }

    fn archive(number: u128, standing: Standing) -> Archive {
        let id = Uuid::from_u128(number);
        Archive { id, standing }
    }

    fn complete(number: u128) -> Archive {
        archive(number, Standing::Complete(place(number)))
    }

    fn facts(ready: bool, archives: &[Archive]) -> Event {
        Event::MetadataChanged(Facts {
            wanted: Some(Wanted {
                interval: INTERVAL,
                keep: 2,
                location: place(0),
            }),
            ready,
            archives: archives.to_vec(),
        })
    }

    fn begin() -> Vec<Effect> {
        let location = place(0);
        vec![Effect::Begin { location }]
    }

    fn remove(number: u128, is_there: bool) -> Vec<Effect> {
        let id = Uuid::from_u128(number);
        let place = is_there.then(|| place(number));
        vec![Effect::Remove { id, place }]
    }

    #[test]
    fn one_follows_the_other_and_only_the_latest_are_kept() {
        let mut machine = ArchiveMachine::new(Tick(0));
        let mut now = Tick(0);
        assert_eq!(machine.handle(now, facts(true, &[])), []);
        let mut archives = Vec::new();
        for number in 1..=4 {
            assert_eq!(machine.wake_at(), Some(now.plus(INTERVAL)));
            now = now.plus(INTERVAL);
            assert_eq!(machine.handle(now, Event::TimePassed), begin());
            assert_eq!(machine.wake_at(), None);
            assert_eq!(machine.handle(now, Event::Done), []);
            archives.push(archive(number, Standing::UnderWay));
            assert_eq!(machine.handle(now, facts(false, &archives)), []);
            *archives.last_mut().unwrap() = complete(number);
            let effects = machine.handle(now, facts(true, &archives));
            match archives.len() {
                3 => {
                    assert_eq!(effects, remove(number - 2, true));
                    archives.remove(0);
                    assert_eq!(machine.handle(now, facts(true, &archives)), []);
                    assert_eq!(machine.handle(now, Event::Done), []);
                }
                _ => assert_eq!(effects, []),
            }
        }
    }

    #[test]
    fn what_failed_stays_until_there_is_another_and_what_did_not_come_about_is_tried_again() {
        let mut machine = ArchiveMachine::new(Tick(0));
        let failed = |number| archive(number, Standing::Failed);
        machine.handle(Tick(0), facts(true, &[complete(1), failed(2)]));
        let due = Tick(0).plus(INTERVAL);
        assert_eq!(machine.handle(due, Event::TimePassed), begin());
        assert_eq!(machine.handle(due, Event::NotDone), []);
        let again = due.plus(AGAIN);
        assert_eq!(machine.wake_at(), Some(again));
        assert_eq!(machine.handle(again, Event::TimePassed), begin());
        assert_eq!(machine.handle(again, Event::Done), []);
        let all = [complete(1), failed(2), complete(3)];
        assert_eq!(machine.handle(again, facts(true, &all)), remove(2, false));
    }

    #[test]
    fn nothing_is_begun_for_a_job_that_does_not_run_or_does_not_want_it() {
        let mut machine = ArchiveMachine::new(Tick(0));
        machine.handle(Tick(0), facts(false, &[]));
        let later = Tick(0).plus(INTERVAL).plus(INTERVAL);
        assert_eq!(machine.handle(later, Event::TimePassed), []);
        assert_eq!(machine.wake_at(), None);
        assert_eq!(machine.handle(later, facts(true, &[])), begin());
        let mut machine = ArchiveMachine::new(Tick(0));
        let all = [complete(1), complete(2), complete(3)];
        let not_wanted = Facts {
            archives: all.to_vec(),
            ready: true,
            wanted: None,
        };
        let effects = machine.handle(later, Event::MetadataChanged(not_wanted));
        assert_eq!(effects, []);
    }
}
