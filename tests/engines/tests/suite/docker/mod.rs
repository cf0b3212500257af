//! `docker`: one container, one virtual machine.

mod features;
mod life;
mod names;
mod network;
mod run;
mod shared;

use engines::{seen, wait_until};
