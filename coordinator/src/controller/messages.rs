//! The controller's mailbox.

use actix::Message;

use common::error::Problem;
use common::ids::TopicName;
use common::protocol::node::{RegisterWorker, Registered};
use common::protocol::topic::CreateTopic;

use super::topics::{AlterTopic, ReassignTopic};
use crate::metadata::command::Command;
use crate::metadata_log::{Committed, ProposeError};

#[derive(Debug)]
pub struct Propose(pub Command);

impl Message for Propose {
    type Result = Result<Committed, ProposeError>;
}

#[derive(Debug)]
pub struct Register(pub RegisterWorker);

impl Message for Register {
    type Result = Result<Registered, Problem>;
}

#[derive(Debug)]
pub struct Create(pub CreateTopic);

impl Message for Create {
    type Result = Result<(), Problem>;
}

#[derive(Debug)]
pub struct Alter {
    pub topic: TopicName,
    pub change: AlterTopic,
}

impl Message for Alter {
    type Result = Result<(), Problem>;
}

#[derive(Debug)]
pub struct Delete(pub TopicName);

impl Message for Delete {
    type Result = Result<(), Problem>;
}

/// Has a topic's partitions on other workers.
#[derive(Debug)]
pub struct Reassign {
    pub topic: TopicName,
    pub request: ReassignTopic,
}

impl Message for Reassign {
    type Result = Result<(), Problem>;
}
