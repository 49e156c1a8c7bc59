//! From a policy to the kernel's program: a check of the architecture, a binary search by number, and chains of comparisons.
//!
//! Classic BPF has forward jumps alone and only 8 bits for a conditional one; the unconditional one reaches anywhere, so a
//! conditional jump hops over one where its target may be far. Only instructions that the kernel's own emulator knows stand
//! before the first comparison of an argument, so that it finds out which calls are always allowed.

use super::SeccompError;
use super::policy::{Action, Compare, Condition, Policy, Rule};
use crate::sys::syscall_names;

/// The kernel's `BPF_MAXINSNS`.
pub(super) const INSTRUCTIONS_MAX: usize = 4096;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in the kernel's `struct seccomp_data`.
const NUMBER_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;

#[cfg(target_arch = "x86_64")]
pub(super) const AUDIT_ARCH: Option<u32> = Some(0xc000_003e);
#[cfg(target_arch = "aarch64")]
pub(super) const AUDIT_ARCH: Option<u32> = Some(0xc000_00b7);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) const AUDIT_ARCH: Option<u32> = None;

/// From here on x86_64 takes a number for its 32-bit-pointer sibling x32, which shares the architecture's name.
pub(super) const X32_FIRST: u32 = 0x4000_0000;

const ENOSYS: u16 = 38;

/// A filter as the kernel takes it, ready for `seccomp(2)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// One `struct sock_filter` per element, in the byte order of memory.
    program: Vec<u64>,
    len: u16,
}

impl Filter {
    /// The instructions; each element is the 8 bytes of one `struct sock_filter`.
    #[must_use]
    pub fn program(&self) -> &[u64] {
        &self.program
    }

    /// How many instructions, as `struct sock_fprog` wants it; 1..=4,096.
    #[must_use]
    pub fn instructions(&self) -> u16 {
        self.len
    }
}

/// One `struct sock_filter`.
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u16,
    on_true: u8,
    on_false: u8,
    k: u32,
}

impl Instruction {
    fn new(code: u16, k: u32) -> Self {
        Self { code, on_true: 0, on_false: 0, k }
    }

    fn pack(self) -> u64 {
        let [c0, c1] = self.code.to_ne_bytes();
        let [k0, k1, k2, k3] = self.k.to_ne_bytes();
        u64::from_ne_bytes([c0, c1, self.on_true, self.on_false, k0, k1, k2, k3])
    }
}

/// Makes the program of `policy`.
pub(super) fn compile(policy: &Policy) -> Result<Filter, SeccompError> {
    let arch = AUDIT_ARCH.ok_or(SeccompError::Architecture)?;
    let kill = Instruction::new(RETURN, Action::KillProcess.value());
    let mut code = vec![
        Instruction::new(LOAD, ARCH_OFFSET),
        Instruction { code: JUMP_EQUAL, on_true: 1, on_false: 0, k: arch },
        kill,
        Instruction::new(LOAD, NUMBER_OFFSET),
    ];
    let segments = segments(policy);
    code.extend(search(&segments));
    let too_long = SeccompError::TooLong { instructions: code.len() };
    match u16::try_from(code.len()) {
        Ok(len) if code.len() <= INSTRUCTIONS_MAX => {
            Ok(Filter { program: code.into_iter().map(Instruction::pack).collect(), len })
        }
        _ => Err(too_long),
    }
}

/// The numbers from `first` to the next segment's, and what is done with them.
struct Segment {
    first: u32,
    body: Body,
}

#[derive(PartialEq)]
enum Body {
    Return(Action),
    Rules(Vec<Rule>, Action),
}

/// Every number there is, in order, neighbours with the same answer together.
fn segments(policy: &Policy) -> Vec<Segment> {
    let mut segments = vec![Segment { first: 0, body: Body::Return(policy.default) }];
    let newest = syscall_names::all().map(|(_, number)| number).max().unwrap_or(0);
    for (number, rules) in policy.rules.range(..=newest) {
        push(&mut segments, *number, body(rules, policy.default));
        if !policy.rules.contains_key(&number.saturating_add(1)) {
            push(&mut segments, number.saturating_add(1), Body::Return(policy.default));
        }
    }
    // Calls that are newer than every list here: ENOSYS is what a program takes for "use the older one", where another
    // errno would make it give up.
    if matches!(policy.default, Action::Errno(_)) {
        push(&mut segments, newest.saturating_add(1), Body::Return(Action::Errno(ENOSYS)));
    }
    if cfg!(target_arch = "x86_64") {
        push(&mut segments, X32_FIRST, Body::Return(Action::KillProcess));
    }
    segments
}

fn push(segments: &mut Vec<Segment>, first: u32, body: Body) {
    match segments.last_mut() {
        Some(last) if last.body == body => {}
        Some(last) if last.first == first => last.body = body,
        _ => segments.push(Segment { first, body }),
    }
}

/// Most restrictive first, so that the first rule that matches decides; nothing stands behind an unconditional one.
fn body(rules: &[Rule], default: Action) -> Body {
    let mut rules = rules.to_vec();
    rules.sort_by_key(|rule| rule.action);
    if let Some(end) = rules.iter().position(|rule| rule.conditions.is_empty()) {
        let last = rules.get(end).map_or(default, |rule| rule.action);
        rules.truncate(end);
        if rules.is_empty() {
            return Body::Return(last);
        }
        return Body::Rules(rules, last);
    }
    Body::Rules(rules, default)
}

/// A binary search over `segments` with the number in the accumulator. Its depth is the logarithm of their number, so the
/// recursion is at most a dozen deep.
fn search(segments: &[Segment]) -> Vec<Instruction> {
    let (left, right) = segments.split_at(segments.len() / 2);
    let Some(first) = right.first() else { return Vec::new() };
    if left.is_empty() {
        return leaf(&first.body);
    }
    let (below, above) = (search(left), search(right));
    let mut code = Vec::with_capacity(below.len() + above.len() + 2);
    if let Ok(distance) = u8::try_from(below.len()) {
        code.push(Instruction { code: JUMP_GREATER_EQUAL, on_true: distance, on_false: 0, k: first.first });
    } else {
        let distance = u32::try_from(below.len()).unwrap_or(u32::MAX);
        code.push(Instruction { code: JUMP_GREATER_EQUAL, on_true: 0, on_false: 1, k: first.first });
        code.push(Instruction::new(JUMP, distance));
    }
    code.extend(below);
    code.extend(above);
    code
}

fn leaf(body: &Body) -> Vec<Instruction> {
    match body {
        Body::Return(action) => vec![Instruction::new(RETURN, action.value())],
        Body::Rules(rules, otherwise) => {
            let mut code: Vec<Instruction> = rules.iter().flat_map(rule).collect();
            code.push(Instruction::new(RETURN, otherwise.value()));
            code
        }
    }
}

/// Where a comparison goes on.
#[derive(Debug, Clone, Copy)]
enum To {
    /// To the instruction behind it.
    Next,
    /// Behind the condition, which holds.
    Holds,
    /// Behind the rule, which does not match.
    Fails,
}

/// An instruction whose jumps have no distance yet.
struct Step {
    code: u16,
    k: u32,
    on_true: To,
    on_false: To,
}

fn plain(code: u16, k: u32) -> Step {
    Step { code, k, on_true: To::Next, on_false: To::Next }
}

fn rule(rule: &Rule) -> Vec<Instruction> {
    let conditions: Vec<Vec<Step>> = rule.conditions.iter().map(condition).collect();
    // At most six conditions of at most six steps: every distance in here fits its 8 bits, and `distance` holds it to that.
    let total: usize = conditions.iter().map(Vec::len).sum();
    let mut code = Vec::with_capacity(total + 1);
    let mut end = 0;
    for steps in conditions {
        end += steps.len();
        for step in steps {
            let here = code.len() + 1;
            let to = |to| match to {
                To::Next => 0,
                To::Holds => distance(end - here),
                To::Fails => distance(total + 1 - here),
            };
            code.push(Instruction {
                code: step.code,
                on_true: to(step.on_true),
                on_false: to(step.on_false),
                k: step.k,
            });
        }
    }
    code.push(Instruction::new(RETURN, rule.action.value()));
    code
}

fn distance(instructions: usize) -> u8 {
    u8::try_from(instructions).unwrap_or(u8::MAX)
}

fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

/// The steps of one condition: the accumulator holds 32 bits, an argument has 64, the upper half in the upper word.
fn condition(condition: &Condition) -> Vec<Step> {
    let low = ARGUMENTS_OFFSET + 8 * u32::from(condition.argument.min(5));
    let (load_low, load_high) = (plain(LOAD, low), plain(LOAD, low + 4));
    let (high, value) = halves(condition.value);
    let step = |code, k, on_true, on_false| Step { code, k, on_true, on_false };
    let upper_equal = step(JUMP_EQUAL, high, To::Next, To::Fails);
    match condition.compare {
        Compare::Equal => {
            vec![load_high, upper_equal, load_low, step(JUMP_EQUAL, value, To::Next, To::Fails)]
        }
        Compare::NotEqual => vec![
            load_high,
            step(JUMP_EQUAL, high, To::Next, To::Holds),
            load_low,
            step(JUMP_EQUAL, value, To::Fails, To::Next),
        ],
        Compare::Greater | Compare::GreaterOrEqual => {
            let code = if condition.compare == Compare::Greater { JUMP_GREATER } else { JUMP_GREATER_EQUAL };
            let upper = step(JUMP_GREATER, high, To::Holds, To::Next);
            vec![load_high, upper, upper_equal, load_low, step(code, value, To::Next, To::Fails)]
        }
        Compare::Less | Compare::LessOrEqual => {
            let code = if condition.compare == Compare::Less { JUMP_GREATER_EQUAL } else { JUMP_GREATER };
            let upper = step(JUMP_GREATER, high, To::Fails, To::Next);
            let less = step(JUMP_EQUAL, high, To::Next, To::Holds);
            vec![load_high, upper, less, load_low, step(code, value, To::Fails, To::Next)]
        }
        Compare::Masked(mask) => masked(load_high, load_low, mask, condition.value, (To::Next, To::Fails), To::Fails),
        Compare::NotMasked(mask) => {
            masked(load_high, load_low, mask, condition.value, (To::Fails, To::Next), To::Holds)
        }
    }
}

/// Compares under a mask. `last` says where the lower half goes when equal and when not, `upper_differs` the upper half. A half
/// with an empty mask is not looked at.
fn masked(load_high: Step, load_low: Step, mask: u64, value: u64, last: (To, To), upper_differs: To) -> Vec<Step> {
    let (mask_high, mask_low) = halves(mask);
    let (high, low) = halves(value & mask);
    let mut steps = Vec::with_capacity(6);
    if mask_high != 0 {
        steps.push(load_high);
        steps.extend((mask_high != u32::MAX).then(|| plain(AND, mask_high)));
        steps.push(Step { code: JUMP_EQUAL, k: high, on_true: To::Next, on_false: upper_differs });
    }
    steps.push(load_low);
    steps.extend((mask_low != u32::MAX).then(|| plain(AND, mask_low)));
    steps.push(Step { code: JUMP_EQUAL, k: low, on_true: last.0, on_false: last.1 });
    steps
}
