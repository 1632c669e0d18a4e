//! The rules of a replica as stories, and three replicas under random loss against the one promise.

use std::collections::BTreeSet;

use common::ids::{LeaderEpoch, NodeId, PartitionEpoch, WorkerEpoch};
use common::offset::Offset;
use common::protocol::metadata::{LogEnd, PartitionImage, UncleanElection};
use common::protocol::produce::Acks;
use common::protocol::topic::{Durability, TopicConfig};
use common::time::{Span, Tick, Timestamp};
use proptest::prelude::*;

use super::machine::*;
use crate::log::leader_epochs::LeaderEpochs;

const NOW: Tick = Tick(0);

fn image(leader: u32, epoch: i32, partition_epoch: u32, isr: &[u32]) -> PartitionImage {
    PartitionImage {
        replicas: vec![NodeId(1), NodeId(2), NodeId(3)],
        isr: isr.iter().copied().map(NodeId).collect(),
        leader: Some(NodeId(leader)),
        leader_epoch: LeaderEpoch(epoch),
        partition_epoch: PartitionEpoch(partition_epoch),
        ..PartitionImage::default()
    }
}

fn config(min_insync_replicas: u32) -> TopicConfig {
    TopicConfig {
        min_insync_replicas,
        ..TopicConfig::default()
    }
}

fn leader(isr: &[u32], log_end: i64) -> (PartitionMachine, LeaderEpochs) {
    let mut machine = PartitionMachine::new(NodeId(1), Offset(log_end));
    machine.assign(NOW, &image(1, 4, 1, isr), &config(2));
    let mut epochs = LeaderEpochs::default();
    epochs.append(LeaderEpoch(3), Offset::ZERO).unwrap();
    (machine, epochs)
}

fn fetch(from: u32, log_end: i64, durable: i64) -> FollowerFetch {
    FollowerFetch {
        from: NodeId(from),
        worker_epoch: WorkerEpoch(1),
        leader_epoch: LeaderEpoch(4),
        log_end: Offset(log_end),
        last_epoch: (log_end > 0).then_some(LeaderEpoch(3)),
        durable: Offset(durable),
    }
}

#[test]
fn a_replica_alone_commits_what_is_on_its_disk() {
    let mut alone = PartitionMachine::new(NodeId(1), Offset(10));
    let only = PartitionImage {
        replicas: vec![NodeId(1)],
        ..image(1, 1, 1, &[1])
    };
    alone.assign(NOW, &only, &config(1));
    assert_eq!(alone.committed(), Some(Offset(10)));
    alone.appended(Offset(15));
    assert_eq!(alone.committed(), Some(Offset(10)));
    alone.synced(Offset(13));
    assert_eq!(alone.committed(), Some(Offset(13)));
}

#[test]
fn requests_of_another_epoch_are_told_which_way_it_differs() {
    let (machine, _) = leader(&[1, 2], 0);
    let admit = |epoch| machine.admit_append(Acks::All, Some(LeaderEpoch(epoch)));
    assert_eq!(admit(4), Ok(LeaderEpoch(4)));
    assert!(matches!(admit(3), Err(AppendRefusal::Fenced { .. })));
    assert!(matches!(admit(5), Err(AppendRefusal::NotHeardOf { .. })));
    let mut deposed = machine;
    deposed.assign(NOW, &image(2, 5, 2, &[1, 2]), &config(2));
    assert_eq!(
        deposed.admit_append(Acks::Leader, None),
        Err(AppendRefusal::NotLeader {
            leader: Some(NodeId(2))
        })
    );
}

#[test]
fn too_few_running_replicas_refuse_before_anything_is_written() {
    let (mut machine, _) = leader(&[1, 2], 0);
    machine.set_offline(BTreeSet::from([NodeId(2)]));
    assert!(matches!(
        machine.admit_append(Acks::All, None),
        Err(AppendRefusal::NotEnoughReplicas {
            online: 1,
            needed: 2
        })
    ));
    assert!(machine.admit_append(Acks::Leader, None).is_ok());
}

/// In memory, of nodes 1 and 2, led by the first.
fn led_in_memory(image: &PartitionImage) -> PartitionMachine {
    let config = TopicConfig {
        durability: Durability::Replicated,
        ..config(2)
    };
    let mut machine = PartitionMachine::new(NodeId(1), Offset::ZERO);
    machine.assign(NOW, image, &config);
    machine
}

#[test]
fn in_memory_a_record_is_committed_once_every_replica_in_sync_has_written_it() {
    let mut machine = led_in_memory(&image(1, 4, 1, &[1, 2]));
    machine.appended(Offset(5));
    let epochs = LeaderEpochs::default();
    let mut fetched = |log_end| {
        let fetch = FollowerFetch {
            last_epoch: None,
            ..fetch(2, log_end, 0)
        };
        let answer = machine.follower_fetched(NOW, fetch, &epochs, Offset::ZERO);
        (answer.is_ok(), machine.committed())
    };
    assert_eq!(fetched(3), (true, Some(Offset(3))));
    assert_eq!(fetched(5), (true, Some(Offset(5))));
}

#[test]
fn what_a_suspect_said_before_does_not_count_and_its_leader_vouches_for_it_once_it_has_everything()
{
    let now = image(1, 4, 1, &[1, 2]);
    let mut machine = led_in_memory(&now);
    let epochs = LeaderEpochs::default();
    let fetch = |life, log_end| FollowerFetch {
        worker_epoch: WorkerEpoch(life),
        last_epoch: None,
        ..fetch(2, log_end, 0)
    };
    machine.appended(Offset(5));
    let says = |machine: &mut PartitionMachine, life, log_end| {
        let answer = machine.follower_fetched(NOW, fetch(life, log_end), &epochs, Offset::ZERO);
        answer.map(|_| machine.committed())
    };
    assert_eq!(says(&mut machine, 1, 4), Ok(Some(Offset(4))));
    let suspect = PartitionImage {
        partition_epoch: PartitionEpoch(2),
        suspect: vec![NodeId(2)],
        ..now
    };
    machine.assign(
        NOW,
        &suspect,
        &TopicConfig {
            durability: Durability::Replicated,
            ..config(2)
        },
    );
    machine.appended(Offset(6));
    assert_eq!(machine.committed(), Some(Offset(4)));
    assert_eq!(machine.propose_isr(NOW), None, "it has said nothing since");
    assert_eq!(says(&mut machine, 2, 3), Ok(Some(Offset(4))));
    assert_eq!(machine.propose_isr(NOW), None, "it lacks what is committed");
    assert!(
        says(&mut machine, 1, 6).is_err(),
        "that was its former life"
    );
    assert_eq!(says(&mut machine, 2, 5), Ok(Some(Offset(5))));
    let proposal = machine.propose_isr(NOW).unwrap();
    assert_eq!(proposal.recovered, BTreeSet::from([NodeId(2)]));
    let life = proposal.isr.get(&NodeId(2));
    assert_eq!(life, Some(&WorkerEpoch(2)));
}

#[test]
fn nobody_leaves_while_those_that_stay_are_suspect() {
    let all = image(1, 4, 1, &[1, 2, 3]);
    let mut machine = led_in_memory(&all);
    let epochs = LeaderEpochs::default();
    machine.appended(Offset(5));
    // Node 3 has not been heard of, and node 2 had everything a moment ago.
    let late = NOW.plus(REPLICA_LAG_MAX).plus(Span(1));
    let fetch = FollowerFetch {
        last_epoch: None,
        ..fetch(2, 5, 0)
    };
    let said = machine.follower_fetched(late, fetch, &epochs, Offset::ZERO);
    assert!(said.is_ok());
    let mut sound = machine.clone();
    let proposal = sound.propose_isr(late).unwrap();
    assert!(proposal.isr.keys().eq(&[NodeId(1), NodeId(2)]));
    let suspect = PartitionImage {
        partition_epoch: PartitionEpoch(2),
        suspect: vec![NodeId(2)],
        ..all
    };
    machine.assign(late, &suspect, &config(2));
    assert_eq!(machine.propose_isr(late), None);
}

#[test]
fn a_replica_is_asked_where_its_log_ends_while_nobody_leads_and_some_are_suspect() {
    let out_of_sync = PartitionImage {
        leader: None,
        suspect: vec![NodeId(2), NodeId(3)],
        ..image(1, 4, 2, &[2, 3])
    };
    assert!(led_in_memory(&out_of_sync).asked().is_some());
    let nobody = PartitionImage {
        leader: None,
        suspect: vec![NodeId(1)],
        ..image(1, 4, 2, &[1, 2])
    };
    let nobody_is_suspect = PartitionImage {
        suspect: Vec::new(),
        ..nobody.clone()
    };
    assert_eq!(led_in_memory(&nobody_is_suspect).asked(), None);
    let mut machine = led_in_memory(&nobody);
    assert_eq!(machine.asked(), Some(PartitionEpoch(2)));
    let end = LogEnd {
        last_epoch: None,
        log_end: Offset(3),
    };
    let mut heard = nobody.clone();
    heard.log_ends.insert(NodeId(1), end);
    machine.assign(NOW, &heard, &config(2));
    assert_eq!(machine.asked(), None);
    let led = image(2, 5, 3, &[1, 2]);
    machine.assign(NOW, &led, &config(2));
    assert_eq!(machine.asked(), None);
}

#[test]
fn under_a_leader_that_may_lack_records_what_was_committed_may_be_cut_off() {
    let follows = image(2, 4, 1, &[1, 2]);
    let mut machine = led_in_memory(&follows);
    machine.appended(Offset(9));
    machine.leader_committed(Offset(7));
    assert_eq!(machine.committed(), Some(Offset(7)));
    let unclean = PartitionImage {
        unclean: Some(UncleanElection {
            since: LeaderEpoch(5),
            at: Timestamp(0),
        }),
        ..image(2, 5, 2, &[1, 2])
    };
    machine.assign(NOW, &unclean, &config(2));
    assert_eq!(machine.committed(), Some(Offset::ZERO));
    machine.truncated(Offset(4));
    machine.leader_committed(Offset(3));
    // Said once more it takes nothing back.
    machine.assign(NOW, &unclean, &config(2));
    assert_eq!(machine.committed(), Some(Offset(3)));
    let leads = PartitionImage {
        leader: Some(NodeId(1)),
        ..unclean
    };
    let mut elected = led_in_memory(&leads);
    assert!(elected.leads_uncleanly());
    elected.assign(NOW, &image(1, 6, 3, &[1, 2]), &config(2));
    assert!(!elected.leads_uncleanly());
}

#[test]
fn an_old_image_changes_nothing() {
    let (mut machine, _) = leader(&[1, 2], 5);
    let before = machine.clone();
    machine.assign(NOW, &image(2, 3, 9, &[2]), &config(2));
    machine.assign(NOW, &image(1, 4, 0, &[1]), &config(2));
    assert_eq!(machine, before);
}

#[test]
fn a_new_leader_says_nothing_of_what_is_committed_before_it_knows() {
    let (mut machine, epochs) = leader(&[1, 2], 5);
    assert_eq!(machine.committed(), None);
    machine
        .follower_fetched(NOW, fetch(2, 4, 4), &epochs, Offset::ZERO)
        .unwrap();
    assert_eq!(machine.committed(), None);
    machine
        .follower_fetched(NOW, fetch(2, 5, 5), &epochs, Offset::ZERO)
        .unwrap();
    assert_eq!(machine.committed(), Some(Offset(5)));
}

#[test]
fn a_follower_whose_log_went_another_way_is_told_where_and_makes_no_progress() {
    let (mut machine, mut epochs) = leader(&[1, 2], 5);
    epochs.append(LeaderEpoch(4), Offset(5)).unwrap();
    machine.appended(Offset(9));
    machine.synced(Offset(9));
    let longer = fetch(2, 7, 7);
    assert!(matches!(
        machine.follower_fetched(NOW, longer, &epochs, Offset::ZERO),
        Ok(FollowerAnswer::Diverging(end)) if end.end == Offset(5)
    ));
    assert_eq!(machine.committed(), None);
    let old = FollowerFetch {
        worker_epoch: WorkerEpoch(0),
        ..fetch(2, 5, 5)
    };
    machine
        .follower_fetched(NOW, fetch(2, 5, 5), &epochs, Offset::ZERO)
        .unwrap();
    assert_eq!(
        machine.follower_fetched(NOW, old, &epochs, Offset::ZERO),
        Err(FollowerRefusal::EarlierLife(NodeId(2)))
    );
}

#[test]
fn a_follower_joins_by_what_is_on_its_disk_and_counts_from_the_proposal_on() {
    let (mut machine, epochs) = leader(&[1, 2], 5);
    machine
        .follower_fetched(NOW, fetch(2, 5, 5), &epochs, Offset::ZERO)
        .unwrap();
    machine
        .follower_fetched(NOW, fetch(3, 5, 4), &epochs, Offset::ZERO)
        .unwrap();
    assert_eq!(machine.propose_isr(NOW), None, "its disk lacks a record");
    machine
        .follower_fetched(NOW, fetch(3, 5, 5), &epochs, Offset::ZERO)
        .unwrap();
    let proposal = machine.propose_isr(NOW).unwrap();
    assert_eq!(proposal.isr.len(), 3);
    assert_eq!(machine.propose_isr(NOW), None, "one at a time");

    machine.appended(Offset(8));
    machine.synced(Offset(8));
    machine
        .follower_fetched(NOW, fetch(2, 5, 5), &epochs, Offset::ZERO)
        .unwrap();
    assert_eq!(
        machine.committed(),
        Some(Offset(5)),
        "node 3 may be in sync already"
    );
    machine.isr_refused(PartitionEpoch(0));
    assert_eq!(
        machine.propose_isr(NOW),
        None,
        "that refusal was of an older proposal"
    );
    machine.isr_refused(PartitionEpoch(1));
    assert!(machine.propose_isr(NOW).is_some());
}

#[test]
fn a_follower_joins_only_with_everything_the_reign_began_with() {
    // An earlier leader may have committed all five; this one has yet to learn how many.
    let (mut machine, epochs) = leader(&[1, 2], 5);
    machine
        .follower_fetched(NOW, fetch(3, 4, 4), &epochs, Offset::ZERO)
        .unwrap();
    assert_eq!(machine.committed(), None);
    assert_eq!(machine.propose_isr(NOW), None);
    machine
        .follower_fetched(NOW, fetch(3, 5, 5), &epochs, Offset::ZERO)
        .unwrap();
    assert!(machine.propose_isr(NOW).is_some());
}

/// Its epochs are forgotten here: taken for another way, it would have cut off what is committed.
#[test]
fn a_follower_from_before_the_logs_start_is_told_to_begin_anew_and_makes_no_progress() {
    let (mut machine, epochs) = leader(&[1, 2], 9);
    machine.synced(Offset(9));
    let answer = machine.follower_fetched(NOW, fetch(2, 3, 3), &epochs, Offset(4));
    assert_eq!(answer, Ok(FollowerAnswer::Removed));
    assert_eq!(machine.committed(), None);
    let answer = machine.follower_fetched(NOW, fetch(2, 4, 4), &epochs, Offset(4));
    assert_eq!(answer, Ok(FollowerAnswer::Continue));
}

/// While records come all the time it never has all of them when it asks.
#[test]
fn a_follower_that_has_what_there_was_when_it_asked_before_keeps_up() {
    let (mut machine, epochs) = leader(&[1, 2, 3], 5);
    let mut now = NOW;
    let has_all = |machine: &mut PartitionMachine, now| {
        let end = machine.log_end().0;
        let asked = machine.follower_fetched(now, fetch(3, end, end), &epochs, Offset::ZERO);
        assert_eq!(asked, Ok(FollowerAnswer::Continue));
    };
    for second in 1..=20 {
        let has = 4 + second;
        machine.appended(Offset(has + 1));
        let asked = machine.follower_fetched(now, fetch(2, has, has), &epochs, Offset::ZERO);
        assert_eq!(asked, Ok(FollowerAnswer::Continue));
        has_all(&mut machine, now);
        now = now.plus(Span::from_secs(1));
    }
    assert_eq!(machine.propose_isr(now), None);
    // Then it asks and asks, and comes no further.
    for _ in 0..12 {
        let asked = machine.follower_fetched(now, fetch(2, 24, 24), &epochs, Offset::ZERO);
        assert_eq!(asked, Ok(FollowerAnswer::Continue));
        machine.appended(machine.log_end().next());
        has_all(&mut machine, now);
        now = now.plus(Span::from_secs(1));
    }
    let proposal = machine.propose_isr(now).unwrap();
    assert!(proposal.isr.keys().eq(&[NodeId(1), NodeId(3)]));
}

#[test]
fn a_follower_that_lags_leaves_unless_too_few_would_stay() {
    let late = Tick(0).plus(REPLICA_LAG_MAX).plus(Span(1));
    let (mut machine, epochs) = leader(&[1, 2, 3], 5);
    machine
        .follower_fetched(late, fetch(2, 5, 5), &epochs, Offset::ZERO)
        .unwrap();
    let proposal = machine.propose_isr(late).unwrap();
    assert!(proposal.isr.keys().eq(&[NodeId(1), NodeId(2)]));

    let (mut machine, _) = leader(&[1, 2], 5);
    assert_eq!(machine.propose_isr(late), None);
}

/// Three replicas, one authority, and everything that may go wrong between them.
mod cluster {
    use super::*;

    /// A record is the epoch it was written in and a number nobody else has.
    type Entry = (i32, u32);

    #[derive(Debug)]
    struct Node {
        log: Vec<Entry>,
        durable: usize,
        machine: PartitionMachine,
        life: u64,
        up: bool,
    }

    #[derive(Debug)]
    struct Cluster {
        nodes: Vec<Node>,
        image: PartitionImage,
        /// Everything that was ever committed, by any leader.
        committed: Vec<Entry>,
        next: u32,
    }

    #[derive(Clone, Copy, Debug)]
    pub(super) enum Step {
        Append(usize),
        Sync(usize),
        /// The follower fetches once from whom it takes for the leader.
        Fetch(usize),
        /// The leader asks for a change; `lost`: the answer never arrives.
        ChangeIsr {
            leader: usize,
            lost: bool,
        },
        /// The node hears of the metadata as it is.
        Hear(usize),
        /// The authority takes the node for dead. `crash`: it is, and its unsynced bytes are gone.
        Fence {
            node: usize,
            crash: bool,
        },
        Return(usize),
    }

    pub(super) fn step() -> impl Strategy<Value = Step> {
        let node = 0_usize..3;
        prop_oneof![
            4 => node.clone().prop_map(Step::Append),
            4 => node.clone().prop_map(Step::Sync),
            8 => node.clone().prop_map(Step::Fetch),
            2 => (node.clone(), any::<bool>())
                .prop_map(|(leader, lost)| Step::ChangeIsr { leader, lost }),
            3 => node.clone().prop_map(Step::Hear),
            1 => (node.clone(), any::<bool>())
                .prop_map(|(node, crash)| Step::Fence { node, crash }),
            2 => node.prop_map(Step::Return),
        ]
    }

    fn offset(index: usize) -> Offset {
        Offset(i64::try_from(index).unwrap())
    }

    fn index(offset: Offset) -> usize {
        usize::try_from(offset.0).unwrap()
    }

    fn id(node: usize) -> NodeId {
        NodeId(u32::try_from(node).unwrap())
    }

    fn node(id: NodeId) -> usize {
        usize::try_from(id.0).unwrap()
    }

    fn epochs(log: &[Entry]) -> LeaderEpochs {
        let mut epochs = LeaderEpochs::default();
        for (at, (epoch, _)) in log.iter().enumerate() {
            epochs.append(LeaderEpoch(*epoch), offset(at)).unwrap();
        }
        epochs
    }

    impl Cluster {
        fn new() -> Cluster {
            let image = PartitionImage {
                replicas: (0..3).map(NodeId).collect(),
                isr: (0..3).map(NodeId).collect(),
                leader: Some(NodeId(0)),
                leader_epoch: LeaderEpoch(1),
                partition_epoch: PartitionEpoch(1),
                ..PartitionImage::default()
            };
            let nodes = (0..3)
                .map(|number| Node {
                    log: Vec::new(),
                    durable: 0,
                    machine: PartitionMachine::new(id(number), Offset::ZERO),
                    life: 1,
                    up: true,
                })
                .collect();
            Cluster {
                nodes,
                image,
                committed: Vec::new(),
                next: 0,
            }
        }

        fn hear(&mut self, number: usize) {
            let image = self.image.clone();
            if self.nodes[number].up {
                self.nodes[number].machine.assign(NOW, &image, &config(2));
            }
        }

        fn take(&mut self, step: Step) {
            match step {
                Step::Append(number) => {
                    let entry = self.next;
                    let node = &mut self.nodes[number];
                    let Ok(epoch) = node.machine.admit_append(Acks::All, None) else {
                        return;
                    };
                    if node.up {
                        self.next += 1;
                        node.log.push((epoch.0, entry));
                        node.machine.appended(offset(node.log.len()));
                    }
                }
                Step::Sync(number) => {
                    let node = &mut self.nodes[number];
                    if node.up {
                        node.durable = node.log.len();
                        node.machine.synced(offset(node.durable));
                    }
                }
                Step::Fetch(number) => self.fetch(number),
                Step::ChangeIsr { leader, lost } => self.change_isr(leader, lost),
                Step::Hear(number) => self.hear(number),
                Step::Fence { node, crash } => self.fence(node, crash),
                Step::Return(number) => {
                    let member = self.image.isr.contains(&id(number));
                    let node = &mut self.nodes[number];
                    if node.up {
                        return;
                    }
                    node.up = true;
                    node.life += 1;
                    node.machine = PartitionMachine::new(id(number), offset(node.log.len()));
                    if self.image.leader.is_none() && member {
                        self.image.leader = Some(id(number));
                        self.image.leader_epoch = self.image.leader_epoch.next();
                        self.image.partition_epoch = self.image.partition_epoch.next();
                    }
                }
            }
        }

        fn fetch(&mut self, number: usize) {
            let follower = &self.nodes[number];
            let Some(leader) = follower.machine.leader() else {
                return;
            };
            let leader = node(leader);
            if leader == number || !follower.up || !self.nodes[leader].up {
                return;
            }
            let request = FollowerFetch {
                from: id(number),
                worker_epoch: WorkerEpoch(follower.life),
                leader_epoch: follower.machine.leader_epoch(),
                log_end: offset(follower.log.len()),
                last_epoch: follower.log.last().map(|(epoch, _)| LeaderEpoch(*epoch)),
                durable: offset(follower.durable),
            };
            let leader_epochs = epochs(&self.nodes[leader].log);
            let answer = self.nodes[leader].machine.follower_fetched(
                NOW,
                request,
                &leader_epochs,
                Offset::ZERO,
            );
            match answer {
                Ok(FollowerAnswer::Continue) => {
                    let from = self.nodes[number].log.len();
                    let more: Vec<Entry> = self.nodes[leader].log[from..]
                        .iter()
                        .take(2)
                        .copied()
                        .collect();
                    let committed = self.nodes[leader].machine.committed();
                    let follower = &mut self.nodes[number];
                    follower.log.extend(more);
                    follower.machine.appended(offset(follower.log.len()));
                    if let Some(committed) = committed {
                        follower.machine.leader_committed(committed);
                    }
                }
                Ok(FollowerAnswer::Diverging(theirs)) => {
                    let follower = &mut self.nodes[number];
                    let own = epochs(&follower.log)
                        .end_of(theirs.epoch, offset(follower.log.len()))
                        .map_or(Offset::ZERO, |own| own.end);
                    let to = own.min(theirs.end);
                    follower.log.truncate(index(to));
                    follower.durable = follower.log.len();
                    follower.machine.truncated(to);
                }
                Ok(FollowerAnswer::Removed) => unreachable!("nothing is removed"),
                Err(_) => {}
            }
        }

        fn change_isr(&mut self, leader: usize, lost: bool) {
            if !self.nodes[leader].up {
                return;
            }
            let Some(proposal) = self.nodes[leader].machine.propose_isr(NOW) else {
                return;
            };
            let lives_match = proposal.isr.iter().all(|(member, life)| {
                let node = &self.nodes[node(*member)];
                *member == id(leader)
                    || self.image.isr.contains(member)
                    || (node.up && node.life == life.0)
            });
            let accepted = self.image.leader == Some(id(leader))
                && self.image.leader_epoch == proposal.leader_epoch
                && self.image.partition_epoch == proposal.partition_epoch
                && lives_match
                && proposal.isr.len() >= 2;
            if accepted {
                self.image.isr = proposal.isr.keys().copied().collect();
                self.image.partition_epoch = self.image.partition_epoch.next();
            }
            if lost {
                return;
            }
            if accepted {
                self.hear(leader);
            } else if self.image.partition_epoch == proposal.partition_epoch {
                let epoch = proposal.partition_epoch;
                self.nodes[leader].machine.isr_refused(epoch);
            }
        }

        fn fence(&mut self, number: usize, crash: bool) {
            if crash && self.nodes[number].up {
                let node = &mut self.nodes[number];
                node.up = false;
                node.log.truncate(node.durable);
            }
            let without: Vec<NodeId> = self
                .image
                .isr
                .iter()
                .copied()
                .filter(|member| *member != id(number))
                .collect();
            if without.len() >= 2 {
                self.image.isr = without;
            }
            if self.image.leader == Some(id(number)) {
                self.image.leader = self
                    .image
                    .isr
                    .iter()
                    .copied()
                    .find(|member| *member != id(number) && self.nodes[node(*member)].up);
                self.image.leader_epoch = self.image.leader_epoch.next();
            }
            self.image.partition_epoch = self.image.partition_epoch.next();
        }

        /// Nothing that was committed is ever another record, and whoever is elected has all of it.
        fn check(&mut self) {
            for node in &self.nodes {
                let Some(committed) = node.machine.committed() else {
                    continue;
                };
                if !node.up || !node.machine.is_leader() {
                    continue;
                }
                let log = &node.log[..index(committed)];
                let both = log.len().min(self.committed.len());
                assert_eq!(log[..both], self.committed[..both]);
                if log.len() > self.committed.len() {
                    self.committed = log.to_vec();
                }
            }
            for member in &self.image.isr {
                let node = &self.nodes[node(*member)];
                assert!(
                    node.log.starts_with(&self.committed),
                    "an electable replica lacks a committed record"
                );
            }
        }
    }

    pub(super) fn run(steps: Vec<Step>) -> usize {
        let mut cluster = Cluster::new();
        for number in 0..3 {
            cluster.hear(number);
        }
        for step in steps {
            cluster.take(step);
            cluster.check();
        }
        cluster.committed.len()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn no_committed_record_is_lost_whatever_is_lost_late_or_cut_off(
        steps in proptest::collection::vec(cluster::step(), 1..150),
    ) {
        cluster::run(steps);
    }
}

#[test]
fn the_random_cluster_does_commit() {
    use cluster::Step::*;
    let round = [
        Append(0),
        Sync(0),
        Fetch(1),
        Sync(1),
        Fetch(2),
        Sync(2),
        Fetch(1),
        Fetch(2),
    ];
    assert_eq!(cluster::run(round.repeat(3)), 3);
}
