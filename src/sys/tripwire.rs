//! In debug builds: ends a cloned child that allocates.
//!
//! Between clone and exec a child shares the heap with the daemon that goes on beside it; an allocation there corrupts both,
//! rarely and far from its cause. This allocator asks, only while such a child may live, whether the caller is the process
//! that cloned it. Release builds have none of it. Where daemon and child both are PID 1 of their namespaces it sees nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::raw;

/// What a child that allocated exits with.
pub(super) const TRIPPED: i32 = 134;

/// Children that may be between clone and exec.
static BIRTHS: AtomicUsize = AtomicUsize::new(0);
/// The pid of the process that cloned them.
static PARENT: AtomicU32 = AtomicU32::new(0);

/// Says that a child is about to be cloned.
pub(super) fn arm() {
    PARENT.store(std::process::id(), Ordering::Relaxed);
    BIRTHS.fetch_add(1, Ordering::Release);
}

/// Says that a child has exec'd or is gone.
pub(super) fn disarm() {
    BIRTHS.fetch_sub(1, Ordering::Release);
}

#[inline]
fn check() {
    if BIRTHS.load(Ordering::Acquire) == 0 {
        return;
    }
    // SAFETY: getpid takes nothing and cannot fail.
    let pid = unsafe { raw::syscall(raw::nr::GETPID, 0, 0, 0, 0, 0, 0) };
    if u32::try_from(pid) == Ok(PARENT.load(Ordering::Relaxed)) {
        return;
    }
    const WORDS: &[u8] = b"halsup: a cloned child has allocated\n";
    // SAFETY: the kernel reads the words, which are static.
    unsafe { raw::syscall(raw::nr::WRITE, 2, WORDS.as_ptr() as usize, WORDS.len(), 0, 0, 0) };
    raw::exit(TRIPPED)
}

#[derive(Debug)]
struct Tripwire;

#[global_allocator]
static ALLOCATOR: Tripwire = Tripwire;

// SAFETY: every call goes to the system's allocator unchanged, or does not return.
unsafe impl GlobalAlloc for Tripwire {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: the caller's obligations are those of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check();
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        check();
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a child of this process exits with after `deed`.
    fn status_of_child(deed: fn()) -> i32 {
        const SIGCHLD: usize = 17;
        // SAFETY: a child with memory of its own, as fork(2) makes it, which does nothing but `deed` and system calls.
        let pid = unsafe { raw::syscall(raw::nr::CLONE, SIGCHLD, 0, 0, 0, 0, 0) };
        if pid == 0 {
            deed();
            raw::exit(0);
        }
        let mut status = 0;
        let pid = i32::try_from(pid).expect("a pid");
        // SAFETY: the child is this process's own, and `status` is one int.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        libc::WEXITSTATUS(status)
    }

    #[test]
    fn a_child_that_allocates_is_ended_and_one_that_does_not_is_left_alone() {
        arm();
        let allocated = status_of_child(|| drop(std::hint::black_box(Box::new(7))));
        let did_not = status_of_child(|| {});
        let own = std::hint::black_box(Box::new(7));
        disarm();
        assert_eq!((allocated, did_not, *own), (TRIPPED, 0, 7));
    }
}
