//! Queries as users write them, and the plans they get.

use std::collections::BTreeMap;
use std::path::PathBuf;

use common::ids::TopicName;
use common::limits::DEFAULT_KEY_GROUPS;

use super::*;

pub(super) fn context() -> PlanContext {
    let topic = |name: &str| TopicName::new(name).unwrap();
    PlanContext {
        topics: BTreeMap::from([(topic("bids"), 4), (topic("auctions"), 2)]),
        worker_cores: 8,
        custom_operators: BTreeSet::new(),
        dead_letters: TopicName::new("sums.dead-letters").ok(),
    }
}

pub(super) fn plan_of(sql: &str) -> Result<PlannedJob, Problem> {
    plan_sql(sql, None, DEFAULT_KEY_GROUPS, &context())
}

pub(super) fn planned(sql: &str) -> PlannedJob {
    match plan_of(sql) {
        Ok(job) => job,
        Err(problem) => panic!("{problem}\n{sql}"),
    }
}

fn plans() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/planner/plans")
}

/// Every `plans/<name>.sql`.
fn golden_queries() -> Vec<(PathBuf, String)> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(plans())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "there are no queries");
    paths
        .into_iter()
        .map(|path| {
            let sql = std::fs::read_to_string(&path).unwrap();
            (path, sql)
        })
        .collect()
}

/// `UPDATE_PLANS=1` writes the plans anew, to be read before they are committed.
#[test]
fn every_query_has_the_plan_beside_it() {
    let update = std::env::var_os("UPDATE_PLANS").is_some();
    let mut different = Vec::new();
    for (path, sql) in golden_queries() {
        let found = explain(&planned(&sql));
        let plan = path.with_extension("plan");
        if update {
            std::fs::write(&plan, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&plan).unwrap_or_default();
        if found != expected {
            different.push(format!(
                "{}\n--- expected\n{expected}\n--- found\n{found}",
                path.display()
            ));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn the_graph_of_a_query_posted_back_is_the_same_job() {
    for (path, sql) in golden_queries() {
        let job = planned(&sql);
        let text = serde_json::to_string(&job.graph).unwrap();
        let graph: JobGraph = serde_json::from_str(&text).unwrap();
        let again = plan_graph(&graph, None, DEFAULT_KEY_GROUPS, &context())
            .unwrap_or_else(|problem| panic!("{}: {problem}", path.display()));
        assert_eq!(again.tasks, job.tasks, "{}", path.display());
        assert_eq!(again.graph, job.graph, "{}", path.display());
        assert_eq!(again.sink_topics, job.sink_topics, "{}", path.display());
    }
}

/// Queries that others wrote for another engine, if they are here.
#[test]
fn queries_in_another_engines_dialect_are_planned() {
    let beside = std::env::var_os("MILLSTREAM_SHARED_DATA").map(PathBuf::from);
    let above = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let found = above
        .ancestors()
        .map(|folder| folder.join("shared/data"))
        .chain(beside)
        .map(|data| data.join("golden-sql/queries"))
        .find(|folder| folder.is_dir());
    let Some(folder) = found else {
        println!("skipped: shared/data/golden-sql is not here");
        return;
    };
    for name in [
        "aggregates",
        "grouped_aggregates",
        "debezium_agg",
        "hourly_by_event_type",
        "select_star",
        "sliding_window_end",
        "tight_watermark",
        "union",
    ] {
        let text = std::fs::read_to_string(folder.join(format!("{name}.sql"))).unwrap();
        let sql = text
            .replace("$input_dir", "/data")
            .replace("$output_path", "/data/out.json");
        let job = planned(&sql);
        assert!(job.source_topics.is_empty(), "{name}");
        assert!(!job.tasks.stages.is_empty(), "{name}");
    }
    for (name, word) in [
        ("global_session_window", "SESSION"),
        ("session_window", "SESSION"),
        ("windowed_inner_join", "JOIN"),
    ] {
        let sql = std::fs::read_to_string(folder.join(format!("{name}.sql"))).unwrap();
        let problem = plan_of(&sql).unwrap_err();
        assert_eq!(
            problem.code,
            ErrorCode::UnsupportedFeature,
            "{name}: {problem}"
        );
        assert!(problem.detail.contains(word), "{name}: {problem}");
    }
}

#[test]
fn a_directory_of_files_is_written_by_all_tasks_and_any_other_path_by_one() {
    for (path, expected) in [
        ("out/", 4),
        ("out", 1),
        ("out.json", 1),
        ("out.d/", 4),
        ("out.d", 1),
    ] {
        let job = planned(&format!(
            "CREATE TABLE bids (price BIGINT) WITH (connector = 'topic', topic = 'bids');
             CREATE TABLE out WITH (connector = 'files', path = '{path}');
             INSERT INTO out SELECT price FROM bids"
        ));
        let writing = job.tasks.stages.iter().find(|stage| stage.sink.is_some());
        assert_eq!(writing.unwrap().parallelism, expected, "{path}");
    }
}
