//! What the plugin wrote.

use std::path::Path;

/// One instruction of the guest's code.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Where it is in the guest's address space.
    pub address: u64,
    /// Instructions executed before it was for the first time.
    pub first: u64,
    /// How often it was executed.
    pub count: u64,
}

/// All of them.
#[derive(Debug)]
pub struct Counts {
    /// Instructions executed in all.
    pub total: u64,
    /// By address.
    pub places: Vec<Place>,
}

impl Counts {
    /// Reads the plugin's file.
    ///
    /// # Errors
    /// It cannot be read, or is not such a file.
    pub fn load(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("read {}: {e}", path.display()))?;
        Self::parse(&text).ok_or_else(|| format!("{} is not what the plugin writes", path.display()))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let total = lines.next()?.strip_prefix("total ")?.parse().ok()?;
        let place = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            Some(Place { address, first: words.next()?.parse().ok()?, count: words.next()?.parse().ok()? })
        };
        let mut places = lines.map(place).collect::<Option<Vec<_>>>()?;
        // Translated, but never executed.
        places.retain(|place| place.count > 0);
        places.sort_by_key(|place| place.address);
        Some(Self { total, places })
    }

    /// When the instruction at an address was executed first.
    pub fn first(&self, address: u64) -> Option<u64> {
        let index = self.places.binary_search_by_key(&address, |place| place.address).ok()?;
        Some(self.places[index].first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugins_file_is_read() {
        let counts = Counts::parse("total 12\nffffffff81000010 3 7\n1000 0 5\n2000 0 0\n").unwrap();
        assert_eq!((counts.total, counts.places.len()), (12, 2));
        assert_eq!((counts.first(0x1000), counts.first(0xffff_ffff_8100_0010)), (Some(0), Some(3)));
        assert_eq!(counts.first(0x2000), None);
        for bad in ["", "total x\n", "total 1\n1000 0\n", "1000 0 5\n"] {
            assert!(Counts::parse(bad).is_none(), "{bad}");
        }
    }
}
