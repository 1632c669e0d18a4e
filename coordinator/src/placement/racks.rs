//! Which workers fail together: those in the same rack, as their owners say. One without a rack fails alone.

use std::collections::BTreeMap;

use common::ids::NodeId;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Racks(BTreeMap<NodeId, String>);

impl Racks {
    /// The workers that are in one.
    pub fn of<'a>(workers: impl Iterator<Item = (NodeId, Option<&'a str>)>) -> Racks {
        let labelled = workers.filter_map(|(worker, rack)| Some((worker, rack?.to_owned())));
        Racks(labelled.collect())
    }

    /// How many of these would fail with a worker that is none of them.
    pub fn shared(&self, worker: NodeId, with: &[NodeId]) -> usize {
        let Some(rack) = self.0.get(&worker) else {
            return 0;
        };
        let same = |other: &&NodeId| self.0.get(other) == Some(rack);
        with.iter().filter(same).count()
    }
}
