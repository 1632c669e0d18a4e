//! Lists in pages: so many items at most, after a certain one.

use serde::Deserialize;
use utoipa::IntoParams;

use common::error::{ErrorCode, Problem};
use common::limits::{DEFAULT_PAGE, MAX_PAGE};

/// Which page of a list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// How many items at most; 100 unless told.
    pub limit: Option<usize>,
    /// `next` of the page before; leave it out for the first page.
    pub after: Option<String>,
}

impl Page {
    /// The items of this page, of `items` in the order of their keys, and where the next page begins.
    pub fn of<T>(
        &self,
        items: impl Iterator<Item = T>,
        key: impl Fn(&T) -> String,
    ) -> Result<(Vec<T>, Option<String>), Problem> {
        let limit = self.limit.unwrap_or(DEFAULT_PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            let detail = format!("limit is from 1 to {MAX_PAGE}, not {limit}");
            return Err(Problem::new(ErrorCode::InvalidRequest, detail).at("limit"));
        }
        // The items may have changed since the last page: the key says where to go on, not a number.
        let mut items = items.skip_while(|item| {
            let after = self.after.as_ref();
            after.is_some_and(|after| key(item) <= *after)
        });
        let page: Vec<T> = items.by_ref().take(limit).collect();
        let next = match (items.next(), page.last()) {
            (Some(_), Some(last)) => Some(key(last)),
            _ => None,
        };
        Ok((page, next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_together_are_the_list() {
        let names: Vec<String> = (0..25).map(|n| format!("t{n:02}")).collect();
        for limit in [1, 7, 25, 100] {
            let mut page = Page {
                limit: Some(limit),
                after: None,
            };
            let mut read = Vec::new();
            loop {
                let (items, next) = page.of(names.iter(), |name| (*name).clone()).unwrap();
                assert!(items.len() <= limit);
                read.extend(items.into_iter().cloned());
                page.after = next;
                if page.after.is_none() {
                    break;
                }
            }
            assert_eq!(read, names);
        }
        for limit in [0, MAX_PAGE + 1] {
            let page = Page {
                limit: Some(limit),
                after: None,
            };
            assert!(page.of(names.iter(), |name| (*name).clone()).is_err());
        }
    }
}
