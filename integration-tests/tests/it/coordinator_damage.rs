//! The coordinator's disk lies: each of its files is flipped, cut off and deleted while it is down. It comes
//! back with everything that was acknowledged, or says which file is damaged and what can be done; it never
//! comes back with less.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::client::Client;
use common::data_dir::DataDir;
use common::ids::{ClusterId, ControlEpoch, CoordinatorId, TopicId, TopicName};
use common::protocol::topic::TopicConfig;
use common::seglog::fs::FsStorage;
use common::time::Timestamp;
use common::transport::client::Transport;
use coordinator::metadata::command::{Command, Entry, Outcome};
use coordinator::metadata_log::MetadataLog;
use coordinator::raft::records::Belongs;
use coordinator::raft::types::Member;
use coordinator::raft::{GroupThread, SnapshotPolicy};
use integration_tests::process::{Process, binary};
use serde_json::Value;
use uuid::Uuid;

use crate::damage::{DAMAGES, Damage, files_below};
use crate::steps::talk;

/// How many files the log has behind the snapshot.
const SEGMENTS: usize = 4;
const SNAPSHOT: &str = "metadata.snapshot";

/// What came of a start.
enum Start {
    /// With these topics.
    Ready(BTreeSet<String>),
    /// And what the process said.
    Refused(String),
}

/// A data directory, and the topics that were acknowledged to be in it.
struct Kept {
    _temporary: tempfile::TempDir,
    directory: PathBuf,
    topics: BTreeSet<String>,
}

impl Kept {
    /// What a coordinator leaves behind that is killed: a snapshot, and the commands since in several segments.
    fn by_a_killed_coordinator() -> Kept {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("c1");
        let data_dir = Arc::new(DataDir::open(&directory).unwrap());
        let storage = FsStorage::create(directory.join("metadata")).unwrap();
        // A coordinator does the same after some megabytes.
        let policy = SnapshotPolicy {
            after_bytes: 4 << 10,
            entries_kept: 4,
        };
        let transport = Transport::start("test").unwrap();
        let (owner, group, log) =
            GroupThread::open(storage, data_dir, policy, transport, || ()).unwrap();
        let cluster = ClusterId(Uuid::from_u128(7));
        let me = Belongs {
            cluster,
            coordinator: CoordinatorId(1),
        };
        let forming = group.clone();
        let alone = [(me.coordinator, Member::default())].into();
        let formed = group.wait(async move {
            forming.begin(me).await?;
            forming.form(alone).await
        });
        assert!(formed.unwrap());
        let mut topics = BTreeSet::new();
        talk(async {
            group.leads().await.unwrap();
            let announce = Command::LeaderAnnounce { cluster };
            let Outcome::Announced(epoch) = commit(&log, ControlEpoch(0), announce).await else {
                panic!("not announced");
            };
            let first = segments(&directory)[0].clone();
            for number in 0_u128.. {
                let name = format!("topic-{number:02}");
                let create = Command::CreateTopic {
                    id: TopicId(Uuid::from_u128(number)),
                    name: TopicName::new(&name).unwrap(),
                    config: TopicConfig::default(),
                    replicas: Vec::new(),
                };
                commit(&log, epoch, create).await;
                topics.insert(name);
                // Only then is what the snapshot holds nowhere else.
                let shortened = !first.exists();
                if shortened && segments(&directory).len() >= SEGMENTS {
                    break;
                }
            }
        });
        owner.stop();
        drop((log, group));
        let kept = Kept {
            _temporary: temporary,
            directory,
            topics,
        };
        // The process itself adds its identity and the beginning of its reign.
        match start(&kept.directory) {
            Start::Ready(found) => assert_eq!(found, kept.topics),
            Start::Refused(said) => panic!("what was written is not read: {said}"),
        }
        kept
    }

    fn files(&self) -> Vec<PathBuf> {
        files_below(&self.directory)
            .into_iter()
            .map(|path| path.strip_prefix(&self.directory).unwrap().to_owned())
            .collect()
    }

    /// Another directory with the same files.
    fn copy(&self) -> (tempfile::TempDir, PathBuf) {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("c1");
        std::fs::create_dir_all(directory.join("metadata")).unwrap();
        for file in self.files() {
            std::fs::copy(self.directory.join(&file), directory.join(&file)).unwrap();
        }
        (temporary, directory)
    }
}

async fn commit(log: &MetadataLog, control_epoch: ControlEpoch, command: Command) -> Outcome {
    let entry = Entry {
        control_epoch,
        at: Timestamp(0),
        command,
    };
    log.propose(entry).await.unwrap().outcome
}

/// Starts the coordinator's process on this directory, and kills it once it has told what it knows.
fn start(directory: &Path) -> Start {
    let said = directory.with_extension("stderr");
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &directory.display().to_string(),
    ]
    .map(str::to_owned);
    let program = binary("coordinator").unwrap();
    let mut process =
        Process::start_logging("coordinator", &program, &args, &[], Some(&said)).unwrap();
    let Ok(address) = process.ready() else {
        return Start::Refused(std::fs::read_to_string(said).unwrap());
    };
    let mut topics = BTreeSet::new();
    talk(async {
        let client = Client::connect(&address).unwrap();
        let page: Value = client.get("/v1/topics?limit=1000").await.unwrap();
        let names = page["topics"].as_array().unwrap().iter();
        topics.extend(names.map(|topic| topic["name"].as_str().unwrap().to_owned()));
    });
    process.kill().unwrap();
    Start::Ready(topics)
}

/// The files that hold what was acknowledged.
fn holds_facts(file: &Path) -> bool {
    file == Path::new(SNAPSHOT) || file.extension().is_some_and(|extension| extension == "log")
}

/// The files of the log.
fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut files = files_below(&directory.join("metadata"));
    files.retain(|file| holds_facts(file));
    files
}

fn facts(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = files_below(directory).into_iter();
    files
        .filter(|path| holds_facts(path) || path.ends_with(SNAPSHOT))
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

#[test]
fn a_coordinator_starts_with_all_that_was_acknowledged_or_not_at_all() {
    let kept = Kept::by_a_killed_coordinator();
    let files = kept.files();
    assert_eq!(segments(&kept.directory).len(), SEGMENTS, "{files:?}");
    for expected in [SNAPSHOT, "identity.json", "metadata/recovery-point"] {
        assert!(files.contains(&expected.into()), "{files:?}");
    }
    for file in &files {
        for damage in DAMAGES {
            let context = format!("{damage:?} {}", file.display());
            let (_temporary, directory) = kept.copy();
            damage.inflict(&directory.join(file));
            let damaged = facts(&directory);
            match start(&directory) {
                Start::Ready(topics) => {
                    assert_eq!(topics, kept.topics, "{context}: it forgot some");
                    assert!(!holds_facts(file), "{context}: it was not missed");
                }
                Start::Refused(said) => {
                    assert_eq!(
                        facts(&directory),
                        damaged,
                        "{context}: it changed something"
                    );
                    let place = directory.display().to_string();
                    assert!(said.contains(&place), "{context}: {said}");
                    let name = file.file_name().unwrap().to_string_lossy();
                    // What is missing in the middle shows in what is before and behind it.
                    let shown = matches!(damage, Damage::Delete) || said.contains(&*name);
                    assert!(shown, "{context}: {said}");
                    let advice = ["Put back", "Delete", "delete it"];
                    let advised = advice.iter().any(|words| said.contains(words));
                    assert!(advised, "{context}: {said}");
                    std::fs::copy(kept.directory.join(file), directory.join(file)).unwrap();
                    let Start::Ready(topics) = start(&directory) else {
                        panic!("{context}: putting the file back does not help");
                    };
                    assert_eq!(topics, kept.topics, "{context}");
                }
            }
        }
    }
}

#[test]
fn a_damaged_identity_of_a_coordinator_is_made_again_once_it_is_deleted() {
    let kept = Kept::by_a_killed_coordinator();
    let (_temporary, directory) = kept.copy();
    let identity = directory.join("identity.json");
    std::fs::write(&identity, "{").unwrap();
    let Start::Refused(said) = start(&directory) else {
        panic!("it was not missed");
    };
    let advice = format!("Delete \"{}\"", identity.display());
    assert!(said.contains(&advice), "{said}");
    std::fs::remove_file(&identity).unwrap();
    let Start::Ready(topics) = start(&directory) else {
        panic!("the advice was wrong");
    };
    assert_eq!(topics, kept.topics);
}

/// Not one file but all of them: what is left of the directory still knows that there was more.
#[test]
fn a_coordinator_whose_metadata_is_gone_does_not_begin_a_new_cluster_in_its_place() {
    let kept = Kept::by_a_killed_coordinator();
    for gone in [&["metadata"][..], &[SNAPSHOT], &["metadata", SNAPSHOT]] {
        let (_temporary, directory) = kept.copy();
        for name in gone {
            let path = directory.join(name);
            match path.is_dir() {
                true => std::fs::remove_dir_all(path).unwrap(),
                false => std::fs::remove_file(path).unwrap(),
            }
        }
        for attempt in 1..=2 {
            let Start::Refused(said) = start(&directory) else {
                panic!("without {gone:?}, attempt {attempt}: it was not missed");
            };
            assert!(said.contains("Put back"), "{gone:?}: {said}");
        }
    }
}

/// What was being written when the process died was never acknowledged.
#[test]
fn a_torn_end_of_the_metadata_log_is_cut_off_and_nothing_else() {
    let kept = Kept::by_a_killed_coordinator();
    let segments = segments(&kept.directory);
    let last = segments.last().expect("there is a segment");
    let record = std::fs::read(last).unwrap();
    // The beginning of a record, one of another, zeros, noise.
    for torn in [&record[..6], &record[..20], &[0; 700], &[0xa5; 33]] {
        let (_temporary, directory) = kept.copy();
        let path = directory.join(last.strip_prefix(&kept.directory).unwrap());
        let whole = [&record[..], torn].concat();
        std::fs::write(&path, whole).unwrap();
        for _ in 0..2 {
            let Start::Ready(topics) = start(&directory) else {
                panic!("a torn end of {} bytes keeps it from starting", torn.len());
            };
            assert_eq!(topics, kept.topics);
        }
    }
}
