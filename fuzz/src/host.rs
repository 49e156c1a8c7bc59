//! What is promised of the texts that the kernel and operators' files bring to `host`: mounts and seccomp profiles.

use std::os::unix::ffi::OsStrExt as _;

use halsup::host::mountinfo::{self, Mount};
use halsup::host::seccomp::Filter;

/// A table of mounts.
pub fn mountinfo(data: &[u8]) {
    let mounts = mountinfo::parse(data);
    assert!(mounts.len() <= data.split(|byte| *byte == b'\n').count());
    // No line has an influence on another.
    let line_by_line: Vec<Mount> = data.split(|byte| *byte == b'\n').flat_map(mountinfo::parse).collect();
    assert_eq!(mounts, line_by_line, "a line changes the meaning of another");
    let written: Vec<u8> = mounts.iter().flat_map(written).collect();
    assert_eq!(mountinfo::parse(&written), mounts, "a mount is not read as the kernel writes it");
}

/// A mount as the kernel writes it.
fn written(mount: &Mount) -> Vec<u8> {
    let mut line = format!("{} {} 0:1 ", mount.id, mount.parent).into_bytes();
    line.extend(escaped(mount.root.as_os_str().as_bytes()));
    line.push(b' ');
    line.extend(escaped(mount.mount_point.as_os_str().as_bytes()));
    line.extend(if mount.read_only { &b" ro,noatime shared:1 - "[..] } else { b" rw - " });
    line.extend(escaped(mount.fs_type.as_bytes()));
    line.extend(b" none ");
    line.extend(escaped(mount.super_options.as_bytes()));
    line.push(b'\n');
    line
}

fn escaped(bytes: &[u8]) -> Vec<u8> {
    let escape = |byte: &u8| match byte {
        b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
        _ => vec![*byte],
    };
    bytes.iter().flat_map(escape).collect()
}

/// The offset of the architecture in the kernel's `struct seccomp_data`, and the answer to a foreign one.
const ARCH_OFFSET: u32 = 4;
const KILL_PROCESS: u32 = 0x8000_0000;

/// A seccomp profile in Docker's format: its program passes the kernel's checks and never serves foreign numbers.
pub fn seccomp_profile(data: &[u8]) {
    let old = Filter::from_profile(data, (4, 0));
    let filter = Filter::from_profile(data, (6, 1));
    for filter in [old, filter] {
        match filter {
            Ok(filter) => program(&filter),
            Err(error) => assert!(error.to_string().len() <= 2_000, "an error of {} bytes", error.to_string().len()),
        }
    }
}

/// What the kernel checks when a program is attached: known instructions, jumps forward and inside, a return at the end.
fn program(filter: &Filter) {
    let instructions: Vec<(u16, u8, u8, u32)> = filter.program().iter().map(|packed| unpacked(*packed)).collect();
    assert!((1..=4_096).contains(&instructions.len()) && instructions.len() == usize::from(filter.instructions()));
    for (at, &(code, on_true, on_false, k)) in instructions.iter().enumerate() {
        let furthest = match code {
            0x20 => {
                assert!(k < 64 && k % 4 == 0, "loads at {k}, outside the kernel's structure");
                0
            }
            0x54 => 0,
            0x05 => usize::try_from(k).expect("64 bits"),
            0x15 | 0x25 | 0x35 => usize::from(on_true.max(on_false)),
            0x06 => {
                assert!(answers().contains(&(k & 0xffff_0000)), "the kernel has no answer {k:#x}");
                continue;
            }
            other => panic!("instruction {other:#x} at {at}"),
        };
        assert!(at + 1 + furthest < instructions.len(), "leaves the program at {at}");
    }
    let is_arch_check = instructions[0] == (0x20, 0, 0, ARCH_OFFSET) && instructions[1].0 == 0x15;
    assert!(is_arch_check && instructions[1].2 == 0, "the architecture is not checked first");
    assert_eq!(instructions[2], (0x06, 0, 0, KILL_PROCESS), "a foreign architecture is not killed");
}

/// The kernel's answers: kill the process, kill the thread, trap, errno, trace, log, allow.
fn answers() -> [u32; 7] {
    [KILL_PROCESS, 0, 0x0003_0000, 0x0005_0000, 0x7ff0_0000, 0x7ffc_0000, 0x7fff_0000]
}

fn unpacked(packed: u64) -> (u16, u8, u8, u32) {
    let [c0, c1, on_true, on_false, k @ ..] = packed.to_ne_bytes();
    (u16::from_ne_bytes([c0, c1]), on_true, on_false, u32::from_ne_bytes(k))
}
