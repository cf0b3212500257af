//! Which devices a container may use: the OCI specification's rules as an eBPF program of the container's cgroup.
//!
//! The rules are those of version 1 cgroups: everything is forbidden at first, and for each kind of access (read, write,
//! mknod) the last rule that matches the device counts. The program therefore tries the rules from the last to the first; an
//! allowing rule takes the kinds it allows out of the request, and access is granted when none is left; a
//! denying rule that meets one that is left ends it.

use agent_api::Fault;

use crate::fault::invalid;
use crate::spec::DeviceRule;

/// `BPF_DEVCG_ACC_*` (linux/bpf.h).
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// `BPF_DEVCG_DEV_*` (linux/bpf.h).
const BLOCK: u8 = 1;
const CHARACTER: u8 = 2;

/// One rule; `None` matches everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u8>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

const fn allowed(kind: u8, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
    Rule { allow: true, kind: Some(kind), major, minor, access }
}

/// What every container may do: make any node, and use null, zero, full, random, urandom, tty and pseudo terminals. A
/// program's access to these is as good as part of the system call interface.
const DEFAULTS: [Rule; 10] = [
    allowed(CHARACTER, None, None, MKNOD),
    allowed(BLOCK, None, None, MKNOD),
    allowed(CHARACTER, Some(1), Some(3), ALL),
    allowed(CHARACTER, Some(1), Some(5), ALL),
    allowed(CHARACTER, Some(1), Some(7), ALL),
    allowed(CHARACTER, Some(1), Some(8), ALL),
    allowed(CHARACTER, Some(1), Some(9), ALL),
    allowed(CHARACTER, Some(5), Some(0), ALL),
    allowed(CHARACTER, Some(5), Some(2), ALL),
    allowed(CHARACTER, Some(136), None, ALL),
];

impl Rule {
    fn new(spec: &DeviceRule) -> Result<Self, Fault> {
        let wrong = |what: &str| invalid(format!("linux.resources.devices has {spec:?}, {what}"));
        let kind = match spec.kind.as_deref().unwrap_or("a") {
            "a" | "" => None,
            "b" => Some(BLOCK),
            "c" | "u" => Some(CHARACTER),
            _ => return Err(wrong("expected the type a, b or c")),
        };
        // A negative number is the wildcard of some callers.
        let number = |number: Option<i64>| match number {
            None | Some(..0) => Ok(None),
            Some(number) => u32::try_from(number).map(Some).map_err(|_| wrong("expected 32-bit numbers")),
        };
        let mut access = 0;
        for letter in spec.access.as_deref().unwrap_or("").chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                // Some write it for "all", which it is in another field. No rule is the wider or narrower for it.
                'a' => 0,
                _ => return Err(wrong("expected an access made of r, w and m")),
            };
        }
        // "a" means all, whatever else is said.
        let access = if access == 0 || kind.is_none() { ALL } else { access };
        Ok(Self { allow: spec.allow, kind, major: number(spec.major)?, minor: number(spec.minor)?, access })
    }

    /// Whether it decides every request by itself.
    fn is_final(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }
}

/// The program for a specification's rules, as `struct bpf_insn`s.
///
/// # Errors
/// For rules that make no sense.
pub fn program(rules: &[DeviceRule]) -> Result<Vec<u64>, Fault> {
    let rules: Vec<Rule> = rules.iter().map(Rule::new).collect::<Result<_, _>>()?;
    Ok(compile(rules.iter().chain(&DEFAULTS).rev()))
}

const R0: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// Operation codes (linux/bpf.h): class, operation, source.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_UNLESS_EQUAL_32: u8 = 0x56;
const JUMP_IF_EQUAL_32: u8 = 0x16;
const EXIT: u8 = 0x95;

/// A `struct bpf_insn`: code, a byte with both registers, offset, value, in the processor's own byte order. The registers are bit
/// fields, the first of which is at the end of the byte where memory begins.
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: u32) -> u64 {
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    let ([o0, o1], [v0, v1, v2, v3]) = (offset.to_ne_bytes(), value.to_ne_bytes());
    u64::from_ne_bytes([code, registers, o0, o1, v0, v1, v2, v3])
}

/// Instructions that end the program with an answer.
fn answer(allow: bool) -> [u64; 2] {
    [instruction(MOVE, R0, 0, 0, allow.into()), instruction(EXIT, 0, 0, 0, 0)]
}

fn compile<'a>(rules: impl Iterator<Item = &'a Rule>) -> Vec<u64> {
    // struct bpf_cgroup_dev_ctx: access << 16 | kind, major, minor.
    let mut code = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules {
        if rule.is_final() {
            // The verifier refuses programs with instructions that cannot be reached.
            code.extend(answer(rule.allow));
            return code;
        }
        code.extend(rule.compile());
    }
    code.extend(answer(false));
    code
}

impl Rule {
    fn compile(&self) -> Vec<u64> {
        let decide = if self.allow {
            vec![
                instruction(AND, ACCESS, 0, 0, u32::from(ALL & !self.access)),
                instruction(JUMP_UNLESS_EQUAL_32, ACCESS, 0, 2, 0),
            ]
        } else {
            vec![
                instruction(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0),
                instruction(AND, SCRATCH, 0, 0, self.access.into()),
                instruction(JUMP_IF_EQUAL_32, SCRATCH, 0, 2, 0),
            ]
        };
        let tests = [(KIND, self.kind.map(u32::from)), (MAJOR, self.major), (MINOR, self.minor)];
        let tests: Vec<(u8, u32)> = tests.into_iter().filter_map(|(r, v)| v.map(|v| (r, v))).collect();
        let mut code = Vec::new();
        for (at, (register, value)) in tests.iter().enumerate() {
            // To behind this rule: the remaining tests, the decision and the answer.
            let skip = (tests.len() - at - 1 + decide.len() + 2) as i16;
            code.push(instruction(JUMP_UNLESS_EQUAL_32, *register, 0, skip, *value));
        }
        code.extend(decide);
        code.extend(answer(self.allow));
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with the program.
    fn run(code: &[u64], kind: u8, major: u32, minor: u32, access: u8) -> bool {
        let context = [u32::from(access) << 16 | u32::from(kind), major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0usize;
        loop {
            let [operation, both, o0, o1, v0, v1, v2, v3] = code[at].to_ne_bytes();
            let (low, high) = (usize::from(both & 15), usize::from(both >> 4));
            let (to, from) = if cfg!(target_endian = "little") { (low, high) } else { (high, low) };
            let (offset, value) = (u16::from_ne_bytes([o0, o1]), u32::from_ne_bytes([v0, v1, v2, v3]));
            at += 1;
            let mut jump = |yes: bool| at += if yes { usize::from(offset) } else { 0 };
            match operation {
                LOAD_WORD => registers[to] = context[usize::from(offset) / 4].into(),
                MOVE => registers[to] = value.into(),
                MOVE_REGISTER => registers[to] = registers[from],
                AND => registers[to] &= u64::from(value),
                SHIFT_RIGHT => registers[to] >>= value,
                JUMP_UNLESS_EQUAL_32 => jump(registers[to] as u32 != value),
                JUMP_IF_EQUAL_32 => jump(registers[to] as u32 == value),
                EXIT => return registers[0] != 0,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    fn compiled(json: &str) -> Vec<u64> {
        program(&serde_json::from_str::<Vec<DeviceRule>>(json).unwrap()).unwrap()
    }

    #[test]
    fn instructions_have_the_kernels_layout() {
        // From `llvm-objdump` of the same program written in assembler: r2 = *(u32 *)(r1 + 0), if w2 != 2 goto +6.
        let (load, jump) = if cfg!(target_endian = "little") {
            ([0x61, 0x12, 0, 0, 0, 0, 0, 0], [0x56, 0x02, 6, 0, 2, 0, 0, 0])
        } else {
            ([0x61, 0x21, 0, 0, 0, 0, 0, 0], [0x56, 0x20, 0, 6, 0, 0, 0, 2])
        };
        assert_eq!(instruction(LOAD_WORD, 2, 1, 0, 0).to_ne_bytes(), load);
        assert_eq!(instruction(JUMP_UNLESS_EQUAL_32, 2, 0, 6, 2).to_ne_bytes(), jump);
        assert_eq!(answer(true)[1].to_ne_bytes(), [0x95, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn without_rules_only_the_defaults_are_allowed() {
        let code = compiled(r#"[{"allow":false,"access":"rwm"}]"#);
        assert!(run(&code, CHARACTER, 1, 3, READ | WRITE));
        assert!(run(&code, CHARACTER, 136, 17, READ | WRITE));
        assert!(run(&code, BLOCK, 8, 0, MKNOD));
        assert!(!run(&code, BLOCK, 8, 0, READ));
        assert!(!run(&code, CHARACTER, 10, 229, READ));
        assert!(!run(&code, CHARACTER, 10, 229, READ | MKNOD), "one of two kinds is not enough");
        assert_eq!(run(&compiled("[]"), BLOCK, 8, 0, READ), run(&code, BLOCK, 8, 0, READ));
    }

    #[test]
    fn the_last_rule_that_matches_counts_for_each_kind_of_access() {
        let code = compiled(
            r#"[{"allow":false,"access":"rwm"},
                {"allow":true,"type":"b","major":8,"minor":0,"access":"rwm"},
                {"allow":false,"type":"b","major":8,"access":"w"},
                {"allow":true,"type":"c","major":10,"minor":229,"access":"r"},
                {"allow":true,"type":"c","major":10,"access":"w"}]"#,
        );
        assert!(run(&code, BLOCK, 8, 0, READ));
        assert!(!run(&code, BLOCK, 8, 0, READ | WRITE));
        assert!(run(&code, CHARACTER, 10, 229, READ | WRITE), "two rules allow a part each");
        assert!(!run(&code, CHARACTER, 10, 1, READ | WRITE));
    }

    #[test]
    fn a_rule_for_everything_is_the_end_of_the_program() {
        let code = compiled(r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"a","access":"rwm"}]"#);
        assert!(run(&code, BLOCK, 259, 5, ALL));
        assert_eq!(code[code.len() - 2..], answer(true));
    }

    #[test]
    fn the_kernel_accepts_what_is_compiled() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: loading a device filter needs root");
            return;
        }
        let rules = [
            r#"[]"#,
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"a","access":"rwm"}]"#,
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"b","major":8,"access":"r"},{"allow":false,"type":"c","major":1,"minor":3,"access":"w"}]"#,
        ];
        for rules in rules {
            crate::sys::load_device_filter(&compiled(rules)).unwrap();
        }
    }

    #[test]
    fn wrong_rules_are_named() {
        let rules: Vec<DeviceRule> =
            serde_json::from_str(r#"[{"allow":true,"type":"c","major":1,"access":"rx"}]"#).unwrap();
        assert_eq!(
            compiled(r#"[{"allow":false,"type":"c","access":"rwa"}]"#),
            compiled(r#"[{"allow":false,"type":"c","access":"rw"}]"#)
        );
        let message = program(&rules).unwrap_err().message;
        assert!(message.contains("\"rx\"") && message.contains("made of r, w and m"), "{message}");
    }
}
