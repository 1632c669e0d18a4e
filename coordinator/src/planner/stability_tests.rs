//! A job's operators keep their ids, and with them their state, through changes that mean nothing; and the
//! spellings of one query are one job.

use super::planner_tests::planned;
use super::*;

const TABLES: &str = "CREATE TABLE bids (auction BIGINT, bidder BIGINT, price BIGINT, channel VARCHAR, ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (connector = 'topic', topic = 'bids', format = 'json');
CREATE TABLE counts WITH (connector = 'topic', topic = 'counts', format = 'json');
";

fn job(statements: &str) -> PlannedJob {
    let mut job = planned(&format!("{TABLES}{statements}"));
    job.warnings.clear();
    job
}

/// All that state and exchange depend on.
fn ids_and_stages(job: &PlannedJob) -> Vec<Vec<String>> {
    let ids = |stage: &common::plan::task_graph::Stage| {
        let operators = stage.operators.iter().map(|o| o.spec.id().to_owned());
        operators.collect::<Vec<String>>()
    };
    job.tasks.stages.iter().map(ids).collect()
}

const QUERY: &str = "INSERT INTO counts
SELECT window_start, auction, count(*) AS bids, sum(price) AS total
FROM TUMBLE(bids, ts, INTERVAL '10' SECOND)
WHERE channel <> 'robot'
GROUP BY window_start, window_end, auction";

#[test]
fn a_job_is_the_same_through_changes_that_mean_nothing() {
    let expected = job(QUERY);
    for (what, query) in [
        (
            "lines and spaces",
            QUERY.split_whitespace().collect::<Vec<_>>().join("  "),
        ),
        (
            "comments",
            QUERY.replace("FROM", "-- where from\n FROM /* here */"),
        ),
        (
            "the case of words",
            QUERY
                .replace("SELECT", "select")
                .replace("FROM", "From")
                .replace("count", "COUNT"),
        ),
        (
            "the case of names",
            QUERY
                .replace("auction", "Auction")
                .replace("bids,", "BIDS,"),
        ),
        ("quoted names", QUERY.replace("auction", "\"auction\"")),
        (
            "an alias of the table",
            QUERY.replace("SECOND)", "SECOND) AS b"),
        ),
        ("columns with their table", {
            let query = QUERY.replace("SECOND)", "SECOND) b");
            query
                .replace("sum(price)", "sum(b.price)")
                .replace("WHERE channel", "WHERE b.channel")
        }),
        ("an alias without AS", QUERY.replace(" AS total", " total")),
        (
            "brackets",
            QUERY.replace("channel <> 'robot'", "((channel) <> ('robot'))"),
        ),
        ("another sign", QUERY.replace("<>", "!=")),
        ("a semicolon", format!("{QUERY};;")),
        (
            "the unit in the text",
            QUERY.replace("'10' SECOND", "'10 seconds'"),
        ),
        (
            "a smaller unit",
            QUERY.replace("'10' SECOND", "'10000 milliseconds'"),
        ),
        (
            "positions to group by",
            QUERY.replace("window_end, auction", "window_end, 2"),
        ),
    ] {
        let found = job(&query);
        assert_eq!(explain(&found), explain(&expected), "{what}: {query}");
        assert_eq!(found, expected, "{what}: {query}");
    }
}

#[test]
fn ids_and_stages_survive_changes_elsewhere() {
    let expected = ids_and_stages(&job(QUERY));
    for (what, statements) in [
        ("another size", QUERY.replace("'10' SECOND", "'1' MINUTE")),
        ("another condition", QUERY.replace("'robot'", "'bot'")),
        (
            "another aggregate",
            QUERY.replace("sum(price)", "max(price)"),
        ),
        (
            "another name of a result",
            QUERY.replace("AS total", "AS revenue"),
        ),
        ("a table nobody uses", {
            format!(
                "CREATE TABLE other (a INT) WITH (connector = 'topic', topic = 'auctions'); {QUERY}"
            )
        }),
    ] {
        assert_eq!(ids_and_stages(&job(&statements)), expected, "{what}");
    }
    // A second query adds its own, and leaves these alone.
    let two = job(&format!(
        "CREATE TABLE large WITH (connector = 'topic', topic = 'large');
         INSERT INTO large SELECT auction, price FROM bids WHERE price > 1000; {QUERY}"
    ));
    let of_two: BTreeSet<String> = ids_and_stages(&two).into_iter().flatten().collect();
    for id in expected.iter().flatten() {
        assert!(of_two.contains(id), "{id} is not among {of_two:?}");
    }
}

#[test]
fn the_spellings_of_a_window_are_one_job() {
    let select = "SELECT window_start, auction, count(*) AS bids";
    let group = "GROUP BY window_start, window_end, auction";
    let named = |from: &str| format!("INSERT INTO counts {select} FROM {from} {group}");
    let grouped = |window: &str| {
        format!(
            "INSERT INTO counts SELECT w.start AS window_start, auction, bids FROM (\
             SELECT {window} AS w, auction, count(*) AS bids FROM bids GROUP BY 1, 2)"
        )
    };
    for spellings in [
        vec![
            named("TUMBLE(bids, ts, INTERVAL '10' SECOND)"),
            named("TABLE(TUMBLE(TABLE bids, DESCRIPTOR(ts), INTERVAL '10' SECOND))"),
            named("TABLE(TUMBLE(bids, DESCRIPTOR(ts), INTERVAL '10 seconds'))"),
            named(
                "TABLE(TUMBLE(DATA => TABLE bids, TIMECOL => DESCRIPTOR(ts), SIZE => INTERVAL '10' SECOND))",
            ),
            named("TUMBLE((SELECT * FROM bids), ts, INTERVAL '10' SECOND)"),
            grouped("tumble(INTERVAL '10' SECOND)"),
            grouped("TUMBLE(INTERVAL '10 seconds')"),
        ],
        vec![
            named("HOP(bids, ts, INTERVAL '2' SECOND, INTERVAL '10' SECOND)"),
            named(
                "TABLE(HOP(TABLE bids, DESCRIPTOR(ts), INTERVAL '2' SECOND, INTERVAL '10' SECOND))",
            ),
            named(
                "TABLE(HOP(DATA => TABLE bids, TIMECOL => DESCRIPTOR(ts), SLIDE => INTERVAL '2' SECOND, \
                 SIZE => INTERVAL '10' SECOND))",
            ),
            grouped("hop(INTERVAL '2' SECOND, INTERVAL '10' SECOND)"),
            grouped("HOP(interval '2 seconds', interval '10 second')"),
        ],
    ] {
        let expected = job(&spellings[0]);
        for spelling in &spellings[1..] {
            let found = job(spelling);
            assert_eq!(explain(&found), explain(&expected), "{spelling}");
        }
    }
}
