//! Why nobody leads a partition, and what its user can do, in words.

use common::ids::NodeId;
use common::protocol::metadata::PartitionImage;
use common::protocol::topic::UncleanRecovery;

/// A reason, and the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub hint: String,
}

/// `None`: somebody leads it.
pub fn why_nobody_leads(
    partition: &PartitionImage,
    recovery: UncleanRecovery,
    is_active: impl Fn(NodeId) -> bool,
) -> Option<Waiting> {
    if partition.leader.is_some() {
        return None;
    }
    let in_sync = || partition.isr.iter().copied();
    let trusted: Vec<NodeId> = in_sync()
        .filter(|node| !partition.suspect.contains(node))
        .collect();
    let lost = "if they are lost for good, POST /v1/topics/{topic}/recover has a replica lead that is left, and what only they had is lost";
    if !trusted.is_empty() {
        let suspects = match partition.suspect.is_empty() {
            true => String::new(),
            false => format!(
                "; {} ended without order and may lack records",
                workers(partition.suspect.iter().copied())
            ),
        };
        return Some(Waiting {
            reason: format!(
                "every acknowledged record is at {} only, not active now{suspects}",
                workers(trusted.iter().copied())
            ),
            hint: format!("Start one of them again; {lost}."),
        });
    }
    let silent: Vec<NodeId> = in_sync()
        .filter(|node| !partition.log_ends.contains_key(node) || !is_active(*node))
        .collect();
    let all = "all in-sync replicas ended without order, and each may lack acknowledged records";
    let missing = match silent.is_empty() {
        true => String::new(),
        false => format!(
            "; {} has yet to say where its log ends",
            workers(silent.iter().copied())
        ),
    };
    let hint = match recovery {
        UncleanRecovery::Balanced => format!(
            "Start them: when all have said where their logs end, the longest leads; {lost}."
        ),
        UncleanRecovery::Manual => "unclean_recovery is manual: POST /v1/topics/{topic}/recover says who leads; log_ends shows who has how much.".to_owned(),
    };
    Some(Waiting {
        reason: format!("{all}{missing}"),
        hint,
    })
}

fn workers(nodes: impl Iterator<Item = NodeId>) -> String {
    let numbers: Vec<String> = nodes.map(|node| node.to_string()).collect();
    match &numbers[..] {
        [only] => format!("worker {only}"),
        all => format!("workers {}", all.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use common::ids::LeaderEpoch;
    use common::offset::Offset;
    use common::protocol::metadata::LogEnd;

    use super::*;

    #[test]
    fn it_says_for_whom_it_is_waited_and_what_can_be_done() {
        let nodes = |ids: &[u32]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let mut partition = PartitionImage {
            replicas: nodes(&[1, 2, 3]),
            isr: nodes(&[1, 2]),
            leader: Some(NodeId(1)),
            ..PartitionImage::default()
        };
        let why =
            |partition: &PartitionImage, recovery| why_nobody_leads(partition, recovery, |_| true);
        assert_eq!(why(&partition, UncleanRecovery::Balanced), None);
        partition.leader = None;
        let said = why(&partition, UncleanRecovery::Balanced).unwrap();
        assert!(said.reason.contains("workers 1, 2 only"), "{said:?}");
        partition.suspect = nodes(&[1]);
        let said = why(&partition, UncleanRecovery::Balanced).unwrap();
        assert!(said.reason.contains("worker 2 only"), "{said:?}");
        assert!(said.reason.contains("worker 1 ended"), "{said:?}");
        partition.suspect = nodes(&[1, 2]);
        let end = LogEnd {
            last_epoch: Some(LeaderEpoch(1)),
            log_end: Offset(3),
        };
        partition.log_ends.insert(NodeId(1), end);
        let said = why(&partition, UncleanRecovery::Balanced).unwrap();
        assert!(said.reason.contains("worker 2 has yet to say"), "{said:?}");
        assert!(said.hint.contains("the longest leads"), "{said:?}");
        let said = why(&partition, UncleanRecovery::Manual).unwrap();
        assert!(said.hint.contains("/recover"), "{said:?}");
    }
}
