//! A partition's mailbox.

use actix::Message;
use common::error::Problem;
use common::ids::LeaderEpoch;
use common::log_batch::LogBatch;
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::metadata::PartitionImage;
use common::protocol::produce::{Acks, AppendedBatch};
use common::protocol::topic::TopicConfig;
use common::time::Span;

use super::waiting::Readable;
use crate::log::reader::LogReader;

/// The metadata says this of the partition now.
#[derive(Debug)]
pub(super) struct Assign {
    pub(super) image: PartitionImage,
    pub(super) config: TopicConfig,
}

/// Appends batches one after another; answered as `acks` says.
#[derive(Debug)]
pub(super) struct Append {
    pub(super) batches: Vec<LogBatch>,
    pub(super) acks: Acks,
    pub(super) leader_epoch: Option<LeaderEpoch>,
}

/// Asks what may be read. With an offset: once something at it may be, or after `wait`.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) from: Option<(Offset, Isolation)>,
    pub(super) wait: Span,
}

/// Up to where the partition may be read, and with what.
#[derive(Clone, Debug)]
pub(super) struct Granted {
    pub(super) reader: LogReader,
    pub(super) readable: Readable,
    pub(super) log_end: Offset,
}

/// Makes everything durable, saves, and ends the actor.
#[derive(Debug)]
pub(super) struct Close;

impl Message for Assign {
    type Result = ();
}

impl Message for Append {
    type Result = Result<Vec<AppendedBatch>, Problem>;
}

impl Message for Grant {
    type Result = Result<Granted, Problem>;
}

impl Message for Close {
    type Result = ();
}
