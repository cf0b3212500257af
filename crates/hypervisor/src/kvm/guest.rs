//! The guest of the KVM probe: a few instructions in long mode, among them those that half-working hosts get wrong.
//!
//! On a host that only emulates guests (nested without hardware support), KVM opens and simple code runs, but a real kernel dies at the first
//! instruction that KVM's emulator does not know: `cmpxchg16b`, or anything with a VEX prefix. So the guest uses both.

use crate::sys::kvm::{Regs, Segment, Sregs};

/// Guest memory, from address 0, bytes.
pub(crate) const MEMORY_SIZE: usize = 0x10000;
/// The I/O port the guest leaves by.
pub(crate) const PORT: u16 = 0x10;
/// What it writes there: the second lowest byte of [`NEW`]'s lower half.
pub(crate) const ANSWER: u8 = 0x77;

const TABLES: usize = 0x1000;
const CODE: usize = 0x4000;
const DATA: usize = 0x5000;
const OLD: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
const NEW: [u64; 2] = [0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00];

/// `lock cmpxchg16b [rsi]; jne fail`
const EXCHANGE: &[u8] = b"\xf0\x48\x0f\xc7\x0e\x75\x12";
/// `rorx rax, rbx, 8`, of BMI2; one byte of padding
const ROTATE_BMI2: &[u8] = b"\xc4\xe3\xfb\xf0\xc3\x08\x90";
/// `mov rax, rbx; ror rax, 8`
const ROTATE: &[u8] = b"\x48\x89\xd8\x48\xc1\xc8\x08";
/// `mov ecx, 1000; again: dec ecx; jnz again`, `out PORT, al`, which leaves; `fail: hlt`, which leaves otherwise.
const LEAVE: &[u8] = b"\xb9\xe8\x03\x00\x00\xff\xc9\x75\xfc\xe6\x10\xf4";

/// Writes page tables, code and data. `memory` is zero and [`MEMORY_SIZE`] long.
pub(crate) fn load(memory: &mut [u8]) {
    // One page of 2 MiB at address 0, present and writable, at the end of three tables.
    for (level, entry) in [0x2003_u64, 0x3003, 0x83].into_iter().enumerate() {
        put(memory, TABLES + level * 0x1000, &entry.to_le_bytes());
    }
    put(memory, CODE, EXCHANGE);
    put(memory, CODE + EXCHANGE.len(), if std::arch::is_x86_feature_detected!("bmi2") { ROTATE_BMI2 } else { ROTATE });
    put(memory, CODE + EXCHANGE.len() + ROTATE.len(), LEAVE);
    put(memory, DATA, &OLD[0].to_le_bytes());
    put(memory, DATA + 8, &OLD[1].to_le_bytes());
}

fn put(memory: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in memory.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// The general registers the guest starts with.
pub(crate) fn registers() -> Regs {
    Regs {
        rax: OLD[0],
        rdx: OLD[1],
        rbx: NEW[0],
        rcx: NEW[1],
        rsi: DATA as u64,
        rip: CODE as u64,
        rflags: 2,
        ..Regs::default()
    }
}

/// Turns a processor after reset into one in 64-bit mode with paging.
pub(crate) fn enter_long_mode(sregs: &mut Sregs) {
    const PE_ET_NE_PG: u64 = 1 | 1 << 4 | 1 << 5 | 1 << 31;
    const PAE: u64 = 1 << 5;
    const LME_LMA: u64 = 1 << 8 | 1 << 10;
    let code = Segment { limit: u32::MAX, selector: 8, kind: 11, present: 1, s: 1, l: 1, g: 1, ..Segment::default() };
    sregs.cs = code;
    sregs.data = [Segment { selector: 16, kind: 3, l: 0, db: 1, ..code }; 5];
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (PE_ET_NE_PG, TABLES as u64, PAE, LME_LMA);
}

/// Whether the guest left its new value in memory.
pub(crate) fn did_its_work(memory: &[u8]) -> bool {
    let expected = NEW.iter().flat_map(|half| half.to_le_bytes());
    memory.iter().skip(DATA).take(16).copied().eq(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_land_where_they_should() {
        assert_eq!(ROTATE.len(), ROTATE_BMI2.len());
        let code = [EXCHANGE, ROTATE, LEAVE].concat();
        let after_jump = EXCHANGE.len();
        assert_eq!(code[after_jump + usize::from(EXCHANGE[6])], 0xf4, "jne leads to hlt");
        assert_eq!(u64::from(ANSWER), NEW[0] >> 8 & 0xff);
    }

    #[test]
    fn memory_is_laid_out_for_the_registers() {
        let mut memory = vec![0; MEMORY_SIZE];
        load(&mut memory);
        assert!(!did_its_work(&memory));
        assert_eq!(memory[CODE..CODE + 5], EXCHANGE[..5]);
        put(&mut memory, DATA, &NEW[0].to_le_bytes());
        put(&mut memory, DATA + 8, &NEW[1].to_le_bytes());
        assert!(did_its_work(&memory));
    }
}
