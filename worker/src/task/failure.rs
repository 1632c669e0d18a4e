//! Why a task ends by itself.

use crate::checkpoint::view_reader::ViewError;
use crate::operator::OperatorError;
use crate::source::SourceError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    /// The same would happen again.
    pub fatal: bool,
    /// What went wrong is outside: the state at completed checkpoints is as good as ever, and the next generation may
    /// go on with it.
    pub keeps_state: bool,
}

impl From<OperatorError> for Failure {
    fn from(error: OperatorError) -> Failure {
        Failure {
            reason: error.reason,
            fatal: error.fatal,
            keeps_state: false,
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Failure {
        let fatal = matches!(error, SourceError::Fatal(_));
        Failure {
            reason: error.to_string(),
            fatal,
            keeps_state: !fatal,
        }
    }
}

impl From<arrow::error::ArrowError> for Failure {
    fn from(error: arrow::error::ArrowError) -> Failure {
        Failure {
            reason: format!("rows cannot be sent on: {error}"),
            fatal: true,
            keeps_state: false,
        }
    }
}

impl From<ViewError> for Failure {
    fn from(error: ViewError) -> Failure {
        Failure {
            reason: format!("the state cannot be read: {error}"),
            fatal: false,
            keeps_state: false,
        }
    }
}
