//! Time in slices, and windows made of them (pure).
//!
//! A window starts at every multiple of the slide. Cutting time at every start and every end of a window
//! gives slices: each window is a row of whole slices, and a row of the stream is in exactly one.
//!
//! ```text
//! size 5, slide 3:   |-----W0-----|
//!                            |-----W1-----|
//!                                    |-----W2-----|
//!                    0       3    5  6    8  9    11
//! slices             |-------|----|--|----|--|----|
//! ```
//!
//! Times are milliseconds within `LIMIT` of 1970, so that no sum here can overflow.

use common::error::{ErrorCode, Problem};
use common::plan::window::WindowSpec;
use common::time::{Span, Timestamp};

/// Event times beyond this belong to no window: about 73 million years.
pub const LIMIT: i64 = 1 << 61;

/// The slices and windows of one specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slices {
    size: i64,
    slide: i64,
    offset: i64,
    lateness: i64,
}

/// From `start` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    pub start: i64,
    pub end: i64,
}

impl Slice {
    pub fn contains(self, time: i64) -> bool {
        self.start <= time && time < self.end
    }
}

impl Slices {
    /// `allowed_lateness`: how long after its end a window stays open.
    pub fn new(window: &WindowSpec, allowed_lateness: Span) -> Result<Slices, Problem> {
        let bounded = |span: Span, what: &str| {
            i64::try_from(span.0)
                .ok()
                .filter(|milliseconds| *milliseconds < LIMIT / 8)
                .ok_or_else(|| {
                    let detail = format!("a window's {what} of {span} is too long");
                    Problem::new(ErrorCode::InvalidGraph, detail)
                })
        };
        let slices = Slices {
            size: bounded(window.size(), "size")?,
            slide: bounded(window.slide(), "slide")?,
            offset: bounded(window.offset(), "offset")?,
            lateness: bounded(allowed_lateness, "allowed lateness")?,
        };
        if slices.slide == 0 || slices.slide > slices.size {
            let detail = "a window's slide is at least 1ms and at most its size";
            return Err(Problem::new(ErrorCode::InvalidGraph, detail));
        }
        Ok(slices)
    }

    pub fn size(&self) -> i64 {
        self.size
    }

    pub fn slide(&self) -> i64 {
        self.slide
    }

    /// The slice a time is in; `None` beyond `LIMIT`.
    #[inline]
    pub fn containing(&self, time: i64) -> Option<Slice> {
        if !(-LIMIT..=LIMIT).contains(&time) {
            return None;
        }
        let start = self.window_at(time);
        // Windows end where others start, or, if the size is no multiple of the slide, this much later.
        let end = start + self.size % self.slide;
        Some(if end == start {
            Slice {
                start,
                end: start + self.slide,
            }
        } else if time < end {
            Slice { start, end }
        } else {
            Slice {
                start: end,
                end: start + self.slide,
            }
        })
    }

    /// The start of the last window that contains this time.
    #[inline]
    pub fn window_at(&self, time: i64) -> i64 {
        let since = (time - self.offset).rem_euclid(self.slide);
        time - since
    }

    /// The start of the first window that contains this slice.
    pub fn first_window_with(&self, slice: Slice) -> i64 {
        // The first start that is at least `end - size`.
        self.window_at(slice.end - self.size - 1) + self.slide
    }

    /// The start of the first window that is still open at a watermark. A window closes once no row in it
    /// can come any more, and the allowed lateness has passed.
    pub fn first_open(&self, watermark: Timestamp) -> i64 {
        let watermark = watermark.0.clamp(-2 * LIMIT, 2 * LIMIT);
        self.window_at(watermark - self.lateness - self.size) + self.slide
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slices(size: u64, slide: u64, offset: u64, lateness: u64) -> Slices {
        let window = WindowSpec::Hopping {
            size: Span(size),
            slide: Span(slide),
            offset: Span(offset),
        };
        Slices::new(&window, Span(lateness)).unwrap()
    }

    /// The windows that contain a time, found by trying every start.
    fn windows_with(slices: &Slices, time: i64) -> Vec<i64> {
        (time - slices.size..=time)
            .filter(|start| (start - slices.offset) % slices.slide == 0)
            .filter(|start| (*start..start + slices.size).contains(&time))
            .collect()
    }

    proptest! {
        #[test]
        fn a_row_is_in_one_slice_and_all_of_its_windows_contain_the_whole_slice(
            (size, slide) in (1_u64..40).prop_flat_map(|size| (Just(size), 1..=size)),
            offset in 0_u64..50,
            time in -200_i64..200,
        ) {
            let slices = slices(size, slide, offset, 0);
            let slice = slices.containing(time).unwrap();
            prop_assert!(slice.contains(time));
            let windows = windows_with(&slices, time);
            for inside in slice.start..slice.end {
                prop_assert_eq!(slices.containing(inside), Some(slice));
                prop_assert_eq!(&windows_with(&slices, inside), &windows);
            }
            prop_assert_eq!(slices.first_window_with(slice), windows[0]);
            prop_assert_eq!(slices.window_at(slice.start), *windows.last().unwrap());
        }

        #[test]
        fn a_window_is_open_until_the_watermark_has_passed_its_end_and_the_lateness(
            (size, slide) in (1_u64..40).prop_flat_map(|size| (Just(size), 1..=size)),
            lateness in 0_u64..30,
            watermark in -200_i64..200,
        ) {
            let slices = slices(size, slide, 0, lateness);
            let first = slices.first_open(Timestamp(watermark));
            let closes = |start: i64| start + slices.size + slices.lateness;
            prop_assert!(closes(first) > watermark);
            prop_assert!(closes(first - slices.slide) <= watermark);
        }
    }

    #[test]
    fn the_ends_of_time_are_no_special_case() {
        let slices = slices(10_000, 3_000, 500, 1_000);
        assert_eq!(slices.containing(i64::MAX), None);
        assert_eq!(slices.containing(i64::MIN), None);
        for time in [-LIMIT, 0, LIMIT] {
            let slice = slices.containing(time).unwrap();
            assert!(slices.first_open(Timestamp::MIN) <= slices.first_window_with(slice));
            assert!(slices.window_at(slice.start) < slices.first_open(Timestamp::MAX));
        }
    }

    #[test]
    fn lengths_that_could_overflow_are_refused() {
        for window in [
            WindowSpec::Tumbling {
                size: Span(u64::MAX),
                offset: Span(0),
            },
            WindowSpec::Tumbling {
                size: Span(0),
                offset: Span(0),
            },
            WindowSpec::Hopping {
                size: Span(1),
                slide: Span(2),
                offset: Span(0),
            },
        ] {
            assert!(Slices::new(&window, Span(0)).is_err(), "{window:?}");
        }
    }
}
