//! The plan as text, for people and for golden tests: it changes only when the plan does.

use common::plan::connector::{SinkSpec, SourceSpec};
use common::plan::edge::{ChangelogMode, Route};
use common::plan::expression::NamedExpression;
use common::plan::operator::{AggregateCall, OperatorSpec};
use common::plan::task_graph::{PlannedOperator, PlannedSink, PlannedSource, Stage};
use common::plan::window::WindowSpec;
use common::schema::Column;

use super::PlannedJob;

/// Writes every stage with what comes in, what it does, and what goes out.
pub fn explain(job: &PlannedJob) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    line(format!(
        "parallelism {}, {} key groups",
        job.parallelism, job.tasks.key_groups
    ));
    for stage in &job.tasks.stages {
        line(format!("stage {} × {}", stage.id.0, stage.parallelism));
        for (_, edge) in job.tasks.inputs_of(stage.id) {
            let number = match stage_inputs(stage) {
                1 => String::new(),
                _ => format!(" as input {}", edge.input),
            };
            line(format!(
                "  from stage {}{number}, {}: {}",
                edge.from.0,
                route(&edge.route),
                columns(&edge.columns)
            ));
        }
        if let Some(source) = &stage.source {
            line(format!("  source {}", source_line(source)));
        }
        for planned in &stage.operators {
            line(format!("  {}", operator_line(planned)));
        }
        if let Some(sink) = &stage.sink {
            line(format!("  sink {}", sink_line(sink)));
        }
    }
    for (topic, partitions) in &job.sink_topics {
        line(format!(
            "creates topic {topic} with {partitions} partitions"
        ));
    }
    for warning in &job.warnings {
        line(format!("warning: {warning}"));
    }
    text
}

fn stage_inputs(stage: &Stage) -> usize {
    match stage.operators.first() {
        Some(first) if stage.source.is_none() => first.inputs.len(),
        _ => 1,
    }
}

fn source_line(source: &PlannedSource) -> String {
    let what = match &source.spec {
        SourceSpec::Topic(topic) => format!("topic {}", topic.topic),
        SourceSpec::Files(files) => format!("files {}", files.path),
        SourceSpec::Generator(generator) => {
            let name = serde_json::to_value(generator.generator).expect("a kind is plain data");
            format!("generator {}", name.as_str().unwrap_or_default())
        }
    };
    let watermark = match source.spec.watermark() {
        Some(watermark) => format!(", watermark {} - {}", watermark.column, watermark.delay),
        None => String::new(),
    };
    let columns = columns(&source.columns);
    format!("{}: {what}{watermark}: {columns}", source.name)
}

fn sink_line(sink: &PlannedSink) -> String {
    let what = match &sink.spec {
        SinkSpec::Topic(topic) => format!("topic {}", topic.topic),
        SinkSpec::Files(files) => format!("files {}", files.path),
        SinkSpec::Webhook(webhook) => format!("webhook {}", webhook.url),
        SinkSpec::Blackhole(_) => "blackhole".to_owned(),
        SinkSpec::Console(_) => "console".to_owned(),
    };
    let (mode, columns) = (mode(&sink.mode), columns(&sink.columns));
    format!("{}: {what}, {mode}: {columns}", sink.name)
}

fn operator_line(planned: &PlannedOperator) -> String {
    let spec = &planned.spec;
    let mut text = format!("{} {}", spec.type_name(), spec.id());
    let detail = match spec {
        OperatorSpec::Filter(filter) => format!(": {}", filter.predicate),
        OperatorSpec::Project(project) => format!(": {}", named(&project.columns)),
        OperatorSpec::Union(_) => String::new(),
        OperatorSpec::WindowAggregate(aggregate) => {
            let time = aggregate.time.as_ref().or(planned.time_column.as_ref());
            let time = time.map_or("", String::as_str);
            let late = match aggregate.allowed_lateness.0 {
                0 => String::new(),
                _ => format!(", {} late at most", aggregate.allowed_lateness),
            };
            format!(
                ": {} over {time}{late}, by ({}): {}",
                window(&aggregate.window),
                named(&aggregate.keys),
                calls(&aggregate.aggregates)
            )
        }
        OperatorSpec::Aggregate(aggregate) => format!(
            ": by ({}): {}",
            named(&aggregate.keys),
            calls(&aggregate.aggregates)
        ),
        OperatorSpec::Custom(custom) => format!(": {} by ({})", custom.name, named(&custom.keys)),
    };
    text.push_str(&detail);
    if planned.output_mode != ChangelogMode::Append {
        text.push_str(" → ");
        text.push_str(&mode(&planned.output_mode));
    }
    text
}

fn named(columns: &[NamedExpression]) -> String {
    let texts: Vec<String> = columns
        .iter()
        .map(
            |column| match column.expr.as_column().as_ref() == Some(&column.name) {
                true => column.expr.to_string(),
                false => format!("{} AS {}", column.expr, column.name),
            },
        )
        .collect();
    texts.join(", ")
}

fn calls(calls: &[AggregateCall]) -> String {
    let texts: Vec<String> = calls
        .iter()
        .map(|call| {
            let args: Vec<&str> = call.args.iter().map(|arg| arg.0.as_str()).collect();
            let args = match args.is_empty() {
                true => "*".to_owned(),
                false => args.join(", "),
            };
            let distinct = if call.distinct { "DISTINCT " } else { "" };
            let filter = match &call.filter {
                Some(filter) => format!(" FILTER (WHERE {filter})"),
                None => String::new(),
            };
            format!(
                "{}({distinct}{args}){filter} AS {}",
                call.function, call.name
            )
        })
        .collect();
    texts.join(", ")
}

fn window(window: &WindowSpec) -> String {
    let offset = match window.offset().0 {
        0 => String::new(),
        _ => format!(" + {}", window.offset()),
    };
    match window {
        WindowSpec::Tumbling { size, .. } => format!("tumbling {size}{offset}"),
        WindowSpec::Hopping { size, slide, .. } => format!("hopping {size} / {slide}{offset}"),
    }
}

fn route(route: &Route) -> String {
    match route {
        Route::Forward => "forward".to_owned(),
        Route::Rebalance => "rebalance".to_owned(),
        Route::Hash { keys } if keys.is_empty() => "to one task".to_owned(),
        Route::Hash { keys } => {
            let keys: Vec<&str> = keys.iter().map(|key| key.0.as_str()).collect();
            format!("hash ({})", keys.join(", "))
        }
    }
}

fn mode(mode: &ChangelogMode) -> String {
    match mode {
        ChangelogMode::Append => "append".to_owned(),
        ChangelogMode::Upsert { key } => format!("upsert ({})", key.join(", ")),
        ChangelogMode::Retract { key } => format!("retract ({})", key.join(", ")),
    }
}

fn columns(columns: &[Column]) -> String {
    let texts: Vec<String> = columns
        .iter()
        .map(|column| {
            let not_null = if column.nullable { "" } else { " NOT NULL" };
            format!("{} {}{not_null}", column.name, column.kind)
        })
        .collect();
    texts.join(", ")
}
