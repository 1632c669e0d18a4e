//! How event time is divided into windows.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time::Span;

/// The windows a row belongs to. Windows start at multiples of their slide since 1970, plus `offset`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum WindowSpec {
    /// Adjacent windows: every row is in exactly one.
    Tumbling {
        size: Span,
        #[serde(default)]
        offset: Span,
    },
    /// A window of `size` starts every `slide`: a row is in ⌈size / slide⌉ of them.
    Hopping {
        size: Span,
        slide: Span,
        #[serde(default)]
        offset: Span,
    },
}

impl WindowSpec {
    pub fn size(&self) -> Span {
        match self {
            WindowSpec::Tumbling { size, .. } | WindowSpec::Hopping { size, .. } => *size,
        }
    }

    pub fn slide(&self) -> Span {
        match self {
            WindowSpec::Tumbling { size, .. } => *size,
            WindowSpec::Hopping { slide, .. } => *slide,
        }
    }

    pub fn offset(&self) -> Span {
        match self {
            WindowSpec::Tumbling { offset, .. } | WindowSpec::Hopping { offset, .. } => *offset,
        }
    }
}
