//! What the host's programs accept on their command lines, as data, and nothing else.
//!
//! A crate of its own, so that the programs and the generator of their manual pages and shell completions (`manuals`)
//! share one definition, and the generator need not be linked with all that a runtime consists of.

pub mod runtime;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definitions_hold_together() {
        super::runtime::Cli::command().debug_assert();
    }
}
