//! Our own sources, read for the repository's rules.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A file of the repository.
#[derive(Debug)]
pub struct SourceFile {
    /// From the repository's root, with `/`.
    pub path: String,
    pub text: String,
}

impl SourceFile {
    /// The lines of code: no comments, and nothing of an inline test module.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self
            .text
            .find("#[cfg(test)]\nmod tests {")
            .unwrap_or(self.text.len());
        self.text[..end]
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// What of the file is a test: all of it, its inline module, or nothing. What tests only stand on is none.
    pub fn tests(&self) -> Option<&str> {
        if self.path.ends_with("_tests.rs") || self.path.contains("/tests/") {
            return Some(&self.text);
        }
        let inline = self.text.find("#[cfg(test)]\nmod tests {")?;
        Some(&self.text[inline..])
    }

    pub fn is_test(&self) -> bool {
        self.path.ends_with("_tests.rs")
            || self.path.contains("/tests/")
            || self.path.contains("/benches/")
            || self.path.contains("/testing/")
            || self.path.starts_with("integration-tests/")
            || self.path.ends_with("/harness.rs")
    }
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a crate of a workspace has a folder above it")
        .to_owned()
}

/// The Rust files of all crates.
pub fn rust_files() -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    for member in [
        "common",
        "coordinator",
        "worker",
        "examples",
        "integration-tests",
    ] {
        collect(&root().join(member), "rs", &mut files)?;
    }
    Ok(files)
}

fn collect(directory: &Path, extension: &str, files: &mut Vec<SourceFile>) -> Result<()> {
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, extension, files)?;
        } else if path.extension().is_some_and(|found| found == extension) {
            let relative = path
                .strip_prefix(root())?
                .to_string_lossy()
                .replace('\\', "/");
            files.push(SourceFile {
                path: relative,
                text: std::fs::read_to_string(&path)?,
            });
        }
    }
    Ok(())
}
