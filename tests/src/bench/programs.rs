//! Real programs: how long they take to start from the container's root and from a bind mount, and to work there, against the same in a
//! tmpfs of the same VM, in turns. The goals are in docs/mounts.md.

use std::{fs, path::Path, process::Command};

use serde_json::json;

use super::{
    bare::LIMIT,
    host::Host,
    table::{Row, Unit},
};
use crate::{
    Error, Node, Result,
    programs::{self, GCC, GIT, PYTHON, TRUE},
};

/// Room for the programs in memory.
const MACHINE: &str = "[hypervisor.qemu]\ndefault_memory = 1536\n";
const ROUNDS: u32 = 3;
/// Directories of the work tree, and files in each.
const DIRECTORIES: usize = 40;
const FILES: usize = 25;
/// Number of sources that are compiled.
const SOURCES: usize = 6;
const FLOOR: &str = "the same in a tmpfs of the same VM";

struct Timed {
    what: &'static str,
    /// `root`: with the place as the program's root. `in`: in its directory `work`.
    how: &'static str,
    count: u32,
    program: &'static [&'static str],
}

const TIMED: [Timed; 6] = [
    Timed {
        what: "start of true",
        how: "root",
        count: 30,
        program: &["/usr/bin/true"],
    },
    Timed {
        what: "start of git --version",
        how: "root",
        count: 20,
        program: &["/usr/bin/git", "--version"],
    },
    Timed {
        what: "start of python3 -S -c pass",
        how: "root",
        count: 5,
        program: &["/usr/bin/python3", "-S", "-c", "pass"],
    },
    Timed {
        what: "find of 1000 files",
        how: "in",
        count: 3,
        program: &["/bin/find", ".", "-type", "f", "-size", "+100"],
    },
    Timed {
        what: "git status of 1000 files",
        how: "in",
        count: 3,
        program: &["/usr/bin/git", "status", "--porcelain"],
    },
    Timed {
        what: "compilation of 6 files",
        how: "in",
        count: 1,
        program: &[
            "/bin/sh",
            "-ec",
            "export PATH=/usr/bin:/bin; for file in source*.c; do gcc -pipe -I. -c $file -o ${file%.c}.o; done",
        ],
    },
];

/// See the module. The container is one of its own: it has more memory than the others.
pub(super) fn measure(_: &Host) -> Result<Vec<Row>> {
    let node = Node::start_configured(MACHINE)?.quiet();
    let volume = node.dir().join("volume");
    fs::create_dir(&volume)?;
    let spec = node
        .spec("programs", &["sleep", "100000"])?
        .bind(&volume, "/bind", &["rw"])?
        .push(
            "/mounts",
            json!({ "destination": "/memory", "type": "tmpfs", "source": "tmpfs", "options": ["size=700m"] }),
        )?
        .push("/process/capabilities/bounding", "CAP_SYS_CHROOT")?
        .push("/process/capabilities/effective", "CAP_SYS_CHROOT")?
        .push("/process/capabilities/permitted", "CAP_SYS_CHROOT")?;
    programs::add(&spec.root(), &[TRUE, GIT, PYTHON, GCC])?;
    programs::add(&volume, &[TRUE, GIT, PYTHON])?;
    for place in [spec.root(), volume.clone()] {
        work_tree(&place.join("work"))?;
    }
    // git opens it, whatever it is.
    fs::create_dir(volume.join("dev"))?;
    fs::write(volume.join("dev/null"), "")?;
    node.run_spec("programs", &spec)?.arg("-d").limit(LIMIT).ok()?;
    let copy = node.exec("programs", "copy").sh("cp -a /bind/. /memory/");
    copy.limit(LIMIT).ok()?;
    let mut rows = Vec::new();
    for (number, timed) in TIMED.iter().enumerate() {
        rows.extend(rows_of(&node, number, timed)?);
    }
    node.remove("programs")?;
    node.nothing_left()?;
    Ok(rows)
}

fn rows_of(node: &Node, number: usize, timed: &Timed) -> Result<Vec<Row>> {
    let places: [&str; 3] = match timed.how {
        "root" => ["/", "/bind", "/memory"],
        _ => ["/work", "/bind/work", "/memory/work"],
    };
    let (rounds, count) = (ROUNDS.to_string(), timed.count.to_string());
    let words = ["guest-probe", "times", timed.how, &rounds, &count, &places.join(",")].map(str::to_owned);
    let program = timed.program.iter().map(|word| (*word).to_owned());
    let said = node
        .exec("programs", &format!("times{number}"))
        .program(words.into_iter().chain(program))
        .limit(LIMIT * 3)
        .output()?
        .success()?
        .json()?;
    let took = |place: &str| {
        let seconds = said[place].as_f64();
        let seconds = seconds.ok_or_else(|| Error::unexpected(format!("no time of {place}: {said}")))?;
        Ok::<_, Error>(seconds * 1000.0)
    };
    let floor = took(places[2])?;
    [("the root", places[0]), ("a bind mount", places[1])]
        .into_iter()
        .map(|(name, place)| {
            Ok(Row {
                what: format!(
                    "{}, {} {name}",
                    timed.what,
                    if timed.how == "root" { "from" } else { "on" }
                ),
                floor_is: FLOOR,
                floor: Some(floor),
                value: took(place)?,
                unit: Unit::Milliseconds,
                count: ROUNDS as usize,
            })
        })
        .collect()
}

/// A repository of small files, made by this machine's git.
fn work_tree(work: &Path) -> Result<()> {
    for directory in 0..DIRECTORIES {
        let directory = work.join(format!("d{directory}"));
        fs::create_dir_all(&directory)?;
        for file in 0..FILES {
            fs::write(directory.join(format!("f{file}")), format!("{file}\n").repeat(300))?;
        }
    }
    fs::write(
        work.join("common.h"),
        "static inline int twice(int n) { return 2 * n; }\n",
    )?;
    for source in 0..SOURCES {
        let text = format!("#include \"common.h\"\nint f{source}(int n) {{ return twice(n) + {source}; }}\n");
        fs::write(work.join(format!("source{source}.c")), text)?;
    }
    for words in [
        &["init", "-q", "--template="][..],
        &["add", "."],
        &[
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "commit",
            "-q",
            "-m",
            "files",
        ],
    ] {
        run_git(work, words)?;
    }
    Ok(())
}

fn run_git(work: &Path, words: &[&str]) -> Result<()> {
    let mut command = Command::new("git");
    // No settings of the user's.
    command.env("HOME", "/nonexistent").env("GIT_CONFIG_NOSYSTEM", "1");
    let status = command
        .arg("-C")
        .arg(work)
        .args(words)
        .status()
        .map_err(Error::io("running git"))?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::unexpected(format!(
            "git {words:?} in {}: {status}",
            work.display()
        ))),
    }
}
