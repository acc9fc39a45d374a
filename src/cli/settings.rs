//! Every setting as a flag, made from the one table of settings.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::{Config, Effective, Environment, Kind, SETTINGS, Setting, Sources};
#[cfg(debug_assertions)]
use crate::crash;
use crate::error::{Context, ErrorKind, Result};

/// Adds a flag for every setting but the secrets, which would be seen in the list of processes.
pub fn add_to(command: Command) -> Command {
    command.args(SETTINGS.iter().filter_map(argument))
}

fn argument(setting: &'static Setting) -> Option<Arg> {
    let argument = Arg::new(setting.key)
        .long(setting.flag()?)
        .help(setting.documentation())
        .help_heading("Settings")
        .hide_short_help(true)
        .global(true)
        .value_name(setting.placeholder);
    Some(match setting.kind {
        Kind::Switch => argument.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Kind::List => argument.action(ArgAction::Append),
        Kind::Value | Kind::Secret => argument,
    })
}

/// Loads the configuration with the flags of `matches` on top.
pub fn load(file: Option<PathBuf>, matches: &ArgMatches) -> Result<(Config, Effective)> {
    let current_directory =
        std::env::current_dir().context(ErrorKind::Config, || "find the current directory".to_owned())?;
    let environment = Environment::of_process()?;
    #[cfg(debug_assertions)]
    crash::arm(environment.get(crash::AT_VARIABLE), environment.get(crash::LOG_VARIABLE))?;
    let sources = Sources { file, environment, flags: flags(matches), current_directory };
    Config::load(&sources)
}

fn flags(matches: &ArgMatches) -> BTreeMap<String, String> {
    // Global flags may stand before or after the verb; clap copies them down to it.
    let innermost = matches.subcommand().map_or(matches, |(_, inner)| inner);
    SETTINGS
        .iter()
        .filter(|setting| setting.flag().is_some())
        .filter(|setting| innermost.value_source(setting.key) == Some(ValueSource::CommandLine))
        .filter_map(|setting| {
            let values: Vec<String> = innermost.get_many::<String>(setting.key)?.cloned().collect();
            Some((setting.key.to_owned(), values.join(",")))
        })
        .collect()
}
