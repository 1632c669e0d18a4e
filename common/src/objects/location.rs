//! Where objects are: `file:///directory` or `s3://bucket/prefix` (pure).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{ErrorCode, Problem};

/// A path that is longer is refused by S3 as well.
const MAX_BYTES: usize = 1_024;

/// A place in an object store, or an object there. Never has credentials in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Location {
    store: Store,
    /// Without a slash at either end; empty: all of the store.
    path: String,
}

/// Which store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Store {
    /// The directories of the machine, or a file system that all machines share.
    Files,
    S3 {
        bucket: String,
    },
}

/// Why a text is no location.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    #[error("\"{0}\" is neither file:///directory nor s3://bucket/prefix")]
    Scheme(String),
    #[error("\"{0}\" names no absolute directory: write file:///directory")]
    Relative(String),
    #[error("\"{0}\" names no bucket: write s3://bucket/prefix")]
    NoBucket(String),
    /// Without the text: it may hold what nobody should read.
    #[error("a location has no user, password, query or fragment in it")]
    Extras,
    #[error("\"{0}\" has \".\", \"..\", \"%\", an empty part or a control character in its path")]
    Path(String),
    #[error("a location has at most {MAX_BYTES} bytes")]
    TooLong,
}

impl Location {
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// A place below this one.
    pub fn join(&self, name: &str) -> Location {
        let path = match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}/{name}"),
        };
        Location {
            store: self.store.clone(),
            path,
        }
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Location, LocationError> {
        if text.len() > MAX_BYTES {
            return Err(LocationError::TooLong);
        }
        if text.contains(['?', '#', '@']) {
            return Err(LocationError::Extras);
        }
        let (store, path) = if let Some(path) = text.strip_prefix("file://") {
            let path = path.strip_prefix("localhost").unwrap_or(path);
            let path = path.strip_prefix('/');
            (
                Store::Files,
                path.ok_or_else(|| LocationError::Relative(text.to_owned()))?,
            )
        } else if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if bucket.is_empty() || !bucket.chars().all(is_name) {
                return Err(LocationError::NoBucket(text.to_owned()));
            }
            let bucket = bucket.to_owned();
            (Store::S3 { bucket }, path)
        } else {
            return Err(LocationError::Scheme(text.to_owned()));
        };
        let path = path.strip_suffix('/').unwrap_or(path);
        let is_part = |part: &str| {
            let known = |c: char| !c.is_control() && c != '%' && c != '\\';
            !matches!(part, "" | "." | "..") && part.chars().all(known)
        };
        if !path.is_empty() && !path.split('/').all(is_part) {
            return Err(LocationError::Path(text.to_owned()));
        }
        Ok(Location {
            store,
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.store {
            Store::Files => write!(f, "file:///{}", self.path),
            Store::S3 { bucket } if self.path.is_empty() => write!(f, "s3://{bucket}"),
            Store::S3 { bucket } => write!(f, "s3://{bucket}/{}", self.path),
        }
    }
}

impl TryFrom<String> for Location {
    type Error = LocationError;

    fn try_from(text: String) -> Result<Location, LocationError> {
        text.parse()
    }
}

impl From<Location> for String {
    fn from(location: Location) -> String {
        location.to_string()
    }
}

impl From<LocationError> for Problem {
    fn from(error: LocationError) -> Problem {
        Problem::new(ErrorCode::InvalidRequest, error.to_string())
            .hint("Write file:///directory, on a file system that every node sees, or s3://bucket/prefix; S3's credentials are read from AWS_* in the environment of the nodes.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_and_written_alike() {
        for (text, written) in [
            ("file:///tmp/savepoints", "file:///tmp/savepoints"),
            ("file:///tmp/savepoints/", "file:///tmp/savepoints"),
            ("file://localhost/tmp", "file:///tmp"),
            ("file:///", "file:///"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            (
                "s3://my.bucket-1/some/prefix",
                "s3://my.bucket-1/some/prefix",
            ),
        ] {
            let location: Location = text.parse().unwrap();
            assert_eq!(location.to_string(), written);
            assert_eq!(written.parse::<Location>().as_ref(), Ok(&location));
        }
        let location: Location = "s3://bucket".parse().unwrap();
        assert_eq!(location.join("a").join("b").to_string(), "s3://bucket/a/b");
    }

    #[test]
    fn what_is_no_location_is_refused_with_what_would_be_one() {
        for text in [
            "",
            "/tmp",
            "http://bucket/prefix",
            "file://tmp",
            "file://../tmp",
            "s3://",
            "s3:///prefix",
            "s3://buck et/prefix",
            "file:///a//b",
            "file:///a/../b",
            "file:///a/./b",
            "file:///a%2fb",
            "file:///a\nb",
        ] {
            let error = text.parse::<Location>().unwrap_err();
            assert!(!Problem::from(error).hint.is_empty(), "{text}");
        }
        let long = format!("file:///{}", "a".repeat(MAX_BYTES));
        assert_eq!(long.parse::<Location>(), Err(LocationError::TooLong));
    }

    #[test]
    fn a_location_with_a_password_is_refused_without_repeating_it() {
        for text in [
            "s3://key:secret@bucket/prefix",
            "s3://bucket/prefix?secret=1",
            "file:///a#secret",
        ] {
            let problem = Problem::from(text.parse::<Location>().unwrap_err());
            assert!(!problem.detail.contains("secret"), "{problem}");
        }
    }
}
