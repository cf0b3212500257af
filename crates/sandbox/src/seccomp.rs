//! Compiling an OCI seccomp profile into the filter that the agent installs.
//!
//! libseccomp does it, here on the host, so that the guest needs neither the library nor its tables. It compiles for the guest's
//! architecture, which need not be the host's.

use std::io::{Read, Seek, SeekFrom};

use agent_api::SeccompFilter;
use hypervisor::Arch as Guest;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};

type Compiled<T> = Result<T, String>;

/// Most instructions the kernel accepts (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
/// `errno` of a filter that names none, as runc: EPERM.
const DEFAULT_ERRNO: u32 = 1;

/// Compiles; the error says what is wrong with which part of the profile.
///
/// # Errors
/// What the guest's kernel would not take.
pub fn compile(profile: &LinuxSeccomp, guest: Guest) -> Result<SeccompFilter, String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: libseccomp::error::SeccompError| format!("{what}: {e}")
    };
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context = ScmpFilterContext::new_filter(default).map_err(failed("defaultAction"))?;
    let family = family(guest);
    if !guest.is_host() {
        // A new filter is for the host.
        context
            .add_arch(family[0])
            .and_then(|_| context.remove_arch(ScmpArch::Native))
            .map_err(failed("architecture"))?;
    }
    for architecture in profile.architectures().iter().flatten() {
        // Profiles list every architecture there is, or those of the machine they were made on; one that the guest cannot
        // execute changes nothing.
        if let Some(architecture) = arch(*architecture).filter(|arch| family.contains(arch)) {
            context.add_arch(architecture).map_err(failed("architectures"))?;
        }
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        if action == default {
            continue;
        }
        for name in rule.names() {
            // Numbers are the host's here, and libseccomp translates them by their names.
            // A name that its tables lack cannot be called either; runc skips it too.
            let Ok(syscall) = ScmpSyscall::from_name(name) else { continue };
            let what = format!("syscalls: {name}");
            for conditions in conditions(rule.args().as_deref().unwrap_or_default()) {
                context.add_rule_conditional(action, syscall, &conditions).map_err(failed(&what))?;
            }
        }
    }
    let mut program = export(&context)?;
    if let Some(stub) = unknown_syscalls_stub(profile, guest) {
        program.splice(0..0, stub);
    }
    if program.len() > MAX_INSTRUCTIONS {
        return Err(format!("the filter has {} instructions, the kernel accepts {MAX_INSTRUCTIONS}", program.len()));
    }
    Ok(SeccompFilter { program, flags: flags(profile)? })
}

fn flags(profile: &LinuxSeccomp) -> Compiled<u64> {
    let mut flags = 0;
    for flag in profile.flags().iter().flatten() {
        // <linux/seccomp.h>
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 1,
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => 1 << 1,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 1 << 2,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(
                    "flags: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a listener, which is not supported".into()
                );
            }
        };
    }
    Ok(flags)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Compiled<ScmpAction> {
    let number = errno.unwrap_or(DEFAULT_ERRNO);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(number as i32),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(number as u16),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(
                "SCMP_ACT_NOTIFY is not supported: a listener on the host cannot answer for a guest's kernel".into()
            );
        }
    })
}

/// What a guest's processor executes, the guest's own architecture first.
fn family(guest: Guest) -> &'static [ScmpArch] {
    match guest {
        Guest::X86_64 => &[ScmpArch::X8664, ScmpArch::X86, ScmpArch::X32],
        Guest::Aarch64 => &[ScmpArch::Aarch64, ScmpArch::Arm],
        Guest::Ppc64le => &[ScmpArch::Ppc64Le],
        Guest::S390x => &[ScmpArch::S390X, ScmpArch::S390],
    }
}

fn arch(architecture: Arch) -> Option<ScmpArch> {
    Some(match architecture {
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        _ => return None,
    })
}

/// The conditions of one rule. Several conditions on one argument are alternatives, as runc reads them; libseccomp takes one
/// per argument and rule.
fn conditions(arguments: &[LinuxSeccompArg]) -> Vec<Vec<ScmpArgCompare>> {
    let all: Vec<_> = arguments.iter().map(compare).collect();
    let repeated = arguments.iter().enumerate().any(|(i, a)| arguments[..i].iter().any(|b| a.index() == b.index()));
    if repeated { all.into_iter().map(|one| vec![one]).collect() } else { vec![all] }
}

fn compare(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let (operator, datum) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, argument.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, argument.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, argument.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(argument.value()), argument.value_two().unwrap_or_default())
        }
    };
    ScmpArgCompare::new(argument.index() as u32, operator, datum)
}

fn export(context: &ScmpFilterContext) -> Compiled<Vec<(u16, u8, u8, u32)>> {
    let mut file = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC)
        .map(std::fs::File::from)
        .map_err(|e| format!("make room for the filter: {e}"))?;
    context.export_bpf(&mut file).map_err(|e| format!("compile: {e}"))?;
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_to_end(&mut bytes))
        .map_err(|e| format!("read the filter: {e}"))?;
    // struct sock_filter { u16 code; u8 jt, jf; u32 k; }, <linux/filter.h>
    Ok(bytes
        .chunks_exact(8)
        .map(|c| (u16::from_ne_bytes([c[0], c[1]]), c[2], c[3], u32::from_ne_bytes([c[4], c[5], c[6], c[7]])))
        .collect())
}

/// Instructions in front of the filter that answer ENOSYS to calls newer than every call the profile names.
///
/// C libraries probe for a new call and fall back on ENOSYS; a profile written before the call existed would answer
/// EPERM, which they take for an answer. runc does the same, for the same profiles: those that deny by default
/// without naming an `errno`.
fn unknown_syscalls_stub(profile: &LinuxSeccomp, guest: Guest) -> Option<Vec<(u16, u8, u8, u32)>> {
    if profile.default_action() != LinuxSeccompAction::ScmpActErrno || profile.default_errno_ret().is_some() {
        return None;
    }
    let newest = profile
        .syscalls()
        .iter()
        .flatten()
        .flat_map(|rule| rule.names())
        .filter_map(|name| ScmpSyscall::from_name_by_arch(name, family(guest)[0]).ok())
        .map(i32::from)
        .max()
        .and_then(|number| u32::try_from(number).ok())?;
    let native = audit_arch(guest);
    // seccomp_data: 0 the call's number, 4 the architecture. x32 calls have bit 30 set and are left to the filter.
    const X32_BIT: u32 = 1 << 30;
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER: u16 = 0x25;
    const JUMP_GREATER_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const RETURN_ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;
    Some(vec![
        (LOAD, 0, 0, 4),
        (JUMP_EQUAL, 0, 4, native),
        (LOAD, 0, 0, 0),
        (JUMP_GREATER_EQUAL, 2, 0, X32_BIT),
        (JUMP_GREATER, 0, 1, newest),
        (RETURN, 0, 0, RETURN_ENOSYS),
    ])
}

/// `AUDIT_ARCH_*`, <linux/audit.h>.
fn audit_arch(guest: Guest) -> u32 {
    match guest {
        Guest::X86_64 => 0xc000_003e,
        Guest::Aarch64 => 0xc000_00b7,
        Guest::Ppc64le => 0xc000_0015,
        Guest::S390x => 0x8000_0016,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(json: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(json).unwrap()
    }

    /// Runs a filter as the kernel would, for the instructions libseccomp emits.
    fn run(program: &[(u16, u8, u8, u32)], number: u32, arguments: [u64; 6]) -> u32 {
        run_on(HOST, program, number, arguments)
    }

    fn run_on(guest: Guest, program: &[(u16, u8, u8, u32)], number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [0; 64];
        data[..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&audit_arch(guest).to_ne_bytes());
        for (i, argument) in arguments.iter().enumerate() {
            data[16 + i * 8..24 + i * 8].copy_from_slice(&argument.to_ne_bytes());
        }
        let (mut at, mut a) = (0, 0u32);
        loop {
            let (code, jt, jf, k) = program[at];
            at += 1;
            let mut jump = |taken: bool| at += usize::from(if taken { jt } else { jf });
            match code {
                0x20 => a = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap()),
                0x54 => a &= k,
                0x05 => at += k as usize,
                0x15 => jump(a == k),
                0x25 => jump(a > k),
                0x35 => jump(a >= k),
                0x45 => jump(a & k != 0),
                0x06 => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    const ALLOW: u32 = 0x7fff_0000;
    const HOST: Guest = Guest::HOST.unwrap();

    #[test]
    fn a_filter_is_for_the_guests_architecture() {
        // Profiles that engines make name the host's architectures.
        let profile = profile(serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                {"names": ["openat", "mkdir"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            ],
        }));
        // <asm-generic/unistd.h>
        const OPENAT: u32 = 56;
        const READ: u32 = 63;
        const PERSONALITY: u32 = 92;
        let filter = compile(&profile, Guest::Aarch64).unwrap();
        let run = |number, argument| run_on(Guest::Aarch64, &filter.program, number, [argument, 0, 0, 0, 0, 0]);
        assert_eq!(run(OPENAT, 0), ALLOW);
        assert_eq!(run(READ, 0), 0x0005_0000 | 1, "a call of that number is openat's on no other architecture");
        assert_eq!((run(PERSONALITY, 8), run(PERSONALITY, 9)), (ALLOW, 0x0005_0000 | 1));
        assert_eq!(run(100_000, 0), 0x0005_0000 | libc::ENOSYS as u32);
        // The other architecture's calls are not for this filter to allow, whatever their numbers.
        let filter = compile(&profile, Guest::X86_64).unwrap();
        assert_eq!(run_on(Guest::X86_64, &filter.program, 257, [0; 6]), ALLOW);
        assert_ne!(run_on(Guest::Aarch64, &filter.program, OPENAT, [0; 6]), ALLOW);
    }

    #[test]
    fn rules_conditions_and_errors_are_compiled() {
        let filter = compile(&profile(serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["mkdir", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
                {"names": ["personality"], "action": "SCMP_ACT_KILL_PROCESS", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            ],
        })), HOST)
        .unwrap();
        assert_eq!(run(&filter.program, libc::SYS_mkdir as u32, [0; 6]), 0x0005_0000 | 13);
        assert_eq!(run(&filter.program, libc::SYS_getpid as u32, [0; 6]), ALLOW);
        assert_eq!(run(&filter.program, libc::SYS_personality as u32, [8, 0, 0, 0, 0, 0]), 0x8000_0000);
        assert_eq!(run(&filter.program, libc::SYS_personality as u32, [9, 0, 0, 0, 0, 0]), ALLOW);
    }

    #[test]
    fn a_call_newer_than_the_profile_is_enosys_and_an_old_one_that_is_not_listed_eperm() {
        let filter = compile(
            &profile(serde_json::json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{"names": ["read", "openat2"], "action": "SCMP_ACT_ALLOW"}],
            })),
            HOST,
        )
        .unwrap();
        assert_eq!(run(&filter.program, libc::SYS_read as u32, [0; 6]), ALLOW);
        assert_eq!(run(&filter.program, libc::SYS_write as u32, [0; 6]), 0x0005_0000 | 1);
        assert_eq!(run(&filter.program, 100_000, [0; 6]), 0x0005_0000 | libc::ENOSYS as u32);
    }

    #[test]
    fn notify_is_refused() {
        let error = compile(&profile(serde_json::json!({"defaultAction": "SCMP_ACT_NOTIFY"})), HOST).unwrap_err();
        assert!(error.contains("SCMP_ACT_NOTIFY"));
    }
}
