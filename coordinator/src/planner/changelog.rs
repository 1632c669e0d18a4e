//! Which kinds of change travel where: what operators and sinks take, and what they give.
//!
//! A plan that does not fit is refused here, naming the operator, before anything runs.

use common::error::{ErrorCode, Problem};
use common::plan::connector::{Format, SinkSpec, SourceSpec};
use common::plan::edge::ChangelogMode;
use common::plan::operator::OperatorSpec;

use super::typing::Node;

/// The kinds of change a node gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Changes {
    Inserts,
    /// Updates with the row they replace, and deletes. The key identifies a row, if it is known;
    /// an empty one means that there is one row at most.
    All {
        key: Option<Vec<String>>,
    },
}

impl Changes {
    pub(super) fn mode(&self) -> ChangelogMode {
        match self {
            Changes::Inserts => ChangelogMode::Append,
            Changes::All { key } => ChangelogMode::Retract {
                key: key.clone().unwrap_or_default(),
            },
        }
    }

    pub(super) fn are_inserts(&self) -> bool {
        *self == Changes::Inserts
    }
}

pub(super) fn of_source(spec: &SourceSpec) -> Changes {
    let format = match spec {
        SourceSpec::Topic(topic) => topic.format,
        SourceSpec::Files(files) => files.format,
        SourceSpec::Generator(_) => return Changes::Inserts,
    };
    match format {
        Format::DebeziumJson => Changes::All { key: None },
        Format::Json | Format::Csv | Format::Msgpack => Changes::Inserts,
    }
}

pub(super) fn of_operator(
    spec: &OperatorSpec,
    inputs: &[&Node],
    at: &str,
) -> Result<Changes, Problem> {
    let first = &inputs[0].changes;
    match spec {
        OperatorSpec::Filter(_) | OperatorSpec::Project(_) => Ok(first.clone()),
        OperatorSpec::Union(_) => {
            let all_inserts = inputs.iter().all(|input| input.changes.are_inserts());
            Ok(match all_inserts {
                true => Changes::Inserts,
                // Two inputs may give rows of the same key.
                false => Changes::All { key: None },
            })
        }
        OperatorSpec::WindowAggregate(_) => {
            take_inserts(spec, first, at)?;
            Ok(Changes::Inserts)
        }
        OperatorSpec::Aggregate(aggregate) => {
            // Whether its functions can take rows back is asked of each call.
            if aggregate.aggregates.is_empty() && first.are_inserts() {
                // Only keys: each comes out once and never changes.
                return Ok(Changes::Inserts);
            }
            let key = aggregate.keys.iter().map(|key| key.name.clone()).collect();
            Ok(Changes::All { key: Some(key) })
        }
        OperatorSpec::Custom(_) => {
            take_inserts(spec, first, at)?;
            Ok(Changes::Inserts)
        }
    }
}

/// What a project makes of its input's changes. `carried`: pairs of an input column and the output column
/// that tells rows apart as it does. The key stays one as long as all its columns are carried.
pub(super) fn of_project(input: &Changes, carried: &[(String, String)]) -> Changes {
    match input {
        Changes::Inserts => Changes::Inserts,
        Changes::All { key } => {
            let renamed = |column: &String| {
                carried
                    .iter()
                    .find(|(from, _)| from == column)
                    .map(|(_, to)| to.clone())
            };
            let key = key
                .as_ref()
                .and_then(|key| key.iter().map(renamed).collect());
            Changes::All { key }
        }
    }
}

fn take_inserts(spec: &OperatorSpec, input: &Changes, at: &str) -> Result<(), Problem> {
    if input.are_inserts() {
        return Ok(());
    }
    let what = match spec {
        OperatorSpec::WindowAggregate(_) => "a window aggregate",
        OperatorSpec::Aggregate(_) => "an aggregate",
        _ => "this operator",
    };
    let named = match spec.id() {
        "" => what.to_owned(),
        id => format!("{what} (\"{id}\")"),
    };
    let problem = Problem::new(
        ErrorCode::UnsupportedFeature,
        format!("{named} takes inserts only, but its input carries updates and deletes"),
    )
    .hint("Updates come from running aggregates and from sources of format debezium_json.");
    Err(match at.is_empty() {
        true => problem,
        false => problem.at(at),
    })
}

/// What a sink makes of the changes of its input, or why it cannot take them.
pub(super) fn of_sink(
    name: &str,
    spec: &SinkSpec,
    input: &Changes,
    at: &str,
) -> Result<ChangelogMode, Problem> {
    let Changes::All { key } = input else {
        return Ok(ChangelogMode::Append);
    };
    let refuse = |why: &str, hint: &str| {
        let detail = format!("the sink \"{name}\" cannot take updates and deletes: {why}");
        Err(Problem::new(ErrorCode::UnsupportedFeature, detail)
            .at(at)
            .hint(hint))
    };
    const DEBEZIUM: &str =
        "Use format debezium_json, which has a form for every change, or aggregate in windows.";
    match (spec, spec.format()) {
        (SinkSpec::Blackhole(_) | SinkSpec::Console(_), _) | (_, Some(Format::DebeziumJson)) => {
            Ok(input.mode())
        }
        (SinkSpec::Topic(topic), Some(Format::Json | Format::Msgpack)) => {
            let mut wanted = topic.key.clone();
            wanted.sort();
            match key {
                None => refuse("it is not known which columns identify a row", DEBEZIUM),
                Some(key) if key.is_empty() => {
                    refuse("there is one row without a key to update it by", DEBEZIUM)
                }
                Some(key) => {
                    let mut sorted = key.clone();
                    sorted.sort();
                    if !wanted.is_empty() && wanted != sorted {
                        let why = format!(
                            "its record key is ({}), but rows are identified by ({})",
                            topic.key.join(", "),
                            key.join(", ")
                        );
                        return refuse(&why, "Make the record key the columns grouped by.");
                    }
                    let key = match topic.key.is_empty() {
                        true => key.clone(),
                        false => topic.key.clone(),
                    };
                    Ok(ChangelogMode::Upsert { key })
                }
            }
        }
        (SinkSpec::Topic(_) | SinkSpec::Files(_), Some(Format::Csv)) => {
            refuse("csv has no form for them", DEBEZIUM)
        }
        (SinkSpec::Files(_), _) => refuse("a file's rows have no key to update by", DEBEZIUM),
        (SinkSpec::Webhook(_), _) => refuse("a webhook gets rows once", DEBEZIUM),
        (SinkSpec::Topic(_), None) => unreachable!("a topic's records have a format"),
    }
}
