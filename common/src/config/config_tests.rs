//! Where values come from, which wins, and that every mistake is found.

use std::ffi::OsString;

use super::coordinator::CoordinatorConfig;
use super::worker::WorkerConfig;
use super::*;

fn arguments(text: &str) -> Vec<OsString> {
    std::iter::once("program")
        .chain(text.split_whitespace())
        .map(OsString::from)
        .collect()
}

fn nothing(_: &str) -> Option<String> {
    None
}

fn mistakes(error: ConfigError) -> Vec<String> {
    let ConfigError::Mistakes(mistakes) = error else {
        panic!("the command line was refused: {error}");
    };
    let lines = mistakes.0.iter();
    lines
        .map(|m| format!("{}: {}", m.origin, m.detail))
        .collect()
}

fn file(content: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("options.toml");
    std::fs::write(&path, content).unwrap();
    let flag = format!("--config {}", path.display());
    (directory, flag)
}

#[test]
fn the_compiled_in_defaults_are_complete_valid_and_described() {
    // Reading an option that is missing in default.toml, and leaving one unread, both panic.
    assert_eq!(
        CoordinatorConfig::defaults().session_timeout,
        Span::from_secs(3)
    );
    assert_eq!(WorkerConfig::defaults().memory_bytes, 512 << 20);
    assert!(WorkerConfig::defaults().slots >= 16);
    for process in ["coordinator", "worker"] {
        for option in known_options(process) {
            assert!(
                option.about.ends_with('.'),
                "{} has no sentence",
                option.name
            );
        }
        // What was read line by line is what the file says as TOML.
        let file: toml::Table = DEFAULTS.parse().unwrap();
        let table = file[process].as_table().unwrap();
        let names: Vec<&str> = known_options(process).iter().map(|o| o.name).collect();
        assert_eq!(table.len(), names.len());
        assert!(names.iter().all(|name| table.contains_key(*name)));
    }
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let (_kept, config) = file("[worker]\nmemory = \"1GiB\"\nslots = 7\nlog = \"warn\"\n");
    let environment = |name: &str| match name {
        "MILLSTREAM_MEMORY" => Some("2GiB".to_owned()),
        "MILLSTREAM_SLOTS" => Some("8".to_owned()),
        _ => None,
    };
    let all = arguments(&format!("{config} --memory 3GiB"));
    let loaded = WorkerConfig::load(all, environment).unwrap();
    assert_eq!(loaded.memory_bytes, 3 << 30);
    assert_eq!(loaded.slots, 8);
    assert_eq!(loaded.log, "warn");
    assert_eq!(loaded.log_format, LogFormat::Text);
}

#[test]
fn one_file_may_serve_both_processes() {
    let (_kept, config) = file("[worker]\nslots = 7\n[coordinator]\nsession-timeout = \"10s\"\n");
    let worker = WorkerConfig::load(arguments(&config), nothing).unwrap();
    let coordinator = CoordinatorConfig::load(arguments(&config), nothing).unwrap();
    assert_eq!(worker.slots, 7);
    assert_eq!(coordinator.session_timeout, Span::from_secs(10));
}

#[test]
fn several_addresses_are_a_list_in_a_file_and_have_commas_elsewhere() {
    let expected = ["http://a:1", "http://b:2"];
    let (_kept, config) = file(
        "[worker]\ncoordinator = [\"http://a:1/\", \"http://b:2\"]\n[coordinator]\npeers = \"http://a:1\"\n",
    );
    let listed = WorkerConfig::load(arguments(&config), nothing).unwrap();
    assert_eq!(listed.coordinators, expected);
    let flag = arguments("--coordinator http://a:1,http://b:2");
    assert_eq!(
        WorkerConfig::load(flag, nothing).unwrap().coordinators,
        expected
    );
    let variable =
        |name: &str| (name == "MILLSTREAM_PEERS").then(|| "http://a:1, http://b:2".to_owned());
    let peers = CoordinatorConfig::load(arguments(&config), variable).unwrap();
    assert_eq!(peers.peers, expected, "the environment beats the file");
    assert!(CoordinatorConfig::defaults().peers.is_empty());
    for (wrong, detail) in [
        ("", "is not a URL"),
        ("http://a:1,nowhere", "\"nowhere\" is not a URL"),
        ("http://a:1,http://a:1/", "is there twice"),
    ] {
        let mut all = arguments("--coordinator");
        all.push(OsString::from(wrong));
        let found = mistakes(WorkerConfig::load(all, nothing).unwrap_err());
        assert!(found[0].contains(detail), "{found:?}");
    }
}

#[test]
fn all_mistakes_are_reported_at_once_and_say_where_they_were_made() {
    let (_kept, config) = file("top = 1\n[worker]\nslots = 0\nspeed = \"high\"\n[wrker]\n");
    let environment = |name: &str| (name == "MILLSTREAM_MEMORY").then(|| "lots".to_owned());
    let all = arguments(&format!(
        "{config} --listen nowhere --log-format xml --kafka-listen 127.0.0.1:9092"
    ));
    let found = mistakes(WorkerConfig::load(all, environment).unwrap_err());
    for (place, detail) in [
        ("\"top\" in", "put it below [worker]"),
        ("\"speed\" in", "no such option"),
        ("\"wrker\" in", "no such table"),
        ("\"slots\" in", "a number from 1"),
        ("MILLSTREAM_MEMORY in the environment", "512MiB"),
        ("--listen", "127.0.0.1:7070"),
        ("--log-format", "neither text nor json"),
        ("--kafka-listen", "not served in this version"),
    ] {
        assert!(
            found
                .iter()
                .any(|m| m.starts_with(place) && m.contains(detail)),
            "{place} is missing in {found:#?}"
        );
    }
    assert_eq!(found.len(), 8, "{found:#?}");
}

#[test]
fn a_file_that_is_missing_or_not_toml_is_a_mistake_like_any_other() {
    let missing = arguments("--config /nowhere/at/all.toml --session-timeout 1ms");
    let found = mistakes(CoordinatorConfig::load(missing, nothing).unwrap_err());
    assert_eq!(found.len(), 2, "{found:#?}");
    let (_kept, config) = file("[worker\n");
    let found = mistakes(WorkerConfig::load(arguments(&config), nothing).unwrap_err());
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[test]
fn help_shows_every_option_with_its_default() {
    let error = WorkerConfig::load(arguments("--help"), nothing).unwrap_err();
    let ConfigError::CommandLine(help) = error else {
        panic!("help was taken for a mistake");
    };
    let help = help.to_string();
    for option in known_options("worker") {
        let flag = format!("--{}", option.name);
        assert!(help.contains(&flag), "{flag} is missing in\n{help}");
    }
    assert!(help.contains("[default: 512MiB]"), "{help}");
}

#[test]
fn sizes_and_urls_are_read_as_people_write_them() {
    for (text, bytes) in [
        ("512MiB", Some(512 << 20)),
        ("4 GiB", Some(4 << 30)),
        ("1GB", Some(1_000_000_000)),
        ("123", Some(123)),
        ("", None),
        ("MiB", None),
        ("-1", None),
        ("1.5GiB", None),
        ("99999999999TiB", None),
    ] {
        assert_eq!(parse_bytes(text), bytes, "{text:?}");
    }
    for (text, read) in [
        ("http://c1:7070", Some("http://c1:7070")),
        ("http://c1:7070/", Some("http://c1:7070")),
        ("http://[::1]:7070", Some("http://[::1]:7070")),
        ("c1:7070", None),
        ("https://c1:7070", None),
        ("http://c1", None),
        ("http://c1:0", None),
        ("http://c1:7070/path", None),
    ] {
        assert_eq!(url(text).ok().as_deref(), read, "{text:?}");
    }
}
