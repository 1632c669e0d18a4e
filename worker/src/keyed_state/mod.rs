//! Named tables scoped to key groups: what operators remember.

mod ordered;
pub mod codec;
pub mod row_codec;
mod space;
pub mod overlay;
pub mod stored;
mod base;
pub mod table;
pub mod section;
pub mod base_file;
mod in_order;
pub mod base_copy;

#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod codec_tests;
#[cfg(test)]
mod row_codec_tests;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
pub(crate) mod spill_tests;
