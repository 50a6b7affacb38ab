//! What `make run` executes: one container through a private containerd. Its standard output is the container's and
//! nothing else; what happens meanwhile is told on the standard error.

use std::{io::Write, process::ExitCode};

use framework::{Node, Result};

const SCRIPT: &str = "echo hello from $(hostname); uname -a";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    eprintln!("starting a private containerd and importing a busybox image");
    let node = Node::start()?.quiet();
    eprintln!("ctr run --rm --runtime {} … sh -c '{SCRIPT}'", node.runtime().name());
    let output = node.run("demo").arg("--rm").sh(SCRIPT).output()?;
    std::io::stdout().write_all(&output.stdout)?;
    eprint!("{}", output.stderr());
    Ok(output
        .code
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}
