//! Which segments may go, and when the active one must be closed so that it can.
//!
//! A segment is as old as its last write, on this node's wall clock: records may carry any time at all.
//! Whole segments go, oldest first, and only what every reader may already have read: nothing at or
//! after the limit the partition gives.

use common::offset::Offset;
use common::protocol::topic::TopicConfig;
use common::time::{Span, Timestamp};

/// A segment as retention sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentFacts {
    pub end_offset: Offset,
    pub bytes: u64,
    pub created: Timestamp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RetentionPlan {
    /// How many of the oldest segments to remove.
    pub drop: usize,
    /// Close the active segment: all of it will be too old before it is full.
    pub roll: bool,
}

/// What to do now. `segments` are in order, the active one last. `limit`: the committed offset, the first
/// open transaction's, or the first that a job may read again, whichever is earliest.
pub fn plan(
    segments: &[SegmentFacts],
    config: &TopicConfig,
    limit: Offset,
    now: Timestamp,
) -> RetentionPlan {
    let Some((active, closed)) = segments.split_last() else {
        return RetentionPlan::default();
    };
    let mut left: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let mut drop = 0;
    for (segment, successor) in closed.iter().zip(&segments[1..]) {
        let too_old = is_past(config.retention_ms, successor.created, now);
        let too_much = config
            .retention_bytes
            .is_some_and(|allowed| left - segment.bytes >= allowed);
        if segment.end_offset > limit || !(too_old || too_much) {
            break;
        }
        left -= segment.bytes;
        drop += 1;
    }
    RetentionPlan {
        drop,
        roll: active.bytes > 0 && is_past(config.retention_ms, active.created, now),
    }
}

/// How large segments should be so that retention by size can keep its word to within a quarter.
pub fn segment_bytes(config: &TopicConfig) -> u64 {
    const LEAST: u64 = 64 << 10;
    match config.retention_bytes {
        Some(allowed) => config.segment_bytes.min((allowed / 4).max(LEAST)),
        None => config.segment_bytes,
    }
}

/// How often to look: often enough to be late by a quarter of the retention time.
pub fn interval(config: &TopicConfig) -> Span {
    const MOST: u64 = 60_000;
    const LEAST: u64 = 1_000;
    Span(
        config
            .retention_ms
            .map_or(MOST, |ms| (ms / 4).clamp(LEAST, MOST)),
    )
}

fn is_past(retention_ms: Option<u64>, written: Timestamp, now: Timestamp) -> bool {
    retention_ms.is_some_and(|ms| written.plus(Span(ms)) < now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(retention_ms: Option<u64>, retention_bytes: Option<u64>) -> TopicConfig {
        TopicConfig {
            retention_ms,
            retention_bytes,
            ..TopicConfig::default()
        }
    }

    /// `end offset, bytes, created` of each segment.
    fn segments(rows: &[(i64, u64, i64)]) -> Vec<SegmentFacts> {
        rows.iter()
            .map(|(end, bytes, created)| SegmentFacts {
                end_offset: Offset(*end),
                bytes: *bytes,
                created: Timestamp(*created),
            })
            .collect()
    }

    #[test]
    fn segments_go_by_age_by_size_and_never_past_the_limit() {
        let log = [
            (10, 100, 0),
            (20, 100, 1_000),
            (30, 100, 2_000),
            (40, 50, 3_000),
        ];
        // retention ms, retention bytes, limit, now → drop, roll
        let table = [
            (None, None, 40, 1_000_000, 0, false),
            (Some(500), None, 40, 1_500, 0, false),
            (Some(500), None, 40, 1_501, 1, false),
            (Some(500), None, 40, 2_600, 2, false),
            (Some(500), None, 15, 2_600, 1, false),
            (Some(500), None, 40, 9_000, 3, true),
            (None, Some(350), 40, 0, 0, false),
            (None, Some(250), 40, 0, 1, false),
            (None, Some(249), 40, 0, 1, false),
            (None, Some(150), 40, 0, 2, false),
            (None, Some(0), 40, 0, 3, false),
            (None, Some(0), 19, 0, 1, false),
            (None, Some(0), 9, 0, 0, false),
        ];
        for (ms, bytes, limit, now, drop, roll) in table {
            let plan = plan(
                &segments(&log),
                &config(ms, bytes),
                Offset(limit),
                Timestamp(now),
            );
            assert_eq!(
                plan,
                RetentionPlan { drop, roll },
                "ms {ms:?} bytes {bytes:?} limit {limit} now {now}"
            );
        }
    }

    #[test]
    fn an_empty_log_is_left_alone() {
        let empty = segments(&[(0, 0, 0)]);
        let long_after = Timestamp(i64::MAX);
        assert_eq!(
            plan(&empty, &config(Some(1), Some(0)), Offset(0), long_after),
            RetentionPlan::default()
        );
    }
}
