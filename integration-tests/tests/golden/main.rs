//! Each `.sql` file of `queries/`, and of the golden queries beside this checkout, is a test in several ways.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use integration_tests::data::data_set;
use integration_tests::golden::{Golden, WAYS};
use libtest_mimic::{Arguments, Failed, Trial};

/// Those of another engine's golden queries that need nothing beyond windows, plain and running aggregates.
const OF_OTHERS: [&str; 8] = [
    "aggregates",
    "debezium_agg",
    "grouped_aggregates",
    "hourly_by_event_type",
    "select_star",
    "sliding_window_end",
    "tight_watermark",
    "union",
];

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut goldens = Vec::new();
    for query in queries(&own.join("queries"))? {
        goldens.push(Golden::read(
            &query,
            &own.join("inputs"),
            &own.join("expected"),
        )?);
    }
    if let Some(others) = data_set("golden-sql") {
        for name in OF_OTHERS {
            let query = others.join("queries").join(name).with_extension("sql");
            let expected = others.join("golden_outputs");
            goldens.push(Golden::read(&query, &others.join("inputs"), &expected)?);
        }
    }
    let trials = goldens.into_iter().flat_map(|golden| {
        WAYS.map(|way| {
            let golden = golden.clone();
            let name = format!("{}::{way:?}", golden.name).to_lowercase();
            Trial::test(name, move || {
                golden
                    .run(way)
                    .map_err(|error| Failed::from(format!("{error:#}")))
            })
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn queries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))?;
    let mut queries = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    queries.retain(|path| path.extension().is_some_and(|extension| extension == "sql"));
    queries.sort();
    Ok(queries)
}
