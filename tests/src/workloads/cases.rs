//! The cases: what each runs, with how much memory, and what it needs beyond an ordinary container.

use std::time::Duration;

use super::{
    case::Case,
    container::{Container, steps},
    driven,
    table::Step,
};
use crate::Result;

/// All, in the order in which they run.
pub const CASES: &[Case] = &[
    case("sqlite", 512),
    case("redis", 512),
    case("git", 1024),
    case("postgres", 1024),
    case("mariadb", 1024),
    case("nginx", 512),
    case("python", 512),
    case("node", 1024),
    case("npm", 1024),
    // These scripts know the limit.
    case("java", 512),
    case("dotnet", 512),
    case("gcc", 1024),
    case("go", 1536),
    case("rsync", 512),
    case("fio", 512),
    case("stress-ng", 1024),
    case("apt", 512),
    case("cron", 512),
    Case {
        run: driven::docker,
        ..case("dockerd", 1536)
    },
    Case {
        run: driven::killed_database,
        ..case("postgres-kill", 1024)
    },
    Case {
        run: driven::systemd,
        ..case("systemd", 1024)
    },
];

const fn case(name: &'static str, memory: u64) -> Case {
    Case {
        name,
        memory,
        limit: Duration::from_secs(600),
        run: script,
    }
}

/// Runs the script of the case's name to its end.
fn script(container: &Container<'_>, case: &Case) -> Result<Vec<Step>> {
    let script = format!("/workloads/{}.sh", case.name);
    let spec = container.spec(case.memory, &["bash", &script])?;
    steps(container.run(case.limit, &spec)?)
}
