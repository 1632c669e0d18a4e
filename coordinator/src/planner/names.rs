//! Operator ids of SQL jobs.
//!
//! State is kept under them, so an id must survive changes elsewhere in the text. It is made of the
//! sink, what the operator does, and its keys: `counts-window-auction`. Where that is not unique, all
//! that share it get the sources they read added, then a digest of what they compute.

use std::collections::{BTreeMap, BTreeSet};

use common::key_group::hash_key;
use common::plan::expression::NamedExpression;
use common::plan::operator::OperatorSpec;

use super::lower::{Draft, Input};

/// Longest id a graph may have, less room for a digest.
const MAX_ID_BYTES: usize = 90;

/// What of an operator's surroundings goes into its id.
#[derive(Clone, Debug)]
pub(super) struct Label {
    pub(super) sink: String,
    /// The sources whose rows reach it, sorted.
    pub(super) sources: Vec<String>,
    /// What it is called, if its type does not say enough.
    pub(super) kind: Option<&'static str>,
}

/// One id per draft, none of them among `taken`.
pub(super) fn name_operators(drafts: &[Draft], taken: &BTreeSet<String>) -> Vec<String> {
    let digests = digests(drafts);
    let mut ids: Vec<String> = drafts.iter().map(base).collect();
    lengthen(&mut ids, taken, |i| {
        let sources = drafts[i].label.sources.join("-");
        plain(&sources)
    });
    lengthen(&mut ids, taken, |i| format!("{:08x}", digests[i] >> 32));
    // What is still equal computes the same from the same rows: which is which does not matter.
    let mut used = taken.clone();
    for id in &mut ids {
        let base = id.clone();
        let mut number = 2;
        while !used.insert(id.clone()) {
            *id = format!("{base}-{number}");
            number += 1;
        }
    }
    ids
}

/// Adds to every id that is not unique.
fn lengthen(ids: &mut [String], taken: &BTreeSet<String>, addition: impl Fn(usize) -> String) {
    let clashing = clashing(ids, taken);
    for (i, id) in ids.iter_mut().enumerate() {
        if clashing.contains(id.as_str()) {
            *id = shortened(format!("{id}-{}", addition(i)));
        }
    }
}

fn clashing(ids: &[String], taken: &BTreeSet<String>) -> BTreeSet<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for id in ids {
        *counts.entry(id).or_default() += 1;
    }
    counts
        .into_iter()
        .filter(|(id, count)| *count > 1 || taken.contains(*id))
        .map(|(id, _)| id.to_owned())
        .collect()
}

fn base(draft: &Draft) -> String {
    let (kind, keys): (&str, &[NamedExpression]) = match &draft.spec {
        OperatorSpec::WindowAggregate(window) => ("window", &window.keys),
        OperatorSpec::Aggregate(aggregate) => ("aggregate", &aggregate.keys),
        other => (other.type_name(), &[]),
    };
    let kind = draft.label.kind.unwrap_or(kind);
    let mut id = format!("{}-{kind}", draft.label.sink);
    for key in keys {
        id.push('-');
        id.push_str(&plain(&key.name));
    }
    shortened(id)
}

/// A name with only the characters an id may have.
fn plain(name: &str) -> String {
    name.chars()
        .map(
            |c| match c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') {
                true => c,
                false => '_',
            },
        )
        .collect()
}

fn shortened(id: String) -> String {
    match id.len() > MAX_ID_BYTES {
        true => {
            let digest = hash_key(id.as_bytes()) >> 32;
            let kept = MAX_ID_BYTES - 9;
            format!("{}-{digest:08x}", &id[..kept])
        }
        false => id,
    }
}

/// A digest of what each draft computes, from its sources on.
fn digests(drafts: &[Draft]) -> Vec<u64> {
    let mut digests: Vec<u64> = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let mut text = serde_json::to_string(&draft.spec).expect("a spec is plain data");
        for input in &draft.inputs {
            match input {
                Input::Source(name) => text.push_str(&format!("\nsource {name}")),
                // Inputs come before what reads them.
                Input::Operator(position) => text.push_str(&format!("\n{:x}", digests[*position])),
            }
        }
        digests.push(hash_key(text.as_bytes()));
    }
    digests
}
