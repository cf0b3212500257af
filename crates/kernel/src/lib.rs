//! Builds the guest's kernel: source and configuration fragments in, a kernel without modules out.
//!
//! # What is wanted
//!
//! Fragments name the options that are wanted, one per line, limited to versions and architectures where need be. Merged they
//! are laid over `allnoconfig`, so that what nobody asked for is off. The kernel's own configuration drops an option silently
//! when something it depends on is missing. Here that is an error that lists every option lost, the line that wanted it, and
//! what the kernel's Kconfig files say about it.
//!
//! # Steps
//!
//! 1. Everything that can be known without a side effect is checked: tools, fragments, the output's place, the source.
//! 2. The source is fetched and unpacked into the cache, once, under its checksum.
//! 3. If the output says it was made from just these inputs, that is all.
//! 4. make configures and compiles, in a directory of the cache that is kept, one build at a time.
//! 5. The output's files are made in a directory beside it, which takes its place in one step.
//!
//! # The same inputs give the same bytes
//!
//! make gets a fixed user, host and number of the build, and as its time that of the source. Paths do not matter: the
//! kernel's makefiles map that of the source away, and objects have relative names.
//!
//! # Being interrupted
//!
//! make and all it started is ended with this program, however that ends. Its objects stay: make goes on where it was. Only
//! where it was killed, and may have left half an object, they are removed.

mod arch;
mod build;
mod child;
mod console;
mod dotconfig;
mod error;
mod expression;
mod fetch;
mod files;
mod fragment;
mod interrupt;
mod kconfig;
mod lock;
mod make;
mod merge;
mod output;
mod pin;
mod progress;
mod source;
mod sys;
mod tools;
mod version;

pub use arch::Arch;
pub use build::{Built, Request, write_whole};
pub use dotconfig::Lost;
pub use error::Error;
pub use interrupt::{Interrupts, die_by};
pub use source::SourceChoice;
pub use tools::Missing;
