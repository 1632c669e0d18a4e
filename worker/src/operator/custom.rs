//! Operators a worker was built with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::plan::operator::Custom;
use common::plan::task_graph::PlannedOperator;

use super::Operator;

/// Makes one instance, for one task. Sees the job's configuration of it and the columns of its inputs.
pub type Constructor =
    Arc<dyn Fn(&Custom, &PlannedOperator) -> Result<Box<dyn Operator>, Problem> + Send + Sync>;

/// The custom operators of this worker, by name.
#[derive(Clone, Default)]
pub struct CustomOperators {
    constructors: BTreeMap<String, Constructor>,
    spilling: BTreeSet<String>,
}

impl CustomOperators {
    /// Adds an operator; one of the same name is replaced.
    #[must_use]
    pub fn with(
        mut self,
        name: impl Into<String>,
        constructor: impl Fn(&Custom, &PlannedOperator) -> Result<Box<dyn Operator>, Problem>
        + Send
        + Sync
        + 'static,
    ) -> CustomOperators {
        let name = name.into();
        self.spilling.remove(&name);
        self.constructors.insert(name, Arc::new(constructor));
        self
    }

    /// Says of an operator that it asks for all it reads (`Operator::prepare`): its state may be larger than
    /// memory.
    #[must_use]
    pub fn spilling(mut self, name: impl Into<String>) -> CustomOperators {
        self.spilling.insert(name.into());
        self
    }

    pub(super) fn spills(&self, name: &str) -> bool {
        self.spilling.contains(name)
    }

    /// Their names, which the worker announces when it registers.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.constructors.keys().map(String::as_str)
    }

    pub fn build(
        &self,
        custom: &Custom,
        planned: &PlannedOperator,
    ) -> Result<Box<dyn Operator>, Problem> {
        let Some(constructor) = self.constructors.get(&custom.name) else {
            let known = self.names().collect::<Vec<_>>().join(", ");
            let detail = format!("this worker has no custom operator \"{}\"", custom.name);
            let hint = match known.is_empty() {
                true => "It was built without custom operators.".to_owned(),
                false => format!("It has: {known}."),
            };
            return Err(Problem::new(ErrorCode::UnsupportedFeature, detail).hint(hint));
        };
        constructor(custom, planned)
    }
}

impl std::fmt::Debug for CustomOperators {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}
