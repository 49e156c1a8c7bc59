//! The `halsup` program: argv goes to the command line, which may become the daemon; its result is the exit code.

fn main() -> std::process::ExitCode {
    halsup::cli::main()
}
