//! Ports for the programs that tests start.
//!
//! None of those that the kernel gives to outgoing connections by itself: one of them can be taken by any test that runs
//! beside, for as long as its connection lives.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// The range that ports are taken from: above those of well-known services, below the kernel's own.
const FIRST: u16 = 12_000;
const COUNT: u16 = 18_000;

/// How many were tried in this process.
static TRIED: AtomicU16 = AtomicU16::new(0);

/// The first of `count` ports in a row that nobody has, each for this test alone.
#[track_caller]
pub(crate) fn free_ports(count: u16) -> u16 {
    // Another run of the tests, at the same time, begins elsewhere.
    let begin = u16::try_from(std::process::id() % u32::from(COUNT)).expect("less than the count");
    for _ in 0..COUNT {
        let offset = TRIED.fetch_add(count, Ordering::Relaxed);
        let first = FIRST + (begin.wrapping_add(offset)) % (COUNT - count);
        if (first..first + count).all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()) {
            return first;
        }
    }
    panic!("no {count} ports in a row are free");
}
