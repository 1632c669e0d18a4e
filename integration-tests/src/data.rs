//! Real streams that tests use where they are present, beside a checkout of the repository.

use std::path::{Path, PathBuf};

/// The folder of a data set; `None`, with a line that says what is skipped, where it is absent.
pub fn data_set(name: &str) -> Option<PathBuf> {
    let override_ = std::env::var_os("MILLSTREAM_SHARED_DATA").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|dir| dir.join("shared/data"))
        .find(|dir| dir.is_dir());
    let found = override_
        .or(beside)
        .map(|dir| dir.join(name))
        .filter(|dir| dir.is_dir());
    if found.is_none() {
        println!("skipped: the data set \"{name}\" is not beside this checkout");
    }
    found
}
