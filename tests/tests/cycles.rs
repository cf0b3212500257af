//! Over and over: nothing may be left, and nothing may grow.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use e2e::{Bundle, Runtime, Snapshot};

#[test]
fn two_hundred_cycles_leave_everything_as_it_was() {
    let cycles = std::env::var("KATA_CYCLES").map_or(200, |n| n.parse().unwrap());
    let bundle = Bundle::new(["sleep", "1000"]);
    let runtime = Runtime::kata();
    // No other test runs beside this one, so every process of ours counts, whatever it is called.
    let snapshot = || ["kata-", "qemu-system"].map(|name| Snapshot::take(name, &runtime.root()));
    let cycle = |id: &str| {
        runtime.ok(["create", "--bundle", bundle.arg(), id]);
        runtime.ok(["start", id]);
        runtime.ok(["delete", "--force", id]);
    };
    cycle("first");
    let before = snapshot();
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let cycle = &cycle;
            scope.spawn(move || (0..cycles / 2).for_each(|n| cycle(&format!("cycle-{worker}-{n}"))));
        }
    });
    assert_eq!(snapshot(), before);
}
