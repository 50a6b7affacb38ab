//! Random operations on the files of a volume, by two containers and the host in turns, do what they would do in a directory that
//! one program has alone.
//!
//! That is what close-to-open and one file system per volume promise together: every operation here opens what it looks at. The model is a
//! second directory of the host, in which the same program does the same operations.
//!
//! `TATAMI_SEED=N` does those of a failure again; `TATAMI_FILES_SECONDS=N` goes on for so long.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use framework::{Error, HostMount, Node, Result, Running, locate};
use rustix::mount::MountFlags;

/// The duration without `TATAMI_FILES_SECONDS`.
const SECONDS: u64 = 20;
/// The seed without `TATAMI_SEED`.
const SEED: u64 = 1;
/// How many of the last operations a failure shows.
const SHOWN: usize = 30;
/// Directories and the names in each.
const DIRECTORIES: [&str; 2] = ["a", "part"];
const NAMES: [&str; 4] = ["w", "x", "y", "z"];

/// Numbers that look random: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or_default()
    }

    fn of<'a>(&mut self, those: &[&'a str]) -> &'a str {
        those[self.below(those.len())]
    }

    fn name(&mut self) -> String {
        format!("{}/{}", self.of(&DIRECTORIES), self.of(&NAMES))
    }

    /// Short and longer than a page.
    fn text(&mut self) -> String {
        let byte = char::from(b'a' + u8::try_from(self.below(26)).unwrap_or_default());
        let bound = [10, 200, 9000][self.below(3)];
        format!("{byte} {}", self.below(bound))
    }

    fn operation(&mut self) -> String {
        let name = self.name();
        match self.below(22) {
            0..=4 => format!("read {name}"),
            5 | 6 => format!("mapped {name}"),
            7 => format!("size {name}"),
            8 | 9 => format!("list {}", self.of(&DIRECTORIES)),
            10 | 11 => format!("write {name} {}", self.text()),
            12 => format!("create {name} {}", self.text()),
            13 | 14 => format!("append {name} {}", self.text()),
            15 => format!("truncate {name} {}", self.below(6000)),
            16 | 17 => format!("rename {name} {}", self.name()),
            18 | 19 => format!("link {name} {}", self.name()),
            20 => format!("cut {name} {}", self.below(6000)),
            _ => format!("unlink {name}"),
        }
    }
}

struct Alone {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Alone {
    fn start(directory: &Path) -> Result<Self> {
        let mut command = Command::new(locate::guest_probe()?);
        command
            .arg("act")
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let none = || Error::unexpected("no pipe");
        let requests = child.stdin.take().ok_or_else(none)?;
        let mut answers = BufReader::new(child.stdout.take().ok_or_else(none)?);
        answers.read_line(&mut String::new())?;
        Ok(Self {
            child,
            requests,
            answers,
        })
    }

    fn does(&mut self, operation: &str) -> Result<String> {
        writeln!(self.requests, "{operation}")?;
        let mut said = String::new();
        self.answers.read_line(&mut said)?;
        Ok(result(&said))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // It ends by itself with its input, but that is dropped later.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Contained {
    running: Running,
    done: usize,
}

impl Contained {
    fn start(node: &Node, name: &str, limit: Duration) -> Result<Self> {
        let act = node
            .exec(name, "act")
            .program(["guest-probe", "act", "/d"])
            .limit(limit);
        let running = act.spawn()?;
        running.shows("acting\n")?;
        Ok(Self { running, done: 0 })
    }

    fn does(&mut self, operation: &str) -> Result<String> {
        self.running.write(format!("{operation}\n").as_bytes())?;
        let end = format!(" <{}>\n", self.done);
        self.done += 1;
        self.running.shows(&end)?;
        let said = self.running.said();
        Ok(result(said.lines().last().unwrap_or_default()))
    }
}

/// An answer without its number.
fn result(line: &str) -> String {
    line.rsplit_once(" <").map_or(line, |(result, _)| result).to_owned()
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

#[test]
fn random_operations_of_two_containers_and_the_host_do_what_they_would_do_alone() -> Result<()> {
    let seed = number("TATAMI_SEED").unwrap_or(SEED);
    let time = Duration::from_secs(number("TATAMI_FILES_SECONDS").unwrap_or(SECONDS));
    eprintln!("TATAMI_SEED={seed}");
    let node = Node::start()?;
    let (volume, model) = (node.dir().join("volume"), node.dir().join("model"));
    for directory in DIRECTORIES {
        fs::create_dir_all(volume.join(directory))?;
        fs::create_dir_all(model.join(directory))?;
    }
    let pod = node.spec("pod", &["sleep", "1000"])?.of_pod(&node, "sandbox")?;
    node.run_spec("pod", &pod)?.arg("-d").ok()?;
    for name in ["one", "two"] {
        let spec = node.spec(name, &["sleep", "100000"])?.of_pod(&node, "container")?;
        let spec = spec.bind(&volume, "/d", &["rw"])?;
        node.run_spec(name, &spec)?.arg("-d").ok()?;
    }
    let limit = time + Duration::from_secs(200);
    let mut one = Contained::start(&node, "one", limit)?;
    let mut two = Contained::start(&node, "two", limit)?;
    let mut host = Alone::start(&volume)?;
    let mut alone = Alone::start(&model)?;

    let mut random = Random(seed);
    let mut history: Vec<String> = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < time {
        let operation = random.operation();
        let (who, said) = match random.below(3) {
            0 => ("one", one.does(&operation)?),
            1 => ("two", two.does(&operation)?),
            _ => ("host", host.does(&operation)?),
        };
        let wanted = alone.does(&operation)?;
        history.push(format!("{who}: {operation}: {said}"));
        let from = history.len().saturating_sub(SHOWN);
        assert_eq!(
            said,
            wanted,
            "{who}, {operation}, the {}. operation of TATAMI_SEED={seed}; the last ones:\n{}",
            history.len(),
            history[from..].join("\n")
        );
    }
    eprintln!("{} operations", history.len());
    assert!(history.len() > 50, "only {} operations in {time:?}", history.len());
    for name in ["two", "one", "pod"] {
        node.remove(name)?;
    }
    node.nothing_left()
}

/// How often each change is made: a busy machine may take longer than a name is cached now and then.
const ROUNDS: usize = 20;

fn put(directory: &Path, name: &str, content: &str) -> Result<()> {
    fs::write(directory.join("beside"), content)?;
    fs::rename(directory.join("beside"), directory.join(name))?;
    Ok(())
}

/// Below a mount inside the volume, of which the guest is not told when it changes. The container has just looked at the names.
#[test]
fn what_the_host_has_put_in_the_place_of_a_name_is_linked_renamed_and_truncated() -> Result<()> {
    let node = Node::start()?;
    let nested = node.dir().join("volume/nested");
    let mount = HostMount::new(&nested, MountFlags::empty())?;
    let spec = node.spec("one", &["sleep", "100000"])?;
    let spec = spec.bind(&node.dir().join("volume"), "/d", &["rw"])?;
    node.run_spec("one", &spec)?.arg("-d").ok()?;
    let mut one = Contained::start(&node, "one", Duration::from_secs(200))?;
    for round in 0..ROUNDS {
        let name = |what: &str| format!("{what}{round}");
        let [linked, renamed, target, cut, kept] = ["linked", "renamed", "target", "cut", "kept"].map(name);
        for file in [&linked, &renamed, &cut] {
            put(&nested, file, "old")?;
        }
        fs::hard_link(nested.join(&linked), nested.join(name("old")))?;
        fs::hard_link(nested.join(&renamed), nested.join(&target))?;
        fs::hard_link(nested.join(&cut), nested.join(&kept))?;

        for file in [&linked, &renamed, &target, &cut] {
            assert_eq!(one.does(&format!("look nested/{file}"))?, "3 bytes", "{file}");
        }
        for file in [&linked, &renamed, &cut] {
            put(&nested, file, "newer")?;
        }
        for operation in [
            format!("link nested/{linked} nested/{linked}.link"),
            format!("rename nested/{renamed} nested/{target}"),
            format!("cut nested/{cut} 2"),
        ] {
            assert_eq!(one.does(&operation)?, "done", "{operation}");
        }
        let now = |file: &str| fs::read_to_string(nested.join(file));
        assert_eq!(now(&format!("{linked}.link"))?, "newer");
        assert_eq!(now(&target)?, "newer");
        assert!(!nested.join(&renamed).exists(), "{renamed} is there still");
        assert_eq!((now(&cut)?.as_str(), now(&kept)?.as_str()), ("ne", "old"));
    }
    node.remove("one")?;
    mount.unmount()?;
    node.nothing_left()
}
