//! Answers questions about the state of a task's operators.
//!
//! What is not in memory is asked for and read between two turns of the task. Each step reads the same
//! checkpoint, so the pages fit together; a step whose answer may be outdated is taken again.

use common::error::{ErrorCode, Problem};
use common::protocol::state::{Consistency, QueryState, StateEntries, StateEntry, StatePlace};
use common::time::Timestamp;
use common::transport::msgpack;
use serde::{Deserialize, Serialize};

use super::chain::{Chain, Question};
use crate::keyed_state::section::TableId;
use crate::keyed_state::stored::{Answer, Ask, StoredRange, Until};
use crate::keyed_state::table::{At, EpochGone, Table};
use crate::operator::Operator;

/// Read from the store at once.
const RANGE_BYTES: usize = 1 << 20;

/// A question that is being answered.
#[derive(Debug)]
pub struct Reading {
    query: QueryState,
    at: At,
    /// The canonical bytes of the key that is asked for.
    key: Option<Vec<u8>>,
    place: Place,
    /// Behind the last entry that was taken or passed over: where the next page begins.
    passed: Place,
    /// How often the table had let something go when it asked the store.
    asked_at: u64,
    answer: StateEntries,
}

/// Where to read on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// `None`: the first one.
    table: Option<String>,
    namespace: Option<i64>,
    #[serde(with = "serde_bytes")]
    after: Option<Vec<u8>>,
}

#[derive(Debug)]
pub enum Step {
    Done(StateEntries),
    /// Go on with the answer to this.
    Ask(Question),
}

impl Reading {
    pub fn begin(
        query: QueryState,
        chain: &Chain,
        watermark: Option<Timestamp>,
    ) -> Result<Reading, Problem> {
        let (_, operator, _) = find(&query, chain)?;
        let at = match (query.consistency, query.checkpoint) {
            (Consistency::Live, _) => At::Live,
            (Consistency::Completed, Some(checkpoint)) => At::Completed(checkpoint),
            (Consistency::Completed, None) => {
                return Err(Problem::new(
                    ErrorCode::InvalidRequest,
                    "no checkpoint to read at is named",
                ));
            }
        };
        let key = match &query.key {
            Some(key) => Some(operator.encode_key(key).ok_or_else(|| {
                let detail = format!("{key} is not a key of \"{}\"", query.operator);
                Problem::new(ErrorCode::InvalidRequest, detail)
                    .hint("Write a single key column as a JSON value, several as an array.")
            })?),
            None => None,
        };
        let place = match &query.after {
            Some(StatePlace(place)) => msgpack::decode(place).map_err(|_| {
                Problem::new(ErrorCode::InvalidRequest, "no page ended there")
                    .hint("Give as `after` what \"next\" said in the page before.")
            })?,
            None => Place::default(),
        };
        Ok(Reading {
            at,
            key,
            passed: place.clone(),
            place,
            asked_at: 0,
            answer: StateEntries {
                entries: Vec::new(),
                next: None,
                watermark,
            },
            query,
        })
    }

    pub fn at(&self) -> At {
        self.at
    }

    /// Reads on, as far as is possible without the store.
    pub fn step(&mut self, chain: &Chain, answer: Option<Answer>) -> Result<Step, Problem> {
        let (id, operator, tables) = find(&self.query, chain)?;
        let mut answer = answer;
        loop {
            let mut from = tables.range(self.place.table.clone().unwrap_or_default()..);
            let Some((name, table)) = from.next() else {
                return Ok(Step::Done(std::mem::take(&mut self.answer)));
            };
            let first = self.place.namespace.unwrap_or(i64::MIN);
            let namespaces = table
                .namespaces_at(self.at, first)
                .map_err(|gone| self.gone(gone))?;
            let Some(namespace) = namespaces.first().copied() else {
                let Some((next, _)) = from.next() else {
                    return Ok(Step::Done(std::mem::take(&mut self.answer)));
                };
                self.place = Place {
                    table: Some(next.clone()),
                    ..Place::default()
                };
                continue;
            };
            let is_here =
                self.place.table.as_ref() == Some(name) && self.place.namespace == Some(namespace);
            if !is_here {
                self.place = Place {
                    table: Some(name.clone()),
                    namespace: Some(namespace),
                    after: None,
                };
            }
            // What was let go since the store was asked may be newer than what it answered.
            let fresh = answer.take().filter(|_| self.asked_at == table.evictions());
            let ask = match &self.key {
                Some(key) => table.ask_key(self.at, namespace, key),
                None => table
                    .ask_range(
                        self.at,
                        [namespace],
                        self.place.after.as_deref(),
                        RANGE_BYTES,
                    )
                    .map(Ask::Range),
            };
            if let (Some(ask), None) = (&ask, &fresh) {
                self.asked_at = table.evictions();
                let table = TableId {
                    operator: id.to_owned(),
                    table: name.clone(),
                };
                let ask = ask.clone();
                return Ok(Step::Ask(Question { table, ask }));
            }
            let is_full = match &self.key {
                Some(_) => self.take_key(operator, name, table, namespace, fresh)?,
                None => self.take_range(operator, name, table, namespace, fresh)?,
            };
            if is_full {
                return Ok(Step::Done(std::mem::take(&mut self.answer)));
            }
        }
    }

    /// Takes the one entry of a namespace that is asked for, and goes on to the next namespace.
    fn take_key(
        &mut self,
        operator: &dyn Operator,
        name: &str,
        table: &Table,
        namespace: i64,
        answer: Option<Answer>,
    ) -> Result<bool, Problem> {
        let key = self.key.clone().unwrap_or_default();
        let value = match (table.ask_key(self.at, namespace, &key), answer) {
            (Some(_), Some(Answer::Keys(found))) => {
                found.into_iter().next().and_then(|(_, _, value)| value)
            }
            _ => table
                .get_at(self.at, namespace, &key)
                .map_err(|gone| self.gone(gone))?
                .map(<[u8]>::to_vec),
        };
        let entry = value.and_then(|value| operator.describe(name, namespace, &key, &value));
        if entry.is_some_and(|entry| self.take(entry)) {
            return Ok(true);
        }
        self.place.namespace = Some(namespace.saturating_add(1));
        self.passed = self.place.clone();
        Ok(false)
    }

    /// Takes the entries of a namespace as far as they are known, and goes on behind them.
    fn take_range(
        &mut self,
        operator: &dyn Operator,
        name: &str,
        table: &Table,
        namespace: i64,
        answer: Option<Answer>,
    ) -> Result<bool, Problem> {
        let range = match answer {
            Some(Answer::Range(range)) => range,
            Some(Answer::Keys(_)) | None => StoredRange::default(),
        };
        let wanted = usize::try_from(self.query.limit).unwrap_or(usize::MAX);
        let wanted = wanted.saturating_add(1);
        let after = self.place.after.take();
        let page = table
            .page(self.at, namespace, after.as_deref(), &range, wanted)
            .map_err(|gone| self.gone(gone))?;
        for (key, value) in &page {
            if let Some(entry) = operator.describe(name, namespace, key, value)
                && self.take(entry)
            {
                return Ok(true);
            }
            self.passed = Place {
                table: Some(name.to_owned()),
                namespace: Some(namespace),
                after: Some(key.to_vec()),
            };
        }
        match (page.last(), &range.until) {
            (Some((key, _)), _) if page.len() == wanted => self.place.after = Some(key.to_vec()),
            (_, Until::Key(last)) => self.place.after = Some(last.clone()),
            (_, Until::End) => self.place.namespace = Some(namespace.saturating_add(1)),
        }
        Ok(false)
    }

    /// Takes an entry, if it is asked for; true: there was no room for it.
    fn take(&mut self, entry: StateEntry) -> bool {
        let first = entry.key.values().next();
        let prefix = self.query.prefix.as_ref();
        if prefix.is_some_and(|prefix| !starts_with(first, prefix)) {
            return false;
        }
        if self.answer.entries.len() as u64 == u64::from(self.query.limit) {
            let place = msgpack::encode(&self.passed)
                .expect("a place is plain data")
                .to_vec();
            self.answer.next = Some(StatePlace(place));
            return true;
        }
        self.answer.entries.push(entry);
        false
    }

    fn gone(&self, EpochGone { asked, .. }: EpochGone) -> Problem {
        let detail = format!("the state at epoch {asked} is no longer kept");
        Problem::new(ErrorCode::EpochGone, detail).hint("Leave `epoch` out to read the newest one.")
    }
}

type Found<'c> = (
    &'c str,
    &'c dyn Operator,
    &'c std::collections::BTreeMap<String, Table>,
);

fn find<'c>(query: &QueryState, chain: &'c Chain) -> Result<Found<'c>, Problem> {
    let found = chain
        .operators()
        .find(|(id, _, _)| *id == query.operator)
        .ok_or_else(|| {
            let detail = format!("task {} has no operator \"{}\"", query.task, query.operator);
            Problem::new(ErrorCode::UnknownOperator, detail)
        })?;
    let (id, operator, state) = found;
    Ok((id, operator, &state.tables))
}

fn starts_with(value: Option<&serde_json::Value>, prefix: &str) -> bool {
    match value {
        Some(serde_json::Value::String(text)) => text.starts_with(prefix),
        Some(other) => other.to_string().starts_with(prefix),
        None => prefix.is_empty(),
    }
}
