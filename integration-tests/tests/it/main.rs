//! Clusters of real processes, used and mistreated as people and machines do.
#![expect(
    clippy::unwrap_used,
    reason = "what the tests share unwraps as they do"
)]

mod changes;
mod chaos;
mod connectors;
mod coordinator_damage;
mod coordinator_group;
mod damage;
mod exactly_once;
mod expressions;
mod in_memory;
mod larger_than_memory;
mod live_tail;
mod operating;
mod overload;
mod produce_fetch;
mod real_data;
mod rebalance;
mod replication;
mod rescale;
mod rest_errors;
mod savepoint;
mod standby;
mod startup;
mod steps;
mod totals;
mod update;
mod archive;
