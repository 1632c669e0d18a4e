//! Options of the processes: flags over environment over file over the defaults that are compiled in.
//!
//! `default.toml` is the list of all options: their names, defaults and descriptions, which `--help` shows.
//! Values stay text until every source was read; then all of them are checked and every mistake is
//! reported at once, with where it was made.

pub mod coordinator;
pub mod worker;
#[cfg(test)]
mod config_tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::error::ErrorKind;

use crate::time::Span;

const DEFAULTS: &str = include_str!("default.toml");

/// Why a process does not start.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// What the command line parser has to say; also help and version, which are no errors.
    #[error("{0}")]
    CommandLine(#[from] clap::Error),
    #[error("{0}")]
    Mistakes(Mistakes),
}

/// Everything that is wrong, in the order of the options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it was made.
    pub origin: Origin,
    pub detail: String,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default(String),
    File { path: PathBuf, option: String },
    Environment(String),
    Flag(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// The values of one process's options, not yet checked.
#[derive(Debug)]
pub(crate) struct Options {
    values: BTreeMap<&'static str, (String, Origin)>,
    mistakes: Vec<Mistake>,
}

/// One line of `default.toml`.
struct Known {
    name: &'static str,
    default: &'static str,
    about: String,
}

impl Options {
    /// Reads the options of `process`, a table of `default.toml`.
    fn load(
        process: &'static str,
        about: &'static str,
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Options, ConfigError> {
        let known = known_options(process);
        let flags = command(process, about, &known).try_get_matches_from(arguments)?;
        let flag = |name: &str| flags.get_one::<String>(name).cloned();
        let file = flag("config").or_else(|| environment("MILLSTREAM_CONFIG"));
        let mut options = Options {
            values: BTreeMap::new(),
            mistakes: Vec::new(),
        };
        let in_file = match &file {
            Some(path) => options.read_file(PathBuf::from(path), process, &known),
            None => BTreeMap::new(),
        };
        for Known { name, default, .. } in known {
            let variable = variable(name);
            let value = flag(name)
                .map(|value| (value, Origin::Flag(format!("--{name}"))))
                .or_else(|| Some((environment(&variable)?, Origin::Environment(variable))))
                .or_else(|| in_file.get(name).cloned())
                .unwrap_or_else(|| (default.to_owned(), Origin::Default(name.to_owned())));
            options.values.insert(name, value);
        }
        Ok(options)
    }

    fn read_file(
        &mut self,
        path: PathBuf,
        process: &str,
        known: &[Known],
    ) -> BTreeMap<String, (String, Origin)> {
        let origin = |option: &str| Origin::File {
            path: path.clone(),
            option: option.to_owned(),
        };
        let text = std::fs::read_to_string(&path).map_err(|error| error.to_string());
        let tables = text.and_then(|text| {
            let parsed = text.parse::<toml::Table>();
            parsed.map_err(|error| error.to_string().trim_end().to_owned())
        });
        let tables = match tables {
            Ok(tables) => tables,
            Err(detail) => {
                self.mistake(origin(""), detail);
                return BTreeMap::new();
            }
        };
        let mut values = BTreeMap::new();
        for (table, content) in tables {
            let toml::Value::Table(content) = content else {
                self.mistake(
                    origin(&table),
                    format!("options belong into a table; put it below [{process}]"),
                );
                continue;
            };
            if table != process {
                if !["coordinator", "worker"].contains(&table.as_str()) {
                    self.mistake(origin(&table), "there is no such table".to_owned());
                }
                continue;
            }
            for (name, value) in content {
                if known.iter().all(|option| option.name != name) {
                    self.mistake(origin(&name), "there is no such option".to_owned());
                    continue;
                }
                let text = match value {
                    toml::Value::String(text) => text,
                    toml::Value::Integer(number) => number.to_string(),
                    toml::Value::Boolean(choice) => choice.to_string(),
                    toml::Value::Array(texts) if texts.iter().all(toml::Value::is_str) => {
                        let texts: Vec<&str> =
                            texts.iter().filter_map(|text| text.as_str()).collect();
                        texts.join(",")
                    }
                    toml::Value::Float(_)
                    | toml::Value::Datetime(_)
                    | toml::Value::Array(_)
                    | toml::Value::Table(_) => {
                        self.mistake(origin(&name), "it must be a text or a number".to_owned());
                        continue;
                    }
                };
                values.insert(name.clone(), (text, origin(&name)));
            }
        }
        values
    }

    /// The value of an option, once it is what `parse` takes. A mistake is noted and reported by `finish`.
    fn get<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let (text, origin) = self
            .values
            .remove(name)
            .expect("default.toml has every option, and each is read once");
        parse(text.trim())
            .map_err(|detail| self.mistake(origin, detail))
            .ok()
    }

    fn mistake(&mut self, origin: Origin, detail: String) {
        self.mistakes.push(Mistake { origin, detail });
    }

    /// What was built of the options, or everything that is wrong with them.
    fn finish<T>(self, built: Option<T>) -> Result<T, ConfigError> {
        assert!(
            self.values.is_empty(),
            "default.toml has options that nobody reads: {:?}",
            self.values.keys()
        );
        match built {
            Some(config) if self.mistakes.is_empty() => Ok(config),
            _ => Err(ConfigError::Mistakes(Mistakes(self.mistakes))),
        }
    }
}

impl ConfigError {
    /// Says what is to be said, help on standard output and mistakes on standard error, and the code the
    /// process ends with.
    pub fn report(&self) -> u8 {
        match self {
            ConfigError::CommandLine(error) => {
                // If even this cannot be written, nothing can.
                error.print().unwrap_or_default();
                match error.kind() {
                    ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
                    _ => 2,
                }
            }
            ConfigError::Mistakes(mistakes) => {
                eprintln!("{mistakes}");
                2
            }
        }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "the configuration has a mistake:")?,
            count => write!(f, "the configuration has {count} mistakes:")?,
        }
        for mistake in &self.0 {
            write!(f, "\n  {}: {}", mistake.origin, mistake.detail)?;
        }
        Ok(())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default(option) => write!(f, "the default of \"{option}\""),
            Origin::File { path, option } if option.is_empty() => write!(f, "{}", path.display()),
            Origin::File { path, option } => write!(f, "\"{option}\" in {}", path.display()),
            Origin::Environment(variable) => write!(f, "{variable} in the environment"),
            Origin::Flag(flag) => f.write_str(flag),
        }
    }
}

/// The options of one table, in the order of the file, each with the comment above it.
fn known_options(process: &str) -> Vec<Known> {
    let header = format!("[{process}]");
    let mut about: Vec<&str> = Vec::new();
    let mut known = Vec::new();
    for line in DEFAULTS
        .lines()
        .skip_while(|line| *line != header)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
    {
        if let Some(comment) = line.strip_prefix('#') {
            about.push(comment.trim());
        } else if let Some((name, default)) = line.split_once('=') {
            known.push(Known {
                name: name.trim(),
                default: default.trim().trim_matches('"'),
                about: std::mem::take(&mut about).join(" "),
            });
        }
    }
    assert!(!known.is_empty(), "default.toml has no table {header}");
    known
}

fn variable(option: &str) -> String {
    format!("MILLSTREAM_{}", option.to_uppercase().replace('-', "_"))
}

fn command(process: &'static str, about: &'static str, known: &[Known]) -> clap::Command {
    let config = clap::Arg::new("config")
        .long("config")
        .value_name("FILE")
        .help("A TOML file with options. [env: MILLSTREAM_CONFIG]");
    let options = known.iter().map(|option| {
        let default = match option.default {
            "" => String::new(),
            text => format!("[default: {text}] "),
        };
        clap::Arg::new(option.name)
            .long(option.name)
            .value_name("VALUE")
            .help(format!(
                "{} {default}[env: {}]",
                option.about,
                variable(option.name)
            ))
    });
    clap::Command::new(process)
        .about(about)
        .version(env!("CARGO_PKG_VERSION"))
        .arg(config)
        .args(options)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    use std::net::ToSocketAddrs;
    let expected = || format!("\"{text}\" is not an address; write for example 127.0.0.1:7070");
    let mut addresses = text.to_socket_addrs().map_err(|_| expected())?;
    addresses.next().ok_or_else(expected)
}

/// An address as nodes are given it: `http://host:port`.
pub fn url(text: &str) -> Result<String, String> {
    let expected = || format!("\"{text}\" is not a URL; write for example http://127.0.0.1:7070");
    let authority = text.strip_prefix("http://").ok_or_else(expected)?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, port) = authority.rsplit_once(':').ok_or_else(expected)?;
    let is_host = !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']);
    if is_host && port.parse::<u16>().is_ok_and(|port| port != 0) {
        Ok(format!("http://{authority}"))
    } else {
        Err(expected())
    }
}

fn optional<T>(
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> impl FnOnce(&str) -> Result<Option<T>, String> {
    |text| match text {
        "" => Ok(None),
        text => parse(text).map(Some),
    }
}

/// Any number of them, separated by commas, each once.
fn list<T: PartialEq>(
    parse: impl Fn(&str) -> Result<T, String>,
) -> impl FnOnce(&str) -> Result<Vec<T>, String> {
    move |text| {
        let mut values = Vec::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let value = parse(part)?;
            if values.contains(&value) {
                return Err(format!("\"{part}\" is there twice"));
            }
            values.push(value);
        }
        Ok(values)
    }
}

/// At least one of them, separated by commas.
fn some<T: PartialEq>(
    parse: impl Fn(&str) -> Result<T, String>,
) -> impl FnOnce(&str) -> Result<Vec<T>, String> {
    move |text| match text {
        "" => parse(text).map(|only| vec![only]),
        text => list(parse)(text),
    }
}

fn directory(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("it must name a directory".to_owned()),
        text => Ok(PathBuf::from(text)),
    }
}

fn span(least: Span, most: Span) -> impl FnOnce(&str) -> Result<Span, String> {
    move |text| {
        let span: Span = text.parse().map_err(|error| format!("{error}"))?;
        if (least..=most).contains(&span) {
            Ok(span)
        } else {
            Err(format!("{span} is not between {least} and {most}"))
        }
    }
}

fn bytes(least: u64, most: u64) -> impl FnOnce(&str) -> Result<u64, String> {
    move |text| {
        let bytes = parse_bytes(text).ok_or_else(|| {
            format!("\"{text}\" is not a number of bytes; write for example 512MiB or 4GiB")
        })?;
        if (least..=most).contains(&bytes) {
            Ok(bytes)
        } else {
            Err(format!("{text} is not between {least} and {most} bytes"))
        }
    }
}

/// `512MiB`, `4 GiB`, `1GB`, or a bare number.
fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let unit: u64 = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit)
}

/// A number from 1 to `most`, or `auto`.
fn count(most: u32, auto: impl FnOnce() -> u32) -> impl FnOnce(&str) -> Result<u32, String> {
    move |text| match text {
        "auto" => Ok(auto().clamp(1, most)),
        text => match text.parse::<u32>() {
            Ok(number) if (1..=most).contains(&number) => Ok(number),
            _ => Err(format!(
                "\"{text}\" is neither auto nor a number from 1 to {most}"
            )),
        },
    }
}

fn cores() -> u32 {
    std::thread::available_parallelism()
        .ok()
        .and_then(|cores| u32::try_from(cores.get()).ok())
        .unwrap_or(1)
}

fn log_filter(text: &str) -> Result<String, String> {
    crate::telemetry::check_filter(text).map(|()| text.to_owned())
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(format!("\"{other}\" is neither text nor json")),
    }
}
