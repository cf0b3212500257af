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
    /// What each part of the kernel has called while it starts.
    initcalls: Vec<String>,
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
        let range = of("_text")?..of("_einittext")?;
        let initcalls = text.lines().filter_map(|line| line.rsplit(' ').next().and_then(initcall)).map(str::to_owned);
        Ok(Self { text: range, initcalls: initcalls.collect(), sorted })
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

    /// Functions that the kernel calls once each, by what it is made of, while it starts.
    pub fn initcalls(&self) -> impl Iterator<Item = &str> {
        self.initcalls.iter().map(String::as_str)
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

/// The function behind the entry `__initcall__kmod_MODULE__COUNTER_LINE_FUNCTIONLEVEL` of the table of calls.
fn initcall(symbol: &str) -> Option<&str> {
    let rest = symbol.strip_prefix("__initcall__kmod_")?;
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let function = rest.match_indices("__").find_map(|(at, _)| {
        let mut parts = rest[at + 2..].splitn(3, '_');
        (number(parts.next()?) && number(parts.next()?)).then(|| parts.next()).flatten()
    })?;
    let level = |c: char| c.is_ascii_digit();
    ["early", "rootfs", "con"]
        .iter()
        .find_map(|level| function.strip_suffix(level))
        .or_else(|| function.strip_suffix('s').unwrap_or(function).strip_suffix(level))
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
ffffffff81000500 d __initcall__kmod_part__123_45_setup6
";

    #[test]
    fn initcalls_are_told_by_their_table() {
        for (symbol, function) in [
            ("__initcall__kmod_acpi__326_1437_acpi_init4", Some("acpi_init")),
            ("__initcall__kmod_initramfs__274_768_populate_rootfsrootfs", Some("populate_rootfs")),
            ("__initcall__kmod_8250__301_712_univ8250_console_initcon", Some("univ8250_console_init")),
            ("__initcall__kmod_core__1_2_a__b7s", Some("a__b")),
            ("__initcall__kmod_main__1_2_trace_initcall_earlyearly", Some("trace_initcall_early")),
            ("__initcall_start", None),
            ("acpi_init", None),
        ] {
            assert_eq!(initcall(symbol), function, "{symbol}");
        }
    }

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
        assert_eq!(symbols.initcalls().collect::<Vec<_>>(), ["setup"]);
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
