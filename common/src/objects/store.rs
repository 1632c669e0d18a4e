//! Puts objects into stores and gets them back. The one file that names object_store.
//!
//! An object is there with all of its bytes or not at all. Nothing here decides what is written: savepoints do
//! (`savepoint.rs`). All of it happens on the transport's runtime, which owns every connection.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};

use super::location::{Location, Store};
use crate::error::{ErrorCode, Problem};
use crate::seglog::fs::make_durable;
use crate::time::Span;
use crate::transport::client::Transport;

/// One object comes or goes within this, or the store counts as away.
const DEADLINE: Span = Span::from_secs(60);
/// S3 is asked again so often, and for so long.
const RETRIES: usize = 3;
const RETRY_FOR: Duration = Duration::from_secs(20);
/// What is told of what a store says.
const MAX_REASON_CHARS: usize = 500;

/// The way to object stores. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Objects {
    transport: Transport,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    #[error("there is no object \"{at}\"")]
    Missing { at: Location },
    #[error("the object \"{at}\" has {bytes} bytes, at most {most} were expected")]
    TooLong { at: Location, bytes: u64, most: u64 },
    /// Also what the store refuses: its rights may be set right.
    #[error("the store of \"{at}\" cannot be used: {reason}")]
    Unusable { at: Location, reason: String },
}

impl ObjectError {
    /// Whether the same may succeed later.
    pub fn is_temporary(&self) -> bool {
        match self {
            ObjectError::Unusable { .. } => true,
            ObjectError::Missing { .. } | ObjectError::TooLong { .. } => false,
        }
    }
}

impl From<ObjectError> for Problem {
    fn from(error: ObjectError) -> Problem {
        let code = match &error {
            ObjectError::Missing { .. } => ErrorCode::UnknownSavepoint,
            ObjectError::TooLong { .. } => ErrorCode::CorruptSavepoint,
            ObjectError::Unusable { .. } => ErrorCode::ObjectStoreUnavailable,
        };
        Problem::new(code, error.to_string())
    }
}

impl Objects {
    pub fn new(transport: Transport) -> Objects {
        Objects { transport }
    }

    /// Stores an object. It is durable when this returns.
    pub async fn put(&self, at: &Location, bytes: Bytes) -> Result<(), ObjectError> {
        let place = at.clone();
        self.run(at, async move {
            let store = open(&place)?;
            let path = path_of(&place)?;
            let put = store.put(&path, bytes.into()).await;
            put.map_err(|error| failed(&place, &error))?;
            if *place.store() == Store::Files {
                // The store renames files into their places and leaves it to the machine when they reach the disk.
                let file = std::path::PathBuf::from(format!("/{}", place.path()));
                let synced = tokio::task::spawn_blocking(move || make_durable(&file)).await;
                let synced = synced.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
                synced.map_err(|error| unusable(&place, error.to_string()))?;
            }
            Ok(())
        })
        .await
    }

    /// All of an object, which has at most so many bytes.
    pub async fn get(&self, at: &Location, most: u64) -> Result<Bytes, ObjectError> {
        let place = at.clone();
        self.run(at, async move {
            let store = open(&place)?;
            let got = store.get(&path_of(&place)?).await;
            let got = got.map_err(|error| failed(&place, &error))?;
            let bytes = got.meta.size;
            if bytes > most {
                let at = place;
                return Err(ObjectError::TooLong { at, bytes, most });
            }
            got.bytes().await.map_err(|error| failed(&place, &error))
        })
        .await
    }

    /// The bytes of an object, without fetching it.
    pub async fn length(&self, at: &Location) -> Result<u64, ObjectError> {
        let place = at.clone();
        self.run(at, async move {
            let store = open(&place)?;
            let found = store.head(&path_of(&place)?).await;
            found
                .map(|found| found.size)
                .map_err(|error| failed(&place, &error))
        })
        .await
    }

    /// The places right below one that have something in them.
    pub async fn places_below(&self, at: &Location) -> Result<Vec<Location>, ObjectError> {
        let place = at.clone();
        self.run(at, async move {
            let store = open(&place)?;
            let listed = store.list_with_delimiter(Some(&path_of(&place)?)).await;
            let listed = listed.map_err(|error| failed(&place, &error))?;
            let names = listed
                .common_prefixes
                .iter()
                .filter_map(|path| path.filename());
            Ok(names.map(|name| place.join(name)).collect())
        })
        .await
    }

    /// Removes everything below a place; that something is not there any more is no error. `first`: the object that goes
    /// before all others, since they are nothing without it.
    pub async fn remove_below(&self, at: &Location, first: &str) -> Result<(), ObjectError> {
        let place = at.clone();
        let first = at.join(first);
        self.run(at, async move {
            let store = open(&place)?;
            remove(&*store, &path_of(&first)?, &place).await?;
            let listed = store
                .list(Some(&path_of(&place)?))
                .try_collect::<Vec<_>>()
                .await;
            let listed = listed.map_err(|error| failed(&place, &error))?;
            for object in listed {
                remove(&*store, &object.location, &place).await?;
            }
            Ok(())
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        at: &Location,
        work: impl Future<Output = Result<T, ObjectError>> + Send + 'static,
    ) -> Result<T, ObjectError> {
        let within = tokio::time::timeout(DEADLINE.as_duration(), work);
        match self.transport.apart(within).await {
            Some(Ok(done)) => done,
            Some(Err(_)) => Err(unusable(at, format!("no answer within {DEADLINE}"))),
            None => Err(unusable(at, "the node is stopping".to_owned())),
        }
    }
}

/// Built for each object: what it costs is little beside an object, and credentials that were renewed count.
fn open(at: &Location) -> Result<Arc<dyn ObjectStore>, ObjectError> {
    match at.store() {
        Store::Files => {
            let files = LocalFileSystem::new().with_automatic_cleanup(true);
            Ok(Arc::new(files))
        }
        Store::S3 { bucket } => {
            let retry = RetryConfig {
                max_retries: RETRIES,
                retry_timeout: RETRY_FOR,
                ..RetryConfig::default()
            };
            let options = ClientOptions::new()
                .with_timeout(DEADLINE.as_duration())
                // An endpoint of one's own may be plain HTTP, if AWS_ALLOW_HTTP says so.
                .with_allow_http(
                    std::env::var("AWS_ALLOW_HTTP").is_ok_and(|allow| allow == "true"),
                );
            let store = AmazonS3Builder::from_env()
                .with_bucket_name(bucket)
                .with_client_options(options)
                .with_retry(retry)
                .build();
            Ok(Arc::new(store.map_err(|error| failed(at, &error))?))
        }
    }
}

async fn remove(store: &dyn ObjectStore, path: &Path, at: &Location) -> Result<(), ObjectError> {
    match store.delete(path).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(failed(at, &error)),
    }
}

fn path_of(at: &Location) -> Result<Path, ObjectError> {
    Path::parse(at.path()).map_err(|error| unusable(at, error.to_string()))
}

fn failed(at: &Location, error: &object_store::Error) -> ObjectError {
    if let object_store::Error::NotFound { .. } = error {
        return ObjectError::Missing { at: at.clone() };
    }
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let cause = error.to_string();
        // Most say what their sources say.
        if !reason.contains(&cause) {
            write!(reason, ": {cause}").expect("text can always be written");
        }
        source = error.source();
    }
    unusable(at, reason)
}

fn unusable(at: &Location, reason: String) -> ObjectError {
    let secrets = [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    ];
    let secrets = secrets.iter().filter_map(|name| std::env::var(name).ok());
    ObjectError::Unusable {
        at: at.clone(),
        reason: without(&reason, secrets),
    }
}

/// A store may repeat what it was asked with; and how long its answers are is for it to say.
fn without(reason: &str, secrets: impl Iterator<Item = String>) -> String {
    let secrets = secrets.filter(|secret| !secret.is_empty());
    let reason = secrets.fold(reason.to_owned(), |reason, secret| {
        reason.replace(&secret, "…")
    });
    reason.chars().take(MAX_REASON_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work)
    }

    #[test]
    fn an_object_in_a_directory_is_there_whole_or_missed_by_name() {
        let directory = tempfile::TempDir::new().unwrap();
        let objects = Objects::new(Transport::start("test").unwrap());
        let location: Location = format!("file://{}", directory.path().display())
            .parse()
            .unwrap();
        talk(async {
            let at = location.join("job").join("a.bin");
            objects
                .put(&at, Bytes::from_static(b"bytes"))
                .await
                .unwrap();
            assert_eq!(objects.get(&at, 5).await.unwrap(), "bytes");
            let long = objects.get(&at, 4).await.unwrap_err();
            assert!(matches!(long, ObjectError::TooLong { bytes: 5, .. }));
            assert_eq!(objects.length(&at).await, Ok(5));
            let missing = location.join("b.bin");
            assert!(objects.length(&missing).await.is_err());
            let error = objects.get(&missing, 5).await.unwrap_err();
            assert_eq!(error, ObjectError::Missing { at: missing });
        });
    }

    #[test]
    fn what_a_store_says_is_told_without_credentials_and_not_at_any_length() {
        let secrets = || ["key".to_owned(), String::new()].into_iter();
        assert_eq!(without("no key here", secrets()), "no … here");
        let long = without(&"a".repeat(10_000), secrets());
        assert_eq!(long.len(), MAX_REASON_CHARS);
    }

    #[test]
    fn a_store_that_cannot_be_used_says_where_and_why() {
        let directory = tempfile::NamedTempFile::new().unwrap();
        let objects = Objects::new(Transport::start("test").unwrap());
        let at = format!("file://{}/a.bin", directory.path().display());
        let at: Location = at.parse().unwrap();
        let put = talk(objects.put(&at, Bytes::from_static(b"bytes")));
        let problem = Problem::from(put.unwrap_err());
        assert_eq!(problem.code, ErrorCode::ObjectStoreUnavailable);
        assert!(problem.detail.contains(&at.to_string()), "{problem}");
    }
}
