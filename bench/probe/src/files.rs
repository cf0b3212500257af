//! Files of a directory that the caller has filled: `in-ACCESS-BLOCK` to be read, `over-BLOCK` to be written over, `small/NUMBER` to be
//! asked for. Each file is used by one measurement only, so none finds what another has left in a cache.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::Path,
    time::Instant,
};

use crate::tell;

/// Sizes of a read or write, and their names.
const BLOCKS: [(&str, usize); 2] = [("4 KiB", 4 << 10), ("1 MiB", 1 << 20)];
/// Content of a small file.
const SMALL: [u8; 1024] = [b's'; 1024];

/// Measures all of it.
pub fn measure(directory: &Path) -> io::Result<()> {
    for (name, size) in BLOCKS {
        let mut block = vec![b'b'; size];
        let file = |kind: &str| directory.join(format!("{kind}-{size}"));

        let mut from = File::open(file("in-sequential")).map_err(|e| named(e, &file("in-sequential")))?;
        let begun = Instant::now();
        let mut bytes = 0;
        loop {
            match from.read(&mut block)? {
                0 => break,
                read => bytes += read,
            }
        }
        tell(&format!("sequential read, {name}"), begun.elapsed(), (bytes / size) as u64);

        let length = from.metadata()?.len();
        let mut to = File::create(file("out"))?;
        let begun = Instant::now();
        for _ in 0..length / size as u64 {
            to.write_all(&block)?;
        }
        // What is still in the guest has not been written.
        to.sync_data()?;
        tell(&format!("sequential write, {name}"), begun.elapsed(), length / size as u64);

        let from = File::open(file("in-random")).map_err(|e| named(e, &file("in-random")))?;
        let order = shuffled(length / size as u64);
        let begun = Instant::now();
        for number in &order {
            from.read_exact_at(&mut block, number * size as u64)?;
        }
        tell(&format!("random read, {name}"), begun.elapsed(), order.len() as u64);

        let to = fs::OpenOptions::new().write(true).open(file("over")).map_err(|e| named(e, &file("over")))?;
        let begun = Instant::now();
        for number in &order {
            to.write_all_at(&block, number * size as u64)?;
        }
        to.sync_data()?;
        tell(&format!("random write, {name}"), begun.elapsed(), order.len() as u64);
    }

    let small = directory.join("small");
    let count = fs::read_dir(&small).map_err(|e| named(e, &small))?.count() as u64;
    let begun = Instant::now();
    for number in 0..count {
        fs::metadata(small.join(number.to_string()))?;
    }
    tell("stat of a file", begun.elapsed(), count);

    let made = directory.join("made");
    fs::create_dir(&made)?;
    let begun = Instant::now();
    for number in 0..count {
        fs::write(made.join(number.to_string()), SMALL)?;
    }
    tell("create, write 1 KiB, close", begun.elapsed(), count);
    let begun = Instant::now();
    for number in 0..count {
        fs::remove_file(made.join(number.to_string()))?;
    }
    tell("unlink", begun.elapsed(), count);
    Ok(())
}

fn named(problem: io::Error, path: &Path) -> io::Error {
    io::Error::new(problem.kind(), format!("{}: {problem}", path.display()))
}

/// The numbers below `count`, each once, always in the same disorder.
fn shuffled(count: u64) -> Vec<u64> {
    let mut numbers: Vec<u64> = (0..count).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..numbers.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        numbers.swap(last, (state % (last as u64 + 1)) as usize);
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_comes_once_and_hardly_any_where_it_was() {
        let mut order = shuffled(1000);
        assert!(order.windows(2).filter(|pair| pair[1] == pair[0] + 1).count() < 10);
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_directory_is_measured_and_a_missing_file_is_named() {
        let directory = std::env::temp_dir().join(format!("kata-probe-{}", std::process::id()));
        fs::create_dir_all(directory.join("small")).unwrap();
        fs::write(directory.join("small/0"), "").unwrap();
        let problem = measure(&directory).unwrap_err().to_string();
        assert!(problem.contains("in-sequential-4096"), "{problem}");
        for (_, size) in BLOCKS {
            for kind in ["in-sequential", "in-random", "over"] {
                fs::write(directory.join(format!("{kind}-{size}")), vec![0; 2 << 20]).unwrap();
            }
        }
        measure(&directory).unwrap();
        fs::remove_dir_all(directory).unwrap();
    }
}
