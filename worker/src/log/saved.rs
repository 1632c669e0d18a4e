//! The derived state of a log in a key-value store, so that opening the log need not read all of it.
//!
//! ```text
//! <partition> m                   the marker: what of the rest counts, with its digest
//! <partition> s <turn> <number>   the state and the end of the index, cut into pieces
//! <partition> i <first offset>    a full chunk of the index, which never changes
//! ```
//!
//! Saves take turns between two places for the state, full chunks are only added, and what is obsolete is
//! deleted after the marker no longer names it: whichever prefix of these writes survives, the marker
//! that survives names only what is there. Should it not, the digest tells, and nothing is restored.

use std::ops::ControlFlow;
use std::sync::Arc;

use common::ids::TopicPartition;
use common::kv::{Digest, KvError, KvStore, MAX_VALUE_BYTES, scan_prefix};
use common::offset::Offset;
use common::transport::msgpack;
use serde::{Deserialize, Serialize};

use super::derived::{Covered, Derived};
use super::index::{Chunk, LogIndex};

/// Raised when what is saved changes its meaning: older states are then rebuilt.
const VERSION: u32 = 1;
/// More pieces than any state has; a marker that claims more is not believed.
const MAX_PIECES: u32 = 64 << 10;

/// Where one partition's derived state is kept.
#[derive(Debug)]
pub struct SavedState {
    store: Arc<dyn KvStore>,
    prefix: Vec<u8>,
    /// The marker in the store, as far as is known.
    marker: Option<Marker>,
}

/// What was read back.
#[derive(Debug)]
pub struct Restored {
    pub covered: Covered,
    pub derived: Derived,
    pub index: LogIndex,
    pub state_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error(transparent)]
    Store(#[from] KvError),
    #[error(transparent)]
    Encode(#[from] msgpack::MsgpackError),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    version: u32,
    covered: Covered,
    turn: u8,
    pieces: u32,
    state_bytes: u64,
    /// The first and the last of the index chunks that count.
    chunks: Option<(Offset, Offset)>,
    #[serde(with = "serde_bytes")]
    digest: [u8; Digest::BYTES],
}

#[derive(Serialize, Deserialize)]
struct State {
    derived: Derived,
    /// The chunk at the end of the index, which still grows.
    #[serde(with = "serde_bytes")]
    last_chunk: Vec<u8>,
}

impl SavedState {
    pub fn new(store: Arc<dyn KvStore>, partition: TopicPartition) -> SavedState {
        let mut prefix = partition.topic.0.as_bytes().to_vec();
        prefix.extend_from_slice(&partition.partition.0.to_be_bytes());
        SavedState {
            store,
            prefix,
            marker: None,
        }
    }

    /// What was saved last, if all of it is there.
    pub fn load(&mut self) -> Option<Restored> {
        match self.try_load() {
            Ok(Some(restored)) => Some(restored),
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "the derived state of a partition could not be read");
                None
            }
        }
    }

    /// Saves what is derived from the log up to a place that is durable. Says how large it is.
    pub fn save(
        &mut self,
        covered: Covered,
        derived: &Derived,
        index: &LogIndex,
    ) -> Result<u64, SaveError> {
        let chunks: Vec<&Chunk> = index.chunks().collect();
        let (full, last_chunk) = match chunks.split_last() {
            Some((last, full)) => (full, last.encode()),
            None => (&[][..], Vec::new()),
        };
        let state = msgpack::encode(&State {
            derived: derived.clone(),
            last_chunk,
        })?;
        let turn = self.marker.as_ref().map_or(0, |marker| 1 - marker.turn);
        let mut digest = Digest::default();
        let mut pieces = 0_u32;
        for piece in state.chunks(MAX_VALUE_BYTES) {
            let key = self.piece_key(turn, pieces);
            self.store.put(&key, piece)?;
            digest.add(&key, piece);
            pieces += 1;
        }
        let saved = self.marker.as_ref().and_then(|marker| marker.chunks);
        for chunk in full {
            let offset = chunk.first().offset;
            let key = self.chunk_key(offset);
            let bytes = chunk.encode();
            if saved.is_none_or(|(first, last)| offset < first || offset > last) {
                self.store.put(&key, &bytes)?;
            }
            digest.add(&key, &bytes);
        }
        let state_bytes = u64::try_from(state.len()).unwrap_or(u64::MAX);
        let ends = full.first().zip(full.last());
        let marker = Marker {
            version: VERSION,
            covered,
            turn,
            pieces,
            state_bytes,
            chunks: ends.map(|(first, last)| (first.first().offset, last.first().offset)),
            digest: digest.to_bytes(),
        };
        self.store
            .put(&self.key(b'm', &[]), &msgpack::encode(&marker)?)?;
        self.marker = Some(marker);
        self.delete_obsolete()?;
        Ok(state_bytes)
    }

    /// What was saved no longer speaks of the log as it is.
    pub fn forget(&mut self) -> Result<(), KvError> {
        self.marker = None;
        self.store.delete(&self.key(b'm', &[]))?;
        self.delete_where(&[], |_| true)
    }

    /// The same, and no crash brings it back. Blocks.
    pub fn forget_durably(&mut self) -> Result<(), KvError> {
        self.forget()?;
        self.store.flush()
    }

    fn try_load(&mut self) -> Result<Option<Restored>, KvError> {
        let Some(bytes) = self.store.get(&self.key(b'm', &[]))? else {
            return Ok(None);
        };
        let Ok(marker) = msgpack::decode::<Marker>(&bytes) else {
            return Ok(None);
        };
        if marker.version != VERSION || marker.turn > 1 || marker.pieces > MAX_PIECES {
            return Ok(None);
        }
        let mut digest = Digest::default();
        let mut state = Vec::new();
        for number in 0..marker.pieces {
            let key = self.piece_key(marker.turn, number);
            let Some(piece) = self.store.get(&key)? else {
                return Ok(None);
            };
            digest.add(&key, &piece);
            state.extend_from_slice(&piece);
        }
        let mut chunks = Vec::new();
        if let Some((first, last)) = marker.chunks {
            let end = self.chunk_key(last.next());
            let mut visit = |key: &[u8], value: &[u8]| {
                digest.add(key, value);
                chunks.push(Chunk::decode(value));
                ControlFlow::Continue(())
            };
            self.store
                .scan(&self.chunk_key(first), Some(&end), &mut visit)?;
        }
        if digest.to_bytes() != marker.digest {
            return Ok(None);
        }
        let Ok(State {
            derived,
            last_chunk,
        }) = msgpack::decode(&state)
        else {
            return Ok(None);
        };
        if !last_chunk.is_empty() {
            chunks.push(Chunk::decode(&last_chunk));
        }
        let Some(chunks) = chunks.into_iter().collect::<Option<Vec<Chunk>>>() else {
            return Ok(None);
        };
        let restored = Restored {
            covered: marker.covered,
            derived,
            index: LogIndex::from_chunks(chunks),
            state_bytes: marker.state_bytes,
        };
        self.marker = Some(marker);
        Ok(Some(restored))
    }

    /// Removes what the marker does not name.
    fn delete_obsolete(&self) -> Result<(), KvError> {
        let Some(marker) = &self.marker else {
            return Ok(());
        };
        self.delete_where(&[b's', 1 - marker.turn], |_| true)?;
        let surplus = self.piece_key(marker.turn, marker.pieces);
        self.delete_where(&[b's', marker.turn], |key| key >= &surplus[..])?;
        match marker.chunks {
            Some((first, last)) => {
                let (first, last) = (self.chunk_key(first), self.chunk_key(last));
                self.delete_where(b"i", |key| key < &first[..] || key > &last[..])
            }
            None => self.delete_where(b"i", |_| true),
        }
    }

    fn delete_where(
        &self,
        below: &[u8],
        mut unwanted: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), KvError> {
        let prefix = [&self.prefix, below].concat();
        let mut keys: Vec<Vec<u8>> = Vec::new();
        scan_prefix(&*self.store, &prefix, &mut |key, _| {
            if unwanted(key) {
                keys.push(key.to_vec());
            }
            ControlFlow::Continue(())
        })?;
        for key in keys {
            self.store.delete(&key)?;
        }
        Ok(())
    }

    fn piece_key(&self, turn: u8, number: u32) -> Vec<u8> {
        let mut rest = vec![turn];
        rest.extend_from_slice(&number.to_be_bytes());
        self.key(b's', &rest)
    }

    fn chunk_key(&self, first: Offset) -> Vec<u8> {
        self.key(b'i', &first.0.to_be_bytes())
    }

    fn key(&self, kind: u8, rest: &[u8]) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix.len() + 1 + rest.len());
        key.extend_from_slice(&self.prefix);
        key.push(kind);
        key.extend_from_slice(rest);
        key
    }
}
