//! One manual page: what clap knows of a command, and the text it does not know.

use std::path::PathBuf;

use clap::Command;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

use crate::{
    Error,
    text::{Block, Extra, Section},
};

/// The pages of a program and of each of its commands, by file name.
pub fn pages(mut program: Command, section: &str, extras: &[Extra]) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
    let usage = format!("{} [OPTIONS] COMMAND [ARGUMENT]...", program.get_name());
    program = program.disable_help_subcommand(true).override_usage(usage);
    // Gives each command its full name.
    program.build();
    let name = program.get_name().to_owned();
    let known = |extra: &&Extra| !extra.command.is_empty() && program.find_subcommand(extra.command).is_none();
    if let Some(extra) = extras.iter().find(known) {
        return Err(Error::NoCommand(extra.command.into()));
    }
    let text = |command: &str| extras.iter().find(|extra| extra.command == command).map_or(&[][..], |e| e.sections);
    let mut pages = vec![page(&program, &name, section, text(""), None)];
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        let full = format!("{name}-{}", command.get_name());
        pages.push(page(command, &full, section, text(command.get_name()), Some(&name)));
    }
    pages.into_iter().map(|(file, text)| Ok((file, text?))).collect()
}

type Page = (PathBuf, Result<Vec<u8>, Error>);

fn page(command: &Command, name: &str, section: &str, extra: &[Section], parent: Option<&str>) -> Page {
    let file = PathBuf::from(format!("{name}.{section}"));
    let text = render(command, name, section, extra, parent);
    let path = file.clone();
    (file, text.map_err(|source| Error::Write { path, source }))
}

fn render(
    command: &Command,
    name: &str,
    section: &str,
    extra: &[Section],
    parent: Option<&str>,
) -> std::io::Result<Vec<u8>> {
    let source = concat!("kata-containers ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).title(name.to_uppercase()).section(section).source(source);
    let man = man.manual("Kata Containers");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    let (about, others) = match extra {
        [first, rest @ ..] if first.title == "DESCRIPTION" => (Some(first), rest),
        all => (None, all),
    };
    match about {
        Some(about) => paragraphs(about, &mut text)?,
        None => man.render_description_section(&mut text)?,
    }
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut text)?;
    }
    if command.get_subcommands().any(|command| !command.is_hide_set()) {
        man.render_subcommands_section(&mut text)?;
    }
    for section in others {
        paragraphs(section, &mut text)?;
    }
    let mut see = Roff::new();
    if let Some(parent) = parent {
        see.control("SH", ["SEE ALSO"]);
        see.text([bold(parent), roman(format!("({section})"))]);
    }
    see.to_writer(&mut text)?;
    Ok(without_repetition(&text))
}

/// Each part of the page begins with the same two lines, which say how an apostrophe is set. Once is enough.
fn without_repetition(text: &[u8]) -> Vec<u8> {
    let mut preamble = Vec::new();
    let mut page = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let sets_apostrophes = line.starts_with(b".ie ") || line.starts_with(b".el ");
        if sets_apostrophes && preamble.contains(&line) {
            continue;
        }
        if sets_apostrophes {
            preamble.push(line);
        }
        page.extend_from_slice(line);
    }
    page
}

fn paragraphs(section: &Section, text: &mut Vec<u8>) -> std::io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", [section.title]);
    for block in section.blocks {
        match block {
            Block::Text(words) => {
                roff.control("PP", []);
                roff.text([roman(*words)]);
            }
            Block::Item(term, words) => {
                roff.control("TP", []);
                roff.text([bold(*term)]);
                roff.text([roman(*words)]);
            }
            Block::Code(lines) => {
                roff.control("PP", []);
                roff.control("RS", ["4"]);
                roff.control("nf", []);
                for line in lines.lines() {
                    roff.text([roman(line)]);
                }
                roff.control("fi", []);
                roff.control("RE", []);
            }
        }
    }
    roff.to_writer(text)
}
