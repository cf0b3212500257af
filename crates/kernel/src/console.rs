//! What this program says while it works: lines as the project's scripts print them, on standard error.

use std::io::{self, Write};

/// Says what is being done.
pub(crate) fn say(text: &str) {
    line(&format!("==> {text}"));
}

/// Says what should be known before the result is trusted.
pub(crate) fn warn(text: &str) {
    line(&format!("warning: {text}"));
}

fn line(text: &str) {
    // A terminal that is gone is no reason to stop a build.
    let _gone = writeln!(io::stderr(), "{text}");
}
