//! The kernel's own names for addresses, from System.map.

use std::{ops::Range, path::Path};

/// Where the x86_64 kernel's text is in its address space when its physical address is 0 (`__START_KERNEL_map`).
pub const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// Functions by address.
#[derive(Debug)]
pub struct Symbols {
    sorted: Vec<(u64, String)>,
    /// All of the kernel's code.
    text: Range<u64>,
    /// The part that is used once.
    init: Range<u64>,
}

impl Symbols {
    /// Reads System.map.
    ///
    /// # Errors
    /// It cannot be read or is none.
    pub fn load(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("read {}: {e}", path.display()))?;
        Self::parse(&text).map_err(|missing| {
            format!("{} is not a System.map of a kernel for x86_64: it has no {missing}", path.display())
        })
    }

    /// The error is the name that is missing.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let symbol = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let kind = words.next()?;
            // Text, or an absolute address that the linker script gave a name.
            matches!(kind, "t" | "T" | "A" | "w" | "W").then_some(())?;
            Some((address, words.next()?.to_owned()))
        };
        let mut sorted: Vec<_> = text.lines().filter_map(symbol).collect();
        // Of several names of one address the first of the file counts, as in the kernel's own traces.
        sorted.sort_by_key(|(address, _)| *address);
        let of = |name: &'static str| {
            sorted.iter().find(|(_, other)| other == name).map(|(address, _)| *address).ok_or(name)
        };
        let (text, init) = (of("_text")?..of("_einittext")?, of("_sinittext")?..of("_einittext")?);
        Ok(Self { sorted, text, init })
    }

    /// The address of a name.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.sorted.iter().find(|(_, other)| other == name).map(|(address, _)| *address)
    }

    /// The function an address belongs to. Before the kernel has its page tables, it runs at its physical addresses.
    pub fn name(&self, address: u64) -> Option<&str> {
        let virt = if address < KERNEL_MAP { address.checked_add(KERNEL_MAP)? } else { address };
        if !self.text.contains(&virt) {
            return None;
        }
        let index = self.sorted.partition_point(|(at, _)| *at <= virt).checked_sub(1)?;
        let at = self.sorted[index].0;
        let first = self.sorted.partition_point(|(other, _)| *other < at);
        Some(&self.sorted[first].1)
    }

    /// Functions that run once, while the kernel starts: address and name.
    pub fn init_functions(&self) -> impl Iterator<Item = (u64, &str)> {
        self.sorted.iter().filter(|(at, _)| self.init.contains(at)).map(|(at, name)| (*at, name.as_str()))
    }

    /// Whether these are the names of this kernel, told by where it is entered, which differs between builds.
    ///
    /// # Errors
    /// They are not.
    pub fn check_kernel(&self, kernel: &Path) -> Result<(), String> {
        let bytes = std::fs::read(kernel).map_err(|e| format!("read {}: {e}", kernel.display()))?;
        let expected = self.address("pvh_start_xen").map(|at| at.wrapping_sub(KERNEL_MAP));
        if expected.is_some() && expected == pvh_entry(&bytes) {
            Ok(())
        } else {
            Err(format!("{} is not the kernel these symbols belong to", kernel.display()))
        }
    }
}

/// The physical address in the note that announces PVH: owner `Xen`, type 18, an address of 8 bytes.
fn pvh_entry(elf: &[u8]) -> Option<u64> {
    const NOTE: &[u8] = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
    let at = elf.windows(NOTE.len()).position(|window| window == NOTE)? + NOTE.len();
    Some(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81000100 t first
ffffffff81000100 t alias
ffffffff81000180 d data
ffffffff81000200 T second
ffffffff81000300 T _sinittext
ffffffff81000310 t setup
ffffffff81000400 T _einittext
";

    #[test]
    fn an_address_has_the_name_of_the_function_before_it() {
        let symbols = Symbols::parse(MAP).unwrap();
        assert_eq!(symbols.name(0xffff_ffff_8100_01ff), Some("first"));
        assert_eq!(symbols.name(0xffff_ffff_8100_0200), Some("second"));
        // Where it runs before there are page tables.
        assert_eq!(symbols.name(0x0100_0208), Some("second"));
        for outside in [0, 0x40_0000, 0xf_fff0, 0xffff_ffff_8100_0400, 0xffff_ffff_c000_0000] {
            assert_eq!(symbols.name(outside), None, "{outside:x}");
        }
        assert_eq!(symbols.init_functions().map(|(_, name)| name).collect::<Vec<_>>(), ["_sinittext", "setup"]);
        assert_eq!(Symbols::parse("ffffffff81000000 T _text\n").unwrap_err(), "_einittext");
    }

    #[test]
    fn the_note_of_pvh_is_found() {
        let mut elf = b"\x7fELF and more \x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0".to_vec();
        assert_eq!(pvh_entry(&elf), None);
        elf.extend(0x0100_0310u64.to_le_bytes());
        assert_eq!(pvh_entry(&elf), Some(0x0100_0310));
    }
}
