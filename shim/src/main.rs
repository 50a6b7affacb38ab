//! The program that containerd starts: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match shim::command::entry::run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-kata-v2: {}", base::chain(&*error));
            ExitCode::FAILURE
        }
    }
}
