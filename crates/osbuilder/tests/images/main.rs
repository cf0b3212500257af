//! `kata-osbuilder` as a program: roots of packages from repositories that the tests make, refusals, a full disk, interrupts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod alpine;
mod debian;
mod failures;
mod lab;
mod rpm;
