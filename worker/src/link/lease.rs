//! Whether this worker may say what is newest, and that something is not there.
//!
//! A worker that is not heard of loses what it leads to others after its session, and what it knows is then no longer all
//! there is. Before that, at four fifths of a session since a heartbeat was sent that was answered, it stops saying what
//! is newest: its own clock alone decides, and a clock that runs a quarter too slow is forgiven. What is committed
//! stays so, and is given to whoever asks for it; nothing that is written depends on this.
//!
//! That an offset is beyond the end of a log would end a reader's work, so it is said only by who leads for certain: one
//! that was stopped, or has yet to hear that another one leads, lacks what readers have had from that one.

use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::ids::TopicPartition;
use common::protocol::fetch::{FetchBatches, FetchedBatches};
use common::time::{Clock, Span};

use super::Session;
use crate::metadata_image::ImageWatch;
use crate::partition::messages::PartitionHandle;
use crate::partition::problems;

/// Heartbeats are answered much sooner while a coordinator leads.
pub const PATIENCE: Span = Span::from_secs(3);
pub const LOOK_EVERY: Span = Span::from_millis(20);

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lease {
    session: Arc<Session>,
    image: ImageWatch,
    clock: Arc<dyn Clock>,
}

impl Lease {
    pub fn new(session: Arc<Session>, image: ImageWatch, clock: Arc<dyn Clock>) -> Lease {
        Lease {
            session,
            image,
            clock,
        }
    }

    /// An error, which may pass, where others may know something newer.
    pub fn check(&self) -> Result<(), Problem> {
        let silence = self.session.silence(self.clock.tick());
        if self.session.is_heard(silence) {
            return Ok(());
        }
        let detail = format!(
            "this worker has not heard a coordinator for {silence}, and cannot say what is newest"
        );
        Err(Problem::new(ErrorCode::MetadataStale, detail).hint(
            "Ask again in a moment; committed records from an offset on can be read meanwhile.",
        ))
    }

    /// What a partition of this worker answers. If that is that the offset is not in its log, it is asked again once it
    /// is certain that it has led since.
    pub async fn fetch(
        &self,
        partition: &PartitionHandle,
        request: &FetchBatches,
    ) -> Result<FetchedBatches, Problem> {
        match partition.fetch(request).await {
            Err(problem) if problem.code == ErrorCode::OffsetOutOfRange => {
                self.leads_still(request.partition).await?;
                partition.fetch(request).await
            }
            answer => answer,
        }
    }

    /// Returns once a coordinator has said, to a question after this moment, that this worker leads the partition.
    async fn leads_still(&self, id: TopicPartition) -> Result<(), Problem> {
        let now = self.clock.tick();
        let heard = async {
            loop {
                let leads = self.session.leads_since(now, &self.image.borrow(), id);
                if let Some(leads) = leads {
                    return leads;
                }
                tokio::time::sleep(LOOK_EVERY.as_duration()).await;
            }
        };
        match tokio::time::timeout(PATIENCE.as_duration(), heard).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(problems::not_led_any_more(id)),
            Err(_) => Err(problems::end_unknown(id)),
        }
    }
}
