//! The records of a coordinator's log, and what they amount to.
//!
//! Votes, entries and truncations lie in one log in the order in which they were made, so none can become
//! durable without what came before it. Nothing is rewritten in place:
//!
//! ```text
//! belongs   whose log this is: the cluster, and the number of this coordinator
//! vote      replaces the vote before it
//! entry     goes behind the entry before it
//! truncate  the entries from this index on never happened
//! purge     the entries up to this one are in a snapshot
//! install   a snapshot up to here is about to be taken from the leader
//! ```
//!
//! A purge repeats `belongs` and the vote before the segments that had them are dropped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use common::ids::{ClusterId, CoordinatorId};
use common::seglog::{Position, SegLog};
use common::transport::msgpack;

use super::OpenError;
use super::types::{Entry, LogId, Vote};

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    Belongs(Belongs),
    Vote(Vote),
    Entry(Entry),
    Truncate { since: u64 },
    Purge { up_to: LogId },
    Install { up_to: LogId },
}

/// Whose a log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Belongs {
    pub cluster: ClusterId,
    pub coordinator: CoordinatorId,
}

/// What all records together say.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) belongs: Option<Belongs>,
    pub(crate) vote: Option<Vote>,
    /// By index, without a gap.
    pub(crate) entries: BTreeMap<u64, Kept>,
    pub(crate) purged: Option<LogId>,
    /// How far a snapshot may reach beyond the entries.
    pub(crate) installing: Option<LogId>,
}

/// An entry, and where it is on the disk.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) entry: Entry,
    pub(crate) bytes: usize,
    pub(crate) position: Position,
}

impl Contents {
    /// Reads a log from its start to its end.
    pub(crate) fn read(log: &SegLog) -> Result<Contents, OpenError> {
        let mut contents = Contents::default();
        for record in log.reader().records(log.start()) {
            let record = record?;
            let payload = record.payload();
            let decoded = msgpack::decode(&payload).map_err(|source| OpenError::Record {
                position: record.position,
                source,
            })?;
            contents.follows_on(&decoded)?;
            contents.take(decoded, record.position, payload.len());
        }
        contents.is_whole()?;
        Ok(contents)
    }

    /// Takes note of a record that was appended.
    pub(crate) fn take(&mut self, record: Record, position: Position, bytes: usize) {
        match record {
            Record::Belongs(belongs) => self.belongs = Some(belongs),
            Record::Vote(vote) => self.vote = Some(vote),
            Record::Entry(entry) => {
                let kept = Kept {
                    entry,
                    bytes,
                    position,
                };
                self.entries.insert(kept.entry.log_id.index, kept);
            }
            Record::Truncate { since } => drop(self.entries.split_off(&since)),
            Record::Purge { up_to } => {
                self.entries = self.entries.split_off(&(up_to.index + 1));
                self.purged = self.purged.max(Some(up_to));
            }
            Record::Install { up_to } => self.installing = self.installing.max(Some(up_to)),
        }
    }

    /// The log id of the last entry, if only of one that is in the snapshot.
    pub(crate) fn last(&self) -> Option<LogId> {
        let last = self.entries.last_key_value();
        last.map(|(_, kept)| kept.entry.log_id).or(self.purged)
    }

    /// Where the oldest entry that is needed begins.
    pub(crate) fn first_position(&self) -> Option<Position> {
        let first = self.entries.first_key_value();
        first.map(|(_, kept)| kept.position)
    }

    /// Whether a snapshot that reaches up to here is one this log may have.
    pub(crate) fn fits(&self, snapshot: Option<LogId>) -> Result<(), OpenError> {
        if self.purged > snapshot {
            return Err(OpenError::NoSnapshot);
        }
        if let Some(snapshot) = snapshot
            && self.last() < Some(snapshot)
            && self.installing < Some(snapshot)
        {
            return Err(OpenError::EndsEarly {
                end: self.last().map_or(0, |last| last.index),
                snapshot: snapshot.index,
            });
        }
        Ok(())
    }

    fn follows_on(&self, record: &Record) -> Result<(), OpenError> {
        let last = self.entries.last_key_value().map(|(index, _)| *index);
        match (last, record) {
            (Some(before), Record::Entry(entry)) if entry.log_id.index != before + 1 => {
                Err(OpenError::Gap {
                    before,
                    found: entry.log_id.index,
                })
            }
            _ => Ok(()),
        }
    }

    /// What is before the first entry must have been purged.
    fn is_whole(&self) -> Result<(), OpenError> {
        let Some((&found, _)) = self.entries.first_key_value() else {
            return Ok(());
        };
        match self.purged {
            Some(purged) if found == purged.index + 1 => Ok(()),
            Some(purged) => Err(OpenError::Gap {
                before: purged.index,
                found,
            }),
            None if found == 0 => Ok(()),
            None => Err(OpenError::NoSnapshot),
        }
    }
}
