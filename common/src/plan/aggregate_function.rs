//! The aggregate functions a job may call, and why others are refused.
//!
//! A function is offered once any split of its rows, over batches, checkpoints and restores, is known to
//! give what one pass gives: a property test of the worker goes through this table. Every function may
//! have a FILTER.

use crate::error::{ErrorCode, Problem};

/// A function, under one of its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AggregateFunction {
    pub name: &'static str,
    /// May be called with DISTINCT.
    pub distinct: bool,
    /// Can take a row back that was added before.
    pub retracts: bool,
}

/// A function that is not offered, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedFunction {
    pub name: &'static str,
    pub reason: &'static str,
}

pub const OFFERED: &[AggregateFunction] = &[
    AggregateFunction {
        distinct: true,
        ..retracting("count")
    },
    retracting("sum"),
    retracting("avg"),
    retracting("mean"),
    retracting("min"),
    retracting("max"),
    retracting("bool_and"),
    retracting("bool_or"),
    plain("stddev"),
    plain("stddev_samp"),
    plain("stddev_pop"),
    plain("var"),
    plain("var_samp"),
    plain("var_sample"),
    plain("var_pop"),
    plain("var_population"),
    plain("corr"),
    plain("first_value"),
    plain("last_value"),
    plain("array_agg"),
    plain("approx_distinct"),
    plain("approx_percentile_cont"),
];

pub const REFUSED: &[RefusedFunction] = &[
    refused(
        "median",
        "it keeps every value; approx_percentile_cont(x, 0.5) does not",
    ),
    refused(
        "percentile_cont",
        "it keeps every value; approx_percentile_cont does not",
    ),
    refused(
        "string_agg",
        "array_to_string(array_agg(x), ', ') gives the same",
    ),
    refused("nth_value", "it needs an order of the rows of a group"),
    refused(
        "grouping",
        "it belongs to GROUPING SETS, which are not supported",
    ),
];

const fn plain(name: &'static str) -> AggregateFunction {
    AggregateFunction {
        name,
        distinct: false,
        retracts: false,
    }
}

const fn retracting(name: &'static str) -> AggregateFunction {
    AggregateFunction {
        retracts: true,
        ..plain(name)
    }
}

const fn refused(name: &'static str, reason: &'static str) -> RefusedFunction {
    RefusedFunction { name, reason }
}

/// Looks a call up. `retract`: rows may be taken back.
pub fn offered(name: &str, distinct: bool, retract: bool) -> Result<AggregateFunction, Problem> {
    let name = name.to_ascii_lowercase();
    let refuse = |detail: String, hint: &str| {
        Err(Problem::new(ErrorCode::UnsupportedFeature, detail).hint(hint))
    };
    let Some(function) = OFFERED.iter().find(|function| function.name == name) else {
        let reason = REFUSED.iter().find(|refused| refused.name == name).map_or(
            "it is not known to give the same result after a restart",
            |r| r.reason,
        );
        let names: Vec<&str> = OFFERED.iter().map(|function| function.name).collect();
        let hint = format!("There are: {}.", names.join(", "));
        return refuse(
            format!("the aggregate function \"{name}\" is not offered: {reason}"),
            &hint,
        );
    };
    if distinct && !function.distinct {
        return refuse(
            format!("{name} cannot be called with DISTINCT"),
            "Only count can: count(DISTINCT column). For others, take the distinct rows first: SELECT DISTINCT.",
        );
    }
    if retract && !function.retracts {
        let able: Vec<&str> = OFFERED
            .iter()
            .filter(|f| f.retracts)
            .map(|f| f.name)
            .collect();
        let hint = format!(
            "Over rows that change there are: {}. Windows take rows that only come.",
            able.join(", ")
        );
        return refuse(
            format!("{name} cannot take back a row, but its input's rows change"),
            &hint,
        );
    }
    Ok(*function)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_offered_or_refused_with_a_reason() {
        assert!(offered("COUNT", true, false).is_ok());
        assert!(offered("count", true, true).is_ok());
        assert!(offered("sum", false, true).is_ok());
        assert!(offered("min", false, true).is_ok());
        for (name, distinct, retract, word) in [
            ("median", false, false, "not offered"),
            ("sum", true, false, "DISTINCT"),
            ("stddev", false, true, "take back"),
            ("array_agg", false, true, "take back"),
            ("max", true, true, "DISTINCT"),
        ] {
            let problem = offered(name, distinct, retract).unwrap_err();
            assert!(problem.detail.contains(word), "{problem}");
            assert!(!problem.hint.is_empty());
        }
    }

    #[test]
    fn no_function_is_both_offered_and_refused() {
        for refused in REFUSED {
            assert!(OFFERED.iter().all(|function| function.name != refused.name));
        }
    }
}
