//! One module per command, or per few that are alike.

pub(crate) mod create;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod features;
pub(crate) mod kill;
pub(crate) mod lifecycle;
pub(crate) mod ps;
pub(crate) mod spec;
pub(crate) mod state;
pub(crate) mod update;
pub(crate) mod version;
