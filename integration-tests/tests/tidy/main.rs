//! The repository's rules, as tests: what may be used where, how files begin, what documents may name.

use integration_tests::source_tree::{SourceFile, root, rust_files};

/// What only some files may use, and which: by the end of the path, or by a folder in it.
const ALLOWED: &[(&str, &[&str])] = &[
    (
        "actix::",
        &[
            "actor.rs",
            "actors.rs",
            "messages.rs",
            "node.rs",
            "slots.rs",
            "supervisor.rs",
            "exchange/mod.rs",
        ],
    ),
    ("actix_web::", &["/http/", "common/src/transport/"]),
    ("sled::", &["common/src/kv/"]),
    (
        "std::fs",
        &[
            "common/src/seglog/fs.rs",
            "common/src/kv/sled.rs",
            "common/src/config/",
            "common/src/data_dir.rs",
            "coordinator/src/metadata_log/snapshot_file.rs",
            "worker/src/keyed_state/base_file.rs",
            "worker/src/keyed_state/base_copy.rs",
            "worker/src/load.rs",
            "worker/src/source/files",
            "worker/src/sink/files",
            "examples/",
        ],
    ),
    ("object_store::", &["common/src/objects/store.rs"]),
    ("openraft::", &["coordinator/src/raft/"]),
    (
        "datafusion::",
        &["coordinator/src/planner/", "worker/src/operator/"],
    ),
    ("SystemTime::now", &["common/src/time.rs"]),
    ("Instant::now", &["common/src/time.rs"]),
    ("rand::", &["common/src/random.rs"]),
];

/// Words that say the work is not done, or that the code is kept by someone else's memory.
const BANNED: &[&str] = &[
    "TODO",
    "FIXME",
    "todo!(",
    "unimplemented!(",
    "dbg!(",
    "#[ignore",
];

fn production(files: &[SourceFile]) -> impl Iterator<Item = &SourceFile> {
    files
        .iter()
        .filter(|file| !file.is_test() && !file.path.ends_with("tests/tidy/main.rs"))
}

#[test]
fn libraries_are_used_only_where_they_belong() {
    let files = rust_files().unwrap();
    let mut broken = Vec::new();
    for file in production(&files) {
        for (library, places) in ALLOWED {
            if places
                .iter()
                .any(|place| file.path.ends_with(place) || file.path.contains(place))
            {
                continue;
            }
            for (number, line) in file.code() {
                let own_path = format!("::{library}");
                if line.contains(library) && !line.contains(&own_path) {
                    broken.push(format!("{}:{number}: {library} is not for here", file.path));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn crates_depend_one_way() {
    let files = rust_files().unwrap();
    let mut broken = Vec::new();
    for file in &files {
        let forbidden: &[&str] = match file.path.split('/').next().unwrap() {
            "common" => &["worker::", "coordinator::"],
            "worker" => &["coordinator::"],
            "coordinator" => &["worker::"],
            "examples" if file.path.ends_with("/own_operator.rs") => &["coordinator::"],
            "examples" if !file.path.contains("/quickstart/") => &["worker::", "coordinator::"],
            _ => &[],
        };
        for (number, line) in file.code() {
            let uses = |name: &&&str| line.trim_start().starts_with(&format!("use {name}"));
            if let Some(name) = forbidden.iter().find(uses) {
                broken.push(format!(
                    "{}:{number}: {name} is above this crate",
                    file.path
                ));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// A code that no test names is a promise that nobody has seen kept.
#[test]
fn every_error_code_is_in_a_test() {
    let files = rust_files().unwrap();
    let tests: Vec<&str> = files.iter().filter_map(SourceFile::tests).collect();
    let table = files.iter().find(|file| file.path == "common/src/error.rs");
    let table = &table.unwrap().text;
    let start = table.find("pub enum ErrorCode {").unwrap();
    let table = &table[start..start + table[start..].find("\n}").unwrap()];
    let codes: Vec<&str> = table
        .lines()
        .skip(1)
        .map(str::trim)
        .filter(|line| !line.starts_with("//"))
        .map(|line| line.trim_end_matches(','))
        .collect();
    assert!(codes.len() > 40, "{codes:?}");
    let is_in_a_test = |code: &&str| {
        let variant = format!("ErrorCode::{code}");
        let text = format!("\"{}\"", screaming(code));
        tests.iter().any(|test| {
            let mut places = test.match_indices(&variant);
            let ends = |at: usize| !test[at..].starts_with(|c: char| c.is_ascii_alphanumeric());
            test.contains(&text) || places.any(|(at, _)| ends(at + variant.len()))
        })
    };
    let untested: Vec<&&str> = codes.iter().filter(|code| !is_in_a_test(code)).collect();
    assert!(untested.is_empty(), "in no test: {untested:?}");
}

/// As a code is written in answers.
fn screaming(variant: &str) -> String {
    let mut text = String::new();
    for letter in variant.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_uppercase());
    }
    text
}

#[test]
fn every_file_begins_with_its_purpose() {
    let files = rust_files().unwrap();
    let without: Vec<&str> = files
        .iter()
        .filter(|f| !f.text.starts_with("//! "))
        .map(|f| f.path.as_str())
        .collect();
    assert!(without.is_empty(), "no purpose line: {without:?}");
}

#[test]
fn nothing_is_left_undone() {
    let files = rust_files().unwrap();
    let mut broken = Vec::new();
    for file in files
        .iter()
        .filter(|file| !file.path.ends_with("tests/tidy/main.rs"))
    {
        for (index, line) in file.text.lines().enumerate() {
            if let Some(word) = BANNED.iter().find(|word| line.contains(**word)) {
                broken.push(format!("{}:{}: {word}", file.path, index + 1));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_top_level_holds_what_it_should_and_nothing_else() {
    let expected = [
        "ARCHITECTURE.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "common",
        "coordinator",
        "examples",
        "integration-tests",
        "worker",
    ];
    let mut found: Vec<String> = std::fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && name != "target")
        .collect();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn documents_name_only_files_that_exist() {
    let files = rust_files().unwrap();
    let mut missing = Vec::new();
    for document in ["README.md", "ARCHITECTURE.md"] {
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        for name in text.split('`').skip(1).step_by(2) {
            let is_path = name.ends_with(".rs") && !name.contains([' ', '*', '{', '<']);
            let exists =
                |file: &SourceFile| file.path == name || file.path.ends_with(&format!("/{name}"));
            if is_path && !files.iter().any(exists) {
                missing.push(format!("{document}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
