//! Why an option did not get the value it should have: what the kernel's Kconfig files say of it.
//!
//! This reads the part of the language that explains most losses: where an option is defined, whether it has a prompt, what
//! it depends on by itself or by the menus and conditions around it, and what selects it. It never decides anything: the
//! kernel's own configuration does.

use std::{collections::HashMap, fs, path::Path};

use crate::{dotconfig::DotConfig, expression};

/// One definition of an option; there may be several, each with its own conditions.
#[derive(Debug, Default)]
struct Definition {
    prompt: bool,
    in_choice: bool,
    depends: Vec<String>,
}

/// What the Kconfig files of a source tree define.
#[derive(Debug, Default)]
pub(crate) struct Kconfig {
    definitions: HashMap<String, Vec<Definition>>,
    /// By option, what selects it, with the condition.
    selected_by: HashMap<String, Vec<(String, Option<String>)>>,
}

/// A block that ends with an `end…` line.
#[derive(Debug)]
struct Block {
    choice: bool,
    depends: Vec<String>,
}

/// What a line such as `depends on` belongs to.
#[derive(Debug)]
enum Entry {
    Option(String),
    Block,
    Other,
}

impl Kconfig {
    /// Reads the tree's `Kconfig` and all it names, as for the architecture whose folder below `arch/` is `folder`. What
    /// cannot be read is left out: this only explains.
    pub(crate) fn of_tree(tree: &Path, folder: &str) -> Kconfig {
        let mut kconfig = Kconfig::default();
        let mut reader = Reader { tree, folder, kconfig: &mut kconfig, blocks: Vec::new(), depth: 0 };
        reader.file("Kconfig");
        kconfig
    }

    /// The likely reason that `option` has another value than `wanted` in `actual`, if there is one to tell.
    pub(crate) fn why_not(&self, option: &str, wanted: &str, actual: &DotConfig) -> Option<String> {
        let Some(definitions) = self.definitions.get(option) else {
            return Some("this kernel has no such option: it may have another name".into());
        };
        let selected: Vec<&str> = self.selected_by.get(option).map_or(Vec::new(), |list| {
            let active = list.iter().filter(|(by, condition)| {
                actual.is_on(by) && condition.as_ref().is_none_or(|text| expression::holds(text, actual) != Some(false))
            });
            active.map(|(by, _)| by.as_str()).collect()
        });
        if wanted == "n" {
            return (!selected.is_empty()).then(|| format!("it is selected by {}", selected.join(", ")));
        }
        let unmet = |definition: &Definition| -> Vec<String> {
            let failing = definition.depends.iter().filter(|text| expression::holds(text, actual) == Some(false));
            failing.map(|text| if text.contains("||") { format!("({text})") } else { text.clone() }).collect()
        };
        if let Some(open) = definitions.iter().find(|definition| unmet(definition).is_empty()) {
            return if !open.prompt {
                Some("it has no prompt: it is on only when something selects it".into())
            } else if open.in_choice {
                Some("another option of the same choice is on".into())
            } else {
                None
            };
        }
        let reasons: Vec<String> = definitions
            .iter()
            .map(|definition| {
                let unmet = unmet(definition);
                let values = expression::symbols(&unmet.join(" ")).into_iter();
                let values: Vec<String> = values.map(|symbol| format!("{symbol}={}", actual.value(&symbol))).collect();
                format!("it depends on {} ({})", unmet.join(" && "), values.join(", "))
            })
            .collect();
        Some(reasons.join("; or "))
    }
}

/// Files that name files that name files: deeper than this it is a circle.
const DEPTH: usize = 30;

struct Reader<'a> {
    tree: &'a Path,
    folder: &'a str,
    kconfig: &'a mut Kconfig,
    blocks: Vec<Block>,
    depth: usize,
}

impl Reader<'_> {
    fn file(&mut self, name: &str) {
        let Ok(text) = fs::read_to_string(self.tree.join(name)) else { return };
        if self.depth == DEPTH {
            return;
        }
        self.depth += 1;
        let text = text.replace("\\\n", " ");
        let mut entry = Entry::Other;
        // The indentation of a help text, once its first line was seen; lines of at least that are text.
        let mut help: Option<Option<usize>> = None;
        for line in text.lines() {
            let indentation = indentation(line);
            if let Some(of_text) = &mut help {
                if line.trim().is_empty() {
                    continue;
                }
                if indentation >= of_text.unwrap_or(1) {
                    of_text.get_or_insert(indentation);
                    continue;
                }
                help = None;
            }
            let line = without_comment(line).trim();
            if matches!(line, "help" | "---help---") {
                help = Some(None);
            } else {
                self.line(line, name, &mut entry);
            }
        }
        self.depth -= 1;
    }

    fn line(&mut self, line: &str, file: &str, entry: &mut Entry) {
        let (word, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        let rest = rest.trim();
        match word {
            "config" | "menuconfig" => {
                let depends = self.blocks.iter().flat_map(|block| block.depends.iter().cloned()).collect();
                let in_choice = self.blocks.iter().any(|block| block.choice);
                let definition = Definition { prompt: false, in_choice, depends };
                self.kconfig.definitions.entry(rest.into()).or_default().push(definition);
                *entry = Entry::Option(rest.into());
            }
            "menu" | "choice" | "if" => {
                let depends = if word == "if" { vec![rest.to_string()] } else { Vec::new() };
                self.blocks.push(Block { choice: word == "choice", depends });
                *entry = if word == "if" { Entry::Other } else { Entry::Block };
            }
            "endmenu" | "endchoice" | "endif" => {
                self.blocks.pop();
                *entry = Entry::Other;
            }
            "comment" | "mainmenu" => *entry = Entry::Other,
            "source" | "osource" | "rsource" | "orsource" => {
                *entry = Entry::Other;
                let name = rest.trim_matches('"').replace("$(SRCARCH)", self.folder);
                match file.rsplit_once('/') {
                    Some((directory, _)) if word.contains("rsource") => self.file(&format!("{directory}/{name}")),
                    _ => self.file(&name),
                }
            }
            "depends" => {
                let condition = spaced(rest.strip_prefix("on").unwrap_or(rest));
                match entry {
                    Entry::Option(_) => self.definition(entry, |definition| definition.depends.push(condition)),
                    Entry::Block => self
                        .blocks
                        .iter_mut()
                        .last()
                        .into_iter()
                        .for_each(|block| block.depends.push(condition.clone())),
                    Entry::Other => {}
                }
            }
            "prompt" => self.definition(entry, |definition| definition.prompt = true),
            "bool" | "tristate" | "string" | "int" | "hex" if rest.starts_with(['"', '\'']) => {
                self.definition(entry, |definition| {
                    definition.prompt = true;
                    // `bool "text" if CONDITION`: without the condition there is no prompt.
                    if let Some((_, condition)) = rest.rsplit_once("\" if ") {
                        definition.depends.push(spaced(condition));
                    }
                });
            }
            "select" => {
                if let Entry::Option(by) = entry {
                    let (option, condition) = match rest.split_once(" if ") {
                        Some((option, condition)) => (option.trim(), Some(condition.trim().to_string())),
                        None => (rest, None),
                    };
                    self.kconfig.selected_by.entry(option.into()).or_default().push((by.clone(), condition));
                }
            }
            _ => {}
        }
    }

    fn definition(&mut self, entry: &Entry, change: impl FnOnce(&mut Definition)) {
        if let Entry::Option(name) = entry
            && let Some(definition) = self.kconfig.definitions.get_mut(name).and_then(|list| list.last_mut())
        {
            change(definition);
        }
    }
}

/// With single spaces, where an expression went over several lines.
fn spaced(expression: &str) -> String {
    expression.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Columns of white space in front; a tab reaches to the next multiple of eight.
fn indentation(line: &str) -> usize {
    let mut column = 0;
    for character in line.chars() {
        match character {
            ' ' => column += 1,
            '\t' => column = (column / 8 + 1) * 8,
            _ => break,
        }
    }
    column
}

/// The line up to a `#` that is not within quotes.
fn without_comment(line: &str) -> &str {
    let mut quoted = false;
    let end = line.find(|character| {
        quoted ^= character == '"';
        character == '#' && !quoted
    });
    end.map_or(line, |end| &line[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = r#"
mainmenu "Test"
source "net/Kconfig"
source "arch/$(SRCARCH)/Kconfig"
config SELECTED
	bool
config SELECTS
	bool "selects" # a comment
	select SELECTED if NET
	help
	  config NOT_ME
	    bool "this is a text"

	  depends on NOTHING
config LAST
	tristate "last" if EXPERT
	depends on NET && \
		!SELECTS
choice
	prompt "one of"
	depends on NET
config ONE
	bool "one"
config TWO
	bool "two"
endchoice
"#;

    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            fs::create_dir_all(tree.path().join(name).parent().unwrap()).unwrap();
            fs::write(tree.path().join(name), text).unwrap();
        };
        write("Kconfig", ROOT);
        write(
            "net/Kconfig",
            "menuconfig NET\n\tbool \"net\"\nif NET\nmenu \"x\"\n\tdepends on INET\nconfig IN\n\tbool \"in\"\nendmenu\nendif\n",
        );
        write("arch/x86/Kconfig", "config X\n\tbool \"x\"\n\tdepends on A\nconfig X\n\tbool \"x\"\n\tdepends on B=4\n");
        tree
    }

    #[test]
    fn the_reason_is_found() {
        let tree = tree();
        let kconfig = Kconfig::of_tree(tree.path(), "x86");
        let why = |option: &str, wanted: &str, config: &str| kconfig.why_not(option, wanted, &DotConfig::parse(config));
        let some = |text: &str| Some(text.to_string());
        assert_eq!(why("NOT_ME", "y", ""), some("this kernel has no such option: it may have another name"));
        assert_eq!(why("IN", "y", ""), some("it depends on NET && INET (NET=n, INET=n)"));
        assert_eq!(why("IN", "y", "CONFIG_NET=y"), some("it depends on INET (INET=n)"));
        assert_eq!(why("X", "y", ""), some("it depends on A (A=n); or it depends on B=4 (B=n)"));
        assert_eq!(why("SELECTED", "y", ""), some("it has no prompt: it is on only when something selects it"));
        assert_eq!(why("SELECTED", "n", "CONFIG_SELECTS=y\nCONFIG_NET=y"), some("it is selected by SELECTS"));
        assert_eq!(why("SELECTED", "n", "CONFIG_SELECTS=y"), None);
        let last = some("it depends on EXPERT && NET && !SELECTS (EXPERT=n, NET=y, SELECTS=y)");
        assert_eq!(why("LAST", "y", "CONFIG_NET=y\nCONFIG_SELECTS=y"), last);
        assert_eq!(why("ONE", "y", "CONFIG_NET=y\nCONFIG_TWO=y"), some("another option of the same choice is on"));
        assert_eq!(why("ONE", "y", ""), some("it depends on NET (NET=n)"));
        assert_eq!(why("NET", "y", ""), None);
    }

    #[test]
    fn a_circle_of_files_ends() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("Kconfig"), "source \"Kconfig\"\nconfig A\n\tbool \"a\"\n").unwrap();
        assert_eq!(Kconfig::of_tree(tree.path(), "x86").why_not("A", "y", &DotConfig::parse("")), None);
    }
}
