//! How a partition's log is opened, and what of it can be read if it cannot be.

use std::sync::Arc;

use common::error::ErrorCode;
use common::ids::TopicPartition;
use common::protocol::topic::TopicConfig;
use common::seglog::LogError;

use super::problems;
use super::settings::PartitionSettings;
use crate::log::partition_log::{OpenError, PartitionLog};
use crate::log::salvaged::Salvaged;
use crate::log::saved::SavedState;

/// Why a log could not be opened, and what of it can be read all the same.
#[derive(Debug)]
pub(super) struct NotOpened {
    pub(super) error: OpenError,
    pub(super) rest: Option<Salvaged>,
}

/// Blocks.
pub(super) fn open(
    settings: &PartitionSettings,
    id: TopicPartition,
    config: &TopicConfig,
) -> Result<PartitionLog, NotOpened> {
    let steady = settings.ages.steady();
    let storage = (settings.storage)(id).map_err(|source| NotOpened {
        error: OpenError::Log(LogError::Io {
            operation: "create",
            file: "directory".to_owned(),
            source,
        }),
        rest: None,
    })?;
    let saved = settings.store.clone();
    let saved = saved.map(|store| SavedState::new(store, id));
    let opened = PartitionLog::open(Arc::clone(&storage), saved, config, steady);
    opened.map_err(|error| NotOpened {
        rest: match problems::open_failed(&error).code {
            ErrorCode::CorruptLog => Salvaged::of(&*storage, steady),
            _ => None,
        },
        error,
    })
}
