//! Counting what test programs say they ran.

/// How many tests passed and failed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub passed: u32,
    pub failed: u32,
}

/// Reads the output of a test program as it comes.
#[derive(Debug, Default)]
pub struct Reader {
    line: Vec<u8>,
    tally: Tally,
}

impl Reader {
    pub fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.count();
                self.line.clear();
            } else if self.line.len() < 1024 {
                self.line.push(*byte);
            }
        }
    }

    fn count(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        let Some(result) = line.trim_end().strip_prefix("test result: ") else { return };
        let number = |of: &str| {
            let words: Vec<&str> = result.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
            let at = words.iter().position(|word| *word == of)?;
            words.get(at.checked_sub(1)?)?.parse::<u32>().ok()
        };
        self.tally.passed += number("passed").unwrap_or(0);
        self.tally.failed += number("failed").unwrap_or(0);
    }

    /// What it comes to, given the program's exit status: one that fails without a failed test counts as one.
    pub fn end(mut self, status: i32) -> Tally {
        self.count();
        if status != 0 && self.tally.failed == 0 {
            self.tally.failed = 1;
        }
        self.tally
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted_and_a_program_that_dies_is_a_failure() {
        let count = |text: &str, status| {
            let mut reader = Reader::default();
            text.as_bytes().chunks(7).for_each(|bytes| reader.feed(bytes));
            let Tally { passed, failed } = reader.end(status);
            (passed, failed)
        };
        let good = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 1.2s\n\n";
        assert_eq!(count(good, 0), (3, 0));
        assert_eq!(count(&good.replace("0 failed", "2 failed"), 101), (3, 2));
        assert_eq!(count("thread 'main' panicked", 101), (0, 1));
        assert_eq!(count("test result: FAILED. 1 passed; 4 failed; 0 ignored", 101), (1, 4));
    }
}
