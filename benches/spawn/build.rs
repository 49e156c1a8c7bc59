//! Builds `first`, the program whose first instruction is measured: static, without std and libc start-up, as the
//! package's own build does for its init.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=src/first.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("first");
    let status = Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC"))
        .args(["--edition=2024", "--crate-name=first", "--crate-type=bin", "src/first.rs", "-o"])
        .arg(&out)
        .args(["-Cpanic=abort", "-Copt-level=s", "-Cstrip=symbols", "-Crelocation-model=static"])
        .args(["-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static", "-Clink-arg=-no-pie"])
        .args(["-Clink-arg=-Wl,--build-id=none,-z,norelro,-z,noseparate-code", "-Dwarnings"])
        .arg(format!("--target={}", env::var("TARGET").expect("cargo sets TARGET")))
        .status()
        .expect("run the compiler for first");
    assert!(status.success(), "first does not compile: see above");
    let size = fs::metadata(&out).expect("first was written").len();
    assert!(size < 16 * 1024, "first has {size} bytes: it measures itself");
}
