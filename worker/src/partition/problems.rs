//! What goes wrong at a partition, as its users are told.

use common::error::{ErrorCode, Problem};
use common::ids::TopicPartition;
use common::offset::Offset;
use common::seglog::LogError;

use super::agenda::Busy;
use super::machine::{AppendRefusal, FollowerRefusal};
use super::reconcile::TransactionRefusal;
use super::waiting::APPEND_TIMEOUT;
use crate::log::partition_log::{AppendError, OpenError};
use crate::log::producer_state::ProducerRefusal;
use crate::log::reader::ReadError;

pub fn append_refused(refusal: AppendRefusal) -> Problem {
    let code = match refusal {
        AppendRefusal::NotLeader { .. } => ErrorCode::NotLeader,
        AppendRefusal::Fenced { .. } => ErrorCode::FencedLeaderEpoch,
        AppendRefusal::NotHeardOf { .. } => ErrorCode::MetadataStale,
        AppendRefusal::NotEnoughReplicas { .. } => ErrorCode::NotEnoughReplicas,
    };
    Problem::new(code, refusal.to_string())
}

pub fn follower_refused(refusal: FollowerRefusal) -> Problem {
    let code = match refusal {
        FollowerRefusal::NotLeader | FollowerRefusal::NotReplica(_) => ErrorCode::NotLeader,
        FollowerRefusal::WrongEpoch { current, found } if found < current => {
            ErrorCode::FencedLeaderEpoch
        }
        FollowerRefusal::WrongEpoch { .. } => ErrorCode::MetadataStale,
        FollowerRefusal::EarlierLife(_) => ErrorCode::FencedWorkerEpoch,
    };
    Problem::new(code, refusal.to_string())
}

/// A new leader does not know yet what was committed before it.
pub fn not_caught_up(id: TopicPartition) -> Problem {
    let detail = format!("the new leader of partition {id} waits for its followers");
    Problem::new(ErrorCode::LeaderUnavailable, detail).hint("Try again in a moment.")
}

/// A follower's log is being worked on, or follows another leader.
pub fn position_unknown(id: TopicPartition) -> Problem {
    Problem::new(
        ErrorCode::MetadataStale,
        format!("the replica of partition {id} does not follow this leader, or not yet"),
    )
}

pub fn append_failed(error: &AppendError) -> Problem {
    match error {
        AppendError::Producer(refusal) => Problem::new(producer_code(refusal), refusal.to_string()),
        AppendError::Transaction(refusal) => {
            Problem::new(transaction_code(refusal), refusal.to_string())
        }
        AppendError::KeyReused { .. } => Problem::new(ErrorCode::Conflict, error.to_string())
            .hint("Use a new key for every request, and the same key only to repeat one."),
        AppendError::Marker => Problem::new(ErrorCode::InvalidRecord, error.to_string()),
        AppendError::Log(error) => log_failed(error),
    }
}

pub fn log_failed(error: &LogError) -> Problem {
    match error {
        LogError::DiskFull => Problem::new(ErrorCode::DiskFull, error.to_string())
            .hint("Free some space, or lower a topic's retention."),
        LogError::Corrupt { .. } => Problem::new(ErrorCode::CorruptLog, error.to_string()),
        LogError::OutOfRange { .. }
        | LogError::SyncFailed { .. }
        | LogError::Poisoned
        | LogError::Io { .. } => Problem::new(ErrorCode::Internal, error.to_string()),
    }
}

pub fn open_failed(error: &OpenError) -> Problem {
    match error {
        OpenError::Log(error) => log_failed(error),
        OpenError::Read(error) => read_failed(error),
        OpenError::Broken { .. } | OpenError::StartUnknown => {
            Problem::new(ErrorCode::CorruptLog, error.to_string())
        }
    }
}

pub fn out_of_range(offset: Offset, start: Offset, end: Offset) -> Problem {
    read_failed(&ReadError::OutOfRange { offset, start, end })
}

pub fn read_failed(error: &ReadError) -> Problem {
    match error {
        ReadError::OutOfRange { .. } => {
            Problem::new(ErrorCode::OffsetOutOfRange, error.to_string())
                .hint("Read from \"earliest\" or \"latest\", or from an offset in this range.")
        }
        ReadError::Corrupt { .. } | ReadError::Missing { .. } => {
            Problem::new(ErrorCode::CorruptLog, error.to_string())
        }
        ReadError::Log(error) => log_failed(error),
    }
}

/// Another one leads by now, and may have what is not here.
pub fn not_led_any_more(id: TopicPartition) -> Problem {
    let detail = format!("partition {id} is not led here any more");
    Problem::new(ErrorCode::NotLeader, detail).hint("Look up its leader again.")
}

/// Nobody says whether another one leads by now.
pub fn end_unknown(id: TopicPartition) -> Problem {
    let detail =
        format!("this worker hears no coordinator, and cannot say where partition {id} ends");
    Problem::new(ErrorCode::MetadataStale, detail).hint("Ask again in a moment.")
}

pub fn busy(id: TopicPartition, busy: Busy) -> Problem {
    match busy {
        Busy::Closing => closed(id),
        Busy::TooManyBytes => overloaded(id, "bytes"),
        Busy::TooManyAppends => overloaded(id, "appends"),
    }
}

pub fn overloaded(id: TopicPartition, what: &str) -> Problem {
    let detail = format!("too many {what} wait at partition {id}");
    Problem::new(ErrorCode::Overloaded, detail).hint("Try again in a moment.")
}

pub fn closed(id: TopicPartition) -> Problem {
    Problem::new(
        ErrorCode::ShuttingDown,
        format!("partition {id} is being closed"),
    )
}

pub fn not_committed(id: TopicPartition) -> Problem {
    Problem::new(
        ErrorCode::Timeout,
        format!("partition {id} has not committed the batch within {APPEND_TIMEOUT}; it may yet"),
    )
}

/// Somebody else leads before the batch was committed.
pub fn lead_lost(id: TopicPartition) -> Problem {
    Problem::new(
        ErrorCode::Unknown,
        format!(
            "the lead of partition {id} was lost before the batch was committed; it may yet be"
        ),
    )
}

/// Nobody answers any more.
pub fn lost(id: TopicPartition) -> Problem {
    Problem::new(
        ErrorCode::Unknown,
        format!("partition {id} ended before it answered"),
    )
}

fn producer_code(refusal: &ProducerRefusal) -> ErrorCode {
    match refusal {
        ProducerRefusal::Fenced { .. } | ProducerRefusal::Ended { .. } => ErrorCode::FencedProducer,
        ProducerRefusal::OutOfOrder { .. } => ErrorCode::OutOfOrderSequence,
        ProducerRefusal::LongAgo { .. } => ErrorCode::DuplicateSequence,
    }
}

fn transaction_code(refusal: &TransactionRefusal) -> ErrorCode {
    match refusal {
        TransactionRefusal::NotHeardOf { .. } | TransactionRefusal::EarlierIsOpen { .. } => {
            ErrorCode::MetadataStale
        }
        TransactionRefusal::FencedGeneration { .. } => ErrorCode::FencedGeneration,
        TransactionRefusal::Completed { .. } => ErrorCode::FencedProducer,
        TransactionRefusal::NotTransactional | TransactionRefusal::Malformed { .. } => {
            ErrorCode::InvalidRequest
        }
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{LeaderEpoch, PartitionId, TopicId};
    use uuid::Uuid;

    use super::*;

    /// What a partition cannot be brought to do in a test of its own: its cluster has one replica of everything,
    /// and the times that pass are long.
    #[test]
    fn what_only_a_larger_or_slower_cluster_says_has_its_code_too() {
        let id = TopicPartition {
            topic: TopicId(Uuid::from_u128(1)),
            partition: PartitionId(0),
        };
        let (current, found) = (LeaderEpoch(1), LeaderEpoch(2));
        let (online, needed) = (1, 2);
        for (problem, code, retriable) in [
            (
                append_refused(AppendRefusal::NotHeardOf { current, found }),
                ErrorCode::MetadataStale,
                true,
            ),
            (
                append_refused(AppendRefusal::NotEnoughReplicas { online, needed }),
                ErrorCode::NotEnoughReplicas,
                true,
            ),
            (not_committed(id), ErrorCode::Timeout, true),
            (lost(id), ErrorCode::Unknown, true),
        ] {
            assert_eq!(problem.code, code, "{problem}");
            assert_eq!(problem.code.is_retriable(), retriable, "{problem}");
        }
    }
}
