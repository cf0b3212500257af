//! The stages of the guest's start, for the host's timeline.

use agent_api::Stage;

/// Stages that are over, in order.
#[derive(Debug, Default)]
pub struct Stages(Vec<Stage>);

impl Stages {
    /// Notes that something has just been finished.
    pub fn done(&mut self, name: &str) {
        self.0.push(Stage { name: name.to_owned(), at_ns: super::now_ns() });
    }

    /// All of them.
    pub fn list(&self) -> &[Stage] {
        &self.0
    }
}
