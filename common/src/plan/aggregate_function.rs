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
    /// May be called with DISTINCT, over rows that are only ever added.
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
        retracts: true,
        ..plain("count")
    },
    AggregateFunction {
        retracts: true,
        ..plain("sum")
    },
    AggregateFunction {
        retracts: true,
        ..plain("avg")
    },
    AggregateFunction {
        retracts: true,
        ..plain("mean")
    },
    plain("min"),
    plain("max"),
    plain("stddev"),
    plain("stddev_samp"),
    plain("stddev_pop"),
    plain("var"),
    plain("var_samp"),
    plain("var_sample"),
    plain("var_pop"),
    plain("var_population"),
    plain("bool_and"),
    plain("bool_or"),
    plain("first_value"),
    plain("last_value"),
    plain("array_agg"),
    plain("approx_distinct"),
    plain("approx_percentile_cont"),
    plain("corr"),
];

pub const REFUSED: &[RefusedFunction] = &[RefusedFunction {
    name: "median",
    reason: "it keeps every value; approx_percentile_cont(x, 0.5) does not",
}];

const fn plain(name: &'static str) -> AggregateFunction {
    AggregateFunction {
        name,
        distinct: false,
        retracts: false,
    }
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
            "Only count can: count(DISTINCT column).",
        );
    }
    if retract && (distinct || !function.retracts) {
        let call = if distinct {
            format!("{name}(DISTINCT …)")
        } else {
            name
        };
        return refuse(
            format!("{call} cannot take back a row, but its input's rows change"),
            "Over an input whose rows change, use count, sum and avg.",
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
        assert!(offered("sum", false, true).is_ok());
        for (name, distinct, retract, word) in [
            ("median", false, false, "not offered"),
            ("sum", true, false, "DISTINCT"),
            ("count", true, true, "take back"),
            ("min", false, true, "take back"),
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
