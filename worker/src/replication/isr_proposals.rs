//! Leaders' wishes to change who is in sync, and where logs end that nobody leads, on their way to the coordinator:
//! all that wait go at once.
//!
//! A wish that got no answer may have become a fact, so it is repeated until there is one; it is a
//! compare-and-set, and cannot happen twice.

use std::sync::Arc;

use common::ids::TopicPartition;
use common::protocol::replicate::{AlterIsr, IsrChange, IsrVerdict, LogEndReport};
use common::time::Span;
use common::transport::client::Transport;
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::link::Session;
use crate::link::coordinators::Coordinators;
use crate::partition::machine::IsrProposal;

/// Wishes that may wait; a leader whose wish finds no room has it again in a moment.
const MAX_WAITING: usize = 4_096;
/// Wishes of one call.
const MAX_CHANGES: usize = 1_024;
const DEADLINE: Span = Span::from_secs(5);
const RETRY_EVERY: Span = Span::from_millis(250);

/// Where wishes go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct IsrProposals(mpsc::Sender<Wish>);

#[derive(Debug)]
enum Wish {
    Change(IsrChange, oneshot::Sender<IsrVerdict>),
    /// It is said again as long as the metadata does not say it.
    LogEnd(LogEndReport),
}

/// Brings wishes to the coordinator.
#[derive(Debug)]
pub struct IsrMessenger {
    wishes: mpsc::Receiver<Wish>,
}

/// The way for wishes, and who brings them.
pub fn isr_proposals() -> (IsrProposals, IsrMessenger) {
    let (sender, wishes) = mpsc::channel(MAX_WAITING);
    (IsrProposals(sender), IsrMessenger { wishes })
}

impl IsrProposals {
    /// `None`: there is no room, and the wish was not taken. The answer may never come.
    pub fn send(
        &self,
        partition: TopicPartition,
        proposal: IsrProposal,
    ) -> Option<oneshot::Receiver<IsrVerdict>> {
        let (answer, answered) = oneshot::channel();
        let change = IsrChange {
            partition,
            leader_epoch: proposal.leader_epoch,
            partition_epoch: proposal.partition_epoch,
            isr: proposal.isr,
            recovered: proposal.recovered,
        };
        let sent = self.0.try_send(Wish::Change(change, answer));
        sent.is_ok().then_some(answered)
    }

    /// A suspect's log ends here. Where there is no room for it, it is said again in a moment.
    pub fn say(&self, report: LogEndReport) {
        drop(self.0.try_send(Wish::LogEnd(report)));
    }
}

impl IsrMessenger {
    /// Until nobody can have a wish any more.
    pub async fn run(
        mut self,
        session: Arc<Session>,
        coordinators: Coordinators,
        transport: Transport,
    ) {
        let mut wishes = Vec::new();
        while self.wishes.recv_many(&mut wishes, MAX_CHANGES).await > 0 {
            let mut changes = Vec::new();
            let mut log_ends = Vec::new();
            for wish in &wishes {
                match wish {
                    Wish::Change(change, _) => changes.push(change.clone()),
                    Wish::LogEnd(report) => log_ends.push(*report),
                }
            }
            let verdicts = loop {
                let call = AlterIsr {
                    worker: session.worker,
                    worker_epoch: session.epoch(),
                    changes: changes.clone(),
                    log_ends: log_ends.clone(),
                };
                match coordinators.call(&transport, &call, DEADLINE).await {
                    Ok(answer) => break answer.verdicts,
                    Err(error) => {
                        debug!(%error, "who is in sync cannot be changed yet");
                        tokio::time::sleep(RETRY_EVERY.as_duration()).await;
                    }
                }
            };
            let answers = wishes.drain(..).filter_map(|wish| match wish {
                Wish::Change(_, answer) => Some(answer),
                Wish::LogEnd(_) => None,
            });
            for (answer, verdict) in answers.zip(verdicts) {
                // A partition that is closed does not want to know.
                drop(answer.send(verdict));
            }
        }
    }
}
