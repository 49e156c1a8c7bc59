//! Builds `halsup-init`, the PID 1 of every worker, and leaves it where the crate embeds it.
//!
//! It is a program of its own, without std, and cargo cannot yet build one program into another, so this calls the same
//! compiler that cargo uses for the rest.

#![expect(clippy::disallowed_types, reason = "the one place that runs the compiler")]

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

fn main() {
    for source in
        ["src/init", "src/sys/raw.rs", "src/sys/pid1.rs", "src/sys/entry.rs", "src/protocol/init.rs", "build.rs"]
    {
        println!("cargo:rerun-if-changed={source}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("halsup-init");
    // There the compiler would bring start files of its own, and with them a second `_start`.
    let musl = env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "musl");
    let status = Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC"))
        .args(["--edition=2024", "--crate-name=halsup_init", "--crate-type=bin", "src/init/main.rs", "-o"])
        .arg(&out)
        .args(["-Cpanic=abort", "-Copt-level=s", "-Clto=fat", "-Cstrip=symbols", "-Crelocation-model=static"])
        .args(["-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static", "-Clink-arg=-no-pie"])
        .args(musl.then_some("-Clink-self-contained=no"))
        .arg("-Clink-arg=-Wl,--build-id=none,-z,norelro,-z,noseparate-code")
        // Lints look at these files as a part of the crate; here a later compiler's new ones must not end the build.
        .args(["--cap-lints=warn", "-Aunfulfilled-lint-expectations"])
        .arg(format!("--target={}", env::var("TARGET").expect("cargo sets TARGET")))
        .status()
        .expect("run the compiler for halsup-init");
    assert!(status.success(), "halsup-init does not compile: see above");
    let size = fs::metadata(&out).expect("halsup-init was written").len();
    assert!(size < 64 * 1024, "halsup-init has {size} bytes: it has taken in more than it should");
}
