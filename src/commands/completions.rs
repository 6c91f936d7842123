//! `tailwater completions SHELL` and `tailwater man DIRECTORY` write the files that a package
//! installs beside the binary. Both are generated from the definition of the command line.

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use super::{complain, print};

/// Options of `completions`.
#[derive(Debug, Args)]
pub struct Options {
    /// Shell to print the script for
    shell: Shell,
}

/// Options of `man`.
#[derive(Debug, Args)]
pub struct ManOptions {
    /// Existing directory for the pages, one per command
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Prints the completion script for a shell. Returns whether it could be written.
pub fn run(mut command: Command, options: &Options) -> bool {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut command, "tailwater", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes the manual pages. Returns whether they could be written.
pub fn man(command: Command, options: &ManOptions) -> bool {
    let directory: &Path = &options.directory;
    match clap_mangen::generate_to(command, directory) {
        Ok(()) => true,
        Err(problem) => {
            let directory = directory.display();
            complain(&format!("error: cannot write pages to {directory}: {problem}\n"));
            false
        }
    }
}
