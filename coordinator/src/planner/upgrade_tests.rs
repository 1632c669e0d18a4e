//! What becomes of state when a query is changed.

use common::ids::TaskId;
use common::plan::redistribution::shares;
use common::plan::upgrade::{Fate, NodeUpgrade, upgrade};

use super::planner_tests::planned;
use super::*;

const TABLES: &str = "CREATE TABLE bids (auction BIGINT, bidder BIGINT, price BIGINT, channel VARCHAR, ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (connector = 'topic', topic = 'bids', format = 'json');
CREATE TABLE counts WITH (connector = 'topic', topic = 'counts', format = 'json');
";

const QUERY: &str = "INSERT INTO counts
SELECT window_start, auction, count(*) AS bids, sum(price) AS total
FROM TUMBLE(bids, ts, INTERVAL '10' SECOND)
WHERE channel <> 'robot'
GROUP BY window_start, window_end, auction";

const WINDOW: &str = "counts-window-auction";

fn tasks(tables: &str, query: &str) -> TaskGraph {
    planned(&format!("{tables}{query}")).tasks
}

fn upgrades(tables: &str, query: &str) -> Vec<NodeUpgrade> {
    upgrade(&tasks(TABLES, QUERY), &tasks(tables, query))
}

fn of<'u>(upgrades: &'u [NodeUpgrade], operator: &str) -> &'u NodeUpgrade {
    let found = upgrades.iter().find(|of| of.operator == operator);
    found.unwrap_or_else(|| panic!("{operator} is not among {upgrades:#?}"))
}

#[test]
fn what_is_done_before_and_after_may_change_freely() {
    for (what, tables, query) in [
        ("nothing", TABLES.to_owned(), QUERY.to_owned()),
        (
            "a condition",
            TABLES.to_owned(),
            QUERY.replace("'robot'", "'bot'"),
        ),
        (
            "a name",
            TABLES.to_owned(),
            QUERY.replace("AS total", "AS revenue"),
        ),
        (
            "the delay",
            TABLES.replace("'5' SECOND", "'9' SECOND"),
            QUERY.to_owned(),
        ),
        (
            "where it goes",
            TABLES.replace("topic = 'counts'", "topic = 'others'"),
            QUERY.to_owned(),
        ),
        (
            "another column",
            TABLES.replace("channel VARCHAR", "channel VARCHAR, url VARCHAR"),
            QUERY.to_owned(),
        ),
    ] {
        let upgrades = upgrades(&tables, &query);
        for upgrade in &upgrades {
            assert!(!upgrade.loses_state, "{what}: {upgrade:#?}");
        }
        assert_eq!(of(&upgrades, WINDOW).state, Fate::Kept, "{what}");
        assert_eq!(of(&upgrades, "bids").state, Fate::Kept, "{what}");
    }
}

#[test]
fn what_state_means_may_not_change() {
    for (tables, query, operator, reason) in [
        (
            TABLES.to_owned(),
            QUERY.replace("'10' SECOND", "'20' SECOND"),
            WINDOW,
            "its windows are others",
        ),
        (
            TABLES.to_owned(),
            QUERY.replace("sum(price)", "max(price)"),
            WINDOW,
            "its aggregates are others",
        ),
        (
            TABLES.to_owned(),
            QUERY.replace(
                "sum(price) AS total",
                "sum(price) AS total, min(price) AS least",
            ),
            WINDOW,
            "its aggregates are others",
        ),
        (
            TABLES.replace("price BIGINT", "price DOUBLE"),
            QUERY.to_owned(),
            WINDOW,
            "\"price\" has another type",
        ),
        (
            TABLES.replace("auction BIGINT", "auction INT"),
            QUERY.to_owned(),
            WINDOW,
            "its keys are others",
        ),
        (
            TABLES.replace("topic = 'bids'", "topic = 'auctions'"),
            QUERY.to_owned(),
            "bids",
            "it reads the topic",
        ),
    ] {
        let upgrades = upgrades(&tables, &query);
        let upgrade = of(&upgrades, operator);
        assert_eq!(
            (upgrade.state, upgrade.loses_state),
            (Fate::Rebuilt, true),
            "{query}: {upgrade:#?}"
        );
        assert!(upgrade.reason.contains(reason), "{query}: {upgrade:#?}");
        // And nothing of it is taken over.
        let (before, after) = (tasks(TABLES, QUERY), tasks(&tables, &query));
        for task in after.tasks() {
            for share in shares(&before, &after, task) {
                assert!(!share.operators.contains(operator), "{task}: {share:?}");
                assert!(operator != "bids" || !share.splits, "{task}: {share:?}");
            }
        }
    }
}

#[test]
fn another_key_is_another_operator() {
    let upgrades = upgrades(TABLES, &QUERY.replace("auction", "bidder"));
    assert_eq!(of(&upgrades, "counts-window-bidder").state, Fate::New);
    let dropped = of(&upgrades, WINDOW);
    assert_eq!((dropped.state, dropped.loses_state), (Fate::Dropped, true));
}

/// What the old topic had said of event time would make everything of the new one late.
#[test]
fn event_time_begins_anew_with_other_sources_and_goes_on_with_state() {
    let before = tasks(TABLES, QUERY);
    let all_go_on = |after: &TaskGraph| {
        let goes_on = |task: TaskId| {
            let mut shares = shares(&before, after, task).into_iter();
            shares.all(|share| share.time)
        };
        let each = after.tasks().map(|task| (task, goes_on(task)));
        each.collect::<BTreeMap<TaskId, bool>>()
    };
    let same = all_go_on(&tasks(TABLES, &QUERY.replace("'robot'", "'bot'")));
    assert!(same.values().all(|goes_on| *goes_on), "{same:?}");

    let elsewhere = TABLES.replace("topic = 'bids'", "topic = 'auctions'");
    let (state_kept, state_lost) = (
        tasks(&elsewhere, QUERY),
        tasks(&elsewhere, &QUERY.replace("'10' SECOND", "'20' SECOND")),
    );
    let has_window =
        |graph: &TaskGraph, task: &TaskId| graph.stage(task.stage).nodes().contains(&WINDOW);
    for (task, goes_on) in all_go_on(&state_kept) {
        assert_eq!(goes_on, has_window(&state_kept, &task), "{task}");
    }
    let lost = all_go_on(&state_lost);
    assert!(lost.values().all(|goes_on| !goes_on), "{lost:?}");
}
