//! Who opens a file sees what was written to it before, by the host or by another container, however soon before. Each kind of
//! change is made a hundred times, and the container looks as soon as it is told.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use framework::{
    Node, Result, Running, Runtime, Spec,
    disk::run,
    programs::{self, PYTHON},
};

/// How often each change is made.
const TIMES: usize = 100;
/// Timeout for a hundred looks of an emulated guest on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);
/// Until what a container has read is closed on the host: six seconds, on a busy machine.
const GRANTED: Duration = Duration::from_secs(30);
/// Prints what is in each file that it is told of.
const READER: &str = "exec 9</data/held; n=0; while read -r file; do n=$((n+1)); \
                      printf '%s<%s>\\n' \"$(cat \"$file\" 2>/dev/null || echo none)\" $n; done";

/// Prints the names in each directory that it is told of, of one that stays open from the beginning as well.
const LISTER: &str = "import os, sys\nheld = os.open('/data/many', os.O_RDONLY)\nfor line in sys.stdin:\n    \
                      n, directory = line.split()\n    one, two = sorted(os.listdir(directory + '/.')), sorted(os.listdir(held))\n    \
                      print(len(one), one == two, one[-1], f'<{n}>', flush=True)\n";

/// A program in a container that reads files when it is told to.
struct Reader {
    running: Running,
    wanted: Vec<String>,
}

impl Reader {
    fn start(node: &Node, name: &str, spec: &Spec) -> Result<Self> {
        let running = node.run_spec(name, spec)?.arg("--rm").limit(LIMIT).spawn()?;
        Ok(Self {
            running,
            wanted: Vec::new(),
        })
    }

    /// Has it read a file now, and remembers what has to be in it.
    fn reads(&mut self, file: &str, wanted: &str) -> Result<()> {
        self.wanted.push(wanted.to_owned());
        self.running.write(format!("{file}\n").as_bytes())?;
        // The end of the answer's line: its beginning may be in an earlier answer.
        self.running.shows(&format!("<{}>\n", self.wanted.len()))
    }

    fn end(mut self) -> Result<Vec<String>> {
        self.running.close_stdin();
        let said = self.running.wait()?.success()?.stdout();
        let wanted = self.wanted.iter().enumerate();
        let expected = wanted.map(|(number, wanted)| format!("{wanted}<{}>", number + 1));
        let wrong = expected.zip(said.lines().map(Some).chain(std::iter::repeat(None)));
        Ok(wrong
            .filter(|(wanted, got)| Some(wanted.as_str()) != *got)
            .map(|(wanted, got)| format!("{wanted} was {got:?}"))
            .collect())
    }
}

/// A directory of the host with a file that the reader holds open.
fn volume(node: &Node) -> Result<PathBuf> {
    let volume = node.dir().join("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("held"), "held")?;
    fs::write(volume.join("alone"), "alone")?;
    Ok(volume)
}

fn reader_of(node: &Node, name: &str, volume: &Path) -> Result<Spec> {
    node.spec(name, &["sh", "-c", READER])?
        .bind(volume, "/data", &["rw"])?
        .bind(&volume.join("alone"), "/alone", &["ro"])
}

fn write_beside(volume: &Path, name: &str, content: &str) -> Result<()> {
    fs::write(volume.join("beside"), content)?;
    fs::rename(volume.join("beside"), volume.join(name))?;
    Ok(())
}

/// Makes a change a hundred times and has the reader look at once.
fn is_seen(change: impl Fn(&Path, &mut Reader, usize) -> Result<()>) -> Result<()> {
    let node = Node::start()?;
    let volume = volume(&node)?;
    let mut reader = Reader::start(&node, "reader", &reader_of(&node, "reader", &volume)?)?;
    for number in 0..TIMES {
        change(&volume, &mut reader, number)?;
    }
    let wrong = reader.end()?;
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), TIMES);
    node.nothing_left()
}

#[test]
fn a_file_that_is_written_anew_in_the_same_size_is_read_as_it_is_now() -> Result<()> {
    is_seen(|volume, reader, number| {
        let content = format!("content {number:06}");
        fs::write(volume.join("same"), &content)?;
        reader.reads("/data/same", &content)
    })
}

/// Faster than the steps of the host's timestamps: of two changes in one step the second shows in no attribute.
#[test]
fn a_file_that_is_written_twice_at_once_is_read_as_it_is_now_both_times() -> Result<()> {
    is_seen(|volume, reader, number| {
        for half in ["first ", "second"] {
            let content = format!("{half} {number:06}");
            fs::write(volume.join("twice"), &content)?;
            reader.reads("/data/twice", &content)?;
        }
        Ok(())
    })
}

#[test]
fn a_file_that_grows_and_shrinks_is_read_as_it_is_now() -> Result<()> {
    is_seen(|volume, reader, number| {
        let content = "x".repeat((number * 977) % 9000 + 1);
        fs::write(volume.join("size"), &content)?;
        reader.reads("/data/size", &content)
    })
}

#[test]
fn a_file_that_another_one_is_renamed_over_is_the_new_one() -> Result<()> {
    is_seen(|volume, reader, number| {
        let content = format!("renamed {number:06}");
        write_beside(volume, "renamed", &content)?;
        reader.reads("/data/renamed", &content)
    })
}

#[test]
fn a_file_comes_and_goes_at_once() -> Result<()> {
    is_seen(|volume, reader, number| {
        let content = format!("there {number:06}");
        fs::write(volume.join("now and then"), &content)?;
        reader.reads("/data/now and then", &content)?;
        fs::remove_file(volume.join("now and then"))?;
        reader.reads("/data/now and then", "none")
    })
}

#[test]
fn a_link_that_another_one_is_renamed_over_leads_to_the_new_file() -> Result<()> {
    is_seen(|volume, reader, number| {
        let target = format!("target{number}");
        fs::write(volume.join(&target), &target)?;
        symlink(&target, volume.join("new link"))?;
        fs::rename(volume.join("new link"), volume.join("link"))?;
        reader.reads("/data/link", &target)
    })
}

/// No name is looked up there that could be asked for: the file is the one that is open, or is mounted itself.
#[test]
fn a_file_that_is_opened_without_its_name_is_read_as_it_is_now() -> Result<()> {
    is_seen(|volume, reader, number| {
        let content = format!("nameless {number:06}");
        fs::write(volume.join("held"), &content)?;
        reader.reads("/proc/self/fd/9", &content)?;
        fs::write(volume.join("alone"), &content)?;
        reader.reads("/alone", &content)
    })
}

/// A program that runs is not one that was written to: it is put in the place of the old one.
#[test]
fn a_program_that_is_replaced_is_started_as_it_is_now() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    let node = Node::start()?;
    let volume = volume(&node)?;
    let runs = "while read -r file; do \"$file\"; done";
    let spec = node
        .spec("runner", &["sh", "-c", runs])?
        .bind(&volume, "/data", &["rw"])?;
    let mut running = node.run_spec("runner", &spec)?.arg("--rm").limit(LIMIT).spawn()?;
    for number in 0..TIMES {
        let beside = volume.join("beside");
        fs::write(&beside, format!("#!/bin/sh\necho version {number}:\n"))?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o755))?;
        fs::rename(&beside, volume.join("program"))?;
        running.write(b"/data/program\n")?;
        running.shows(&format!("version {number}:\n"))?;
    }
    running.close_stdin();
    running.wait()?.success()?;
    node.nothing_left()
}

/// What the container writes itself it reads itself, and so does the host, however it is cached.
/// Names that come, go and take the place of others, in a directory that is listed again and again, and the last of them at once
/// after a listing.
#[test]
fn a_directory_is_listed_as_it_is_now() -> Result<()> {
    let node = Node::start()?;
    let volume = volume(&node)?;
    let many = volume.join("many");
    fs::create_dir(&many)?;
    for number in 0..50 {
        fs::write(many.join(format!("{number:03}")), "")?;
    }
    let spec = node
        .spec("c", &[PYTHON.path, "-Sc", LISTER])?
        .bind(&volume, "/data", &["ro"])?;
    programs::add(&spec.root(), &[PYTHON])?;
    let mut lister = node.run_spec("c", &spec)?.arg("--rm").limit(LIMIT).spawn()?;
    let (mut count, mut last, mut wanted) = (50, "049".to_owned(), String::new());
    for round in 0..TIMES {
        match round % 4 {
            0 => {
                last = format!("{:03}", 100 + round);
                fs::write(many.join(&last), "")?;
                count += 1;
            }
            1 => {
                let next = format!("{:03}", 100 + round);
                fs::rename(many.join(&last), many.join(&next))?;
                last = next;
            }
            // As it was.
            2 => {}
            _ => {
                fs::remove_file(many.join(&last))?;
                last = "049".to_owned();
                count -= 1;
            }
        }
        lister.write(format!("{round} /data/many\n").as_bytes())?;
        lister.shows(&format!("<{round}>\n"))?;
        wanted += &format!("{count} True {last} <{round}>\n");
    }
    lister.close_stdin();
    assert_eq!(lister.wait()?.success()?.stdout(), wanted);
    node.nothing_left()
}

/// Directories that a kernel makes up do not say that a name has come: they have no size.
#[test]
fn a_directory_without_a_size_is_listed_as_it_is_now() -> Result<()> {
    let node = Node::start()?;
    let made = Made::mount(&node.dir().join("made"), &node.id("listed"))?;
    let spec = node
        .spec("c", &[PYTHON.path, "-Sc", LISTER])?
        .bind(&made.0, "/data/many", &["ro"])?;
    programs::add(&spec.root(), &[PYTHON])?;
    let mut lister = node.run_spec("c", &spec)?.arg("--rm").limit(LIMIT).spawn()?;
    let (mut names, mut counts) = (0, Vec::new());
    for round in 0..20 {
        match round % 4 {
            0 | 1 => {
                fs::create_dir(made.0.join(format!("{names}")))?;
                names += 1;
            }
            2 => {}
            _ => {
                names -= 1;
                fs::remove_dir(made.0.join(format!("{names}")))?;
            }
        }
        counts.push(fs::read_dir(&made.0)?.count());
        lister.write(format!("{round} /data/many\n").as_bytes())?;
        lister.shows(&format!("<{round}>\n"))?;
    }
    lister.close_stdin();
    let said = lister.wait()?.success()?.stdout();
    let listed = said
        .lines()
        .map(|line| line.split(' ').next().and_then(|count| count.parse().ok()));
    let listed: Option<Vec<usize>> = listed.collect();
    assert_eq!(listed, Some(counts), "{said}");
    drop(made);
    node.nothing_left()
}

/// A directory of the kernel's: a cgroup, in a mount of its own.
struct Made(PathBuf, PathBuf);

impl Made {
    fn mount(at: &Path, name: &str) -> Result<Self> {
        fs::create_dir(at)?;
        run("mount", &["-t", "cgroup2", "none", &at.display().to_string()])?;
        fs::create_dir(at.join(name))?;
        Ok(Self(at.join(name), at.to_owned()))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(&self.0);
        let _ = run("umount", &[&self.1.display().to_string()]);
    }
}

#[test]
fn what_a_container_writes_it_reads_and_the_host_as_well() -> Result<()> {
    let node = Node::start()?;
    let volume = volume(&node)?;
    let script = "i=0; while [ $i -lt 100 ]; do echo own $i > /data/own; [ \"$(cat /data/own)\" = \"own $i\" ] || echo wrong $i; \
                  echo more >> /data/own; [ \"$(tail -n 1 /data/own)\" = more ] || echo cut $i; \
                  cp /data/own /data/copy; mv /data/copy /data/moved; cmp /data/own /data/moved || echo moved $i; i=$((i+1)); done";
    let spec = node
        .spec("writer", &["sh", "-c", script])?
        .bind(&volume, "/data", &["rw"])?;
    let said = node.run_spec("writer", &spec)?.arg("--rm").limit(LIMIT).ok()?;
    assert_eq!(said, "");
    assert_eq!(fs::read_to_string(volume.join("own"))?, "own 99\nmore\n");
    node.nothing_left()
}

mod kata_only {
    use super::*;

    /// CRI's annotations for a container of the sandbox `pod`.
    fn member(node: &Node, spec: Spec, kind: &str) -> Result<Spec> {
        spec.of_pod(node, kind)
    }

    #[test]
    fn one_container_of_a_pod_reads_what_another_wrote_before() -> Result<()> {
        let node = Node::start()?;
        let volume = volume(&node)?;
        let pod = node.spec("pod", &["sleep", "1000"])?;
        node.run_spec("pod", &member(&node, pod, "sandbox")?)?.arg("-d").ok()?;
        // It says that it has written when it has closed the file, as any program tells another.
        let writes = "while read -r number; do echo content $number > /data/told; echo $number > /data/beside; \
                      mv /data/beside /data/replaced; echo wrote $number:; done";
        let writer = node
            .spec("writer", &["sh", "-c", writes])?
            .bind(&volume, "/data", &["rw"])?;
        let writer = member(&node, writer, "container")?;
        let mut writer = node.run_spec("writer", &writer)?.arg("--rm").limit(LIMIT).spawn()?;
        let reader = member(&node, reader_of(&node, "app", &volume)?, "container")?;
        let mut reader = Reader::start(&node, "app", &reader)?;
        for number in 0..TIMES {
            writer.write(format!("{number}\n").as_bytes())?;
            writer.shows(&format!("wrote {number}:"))?;
            reader.reads("/data/told", &format!("content {number}"))?;
            reader.reads("/data/replaced", &number.to_string())?;
        }
        let wrong = reader.end()?;
        assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), 2 * TIMES);
        writer.close_stdin();
        writer.wait()?.success()?;
        node.remove("pod")?;
        node.nothing_left()
    }
}

/// Prints the permitted capabilities of a program in the volume at each line that it reads.
const STARTER: &str = "n=0; while read -r _; do n=$((n+1)); set -- $(/data/cat /proc/self/status | grep CapPrm); \
                       printf '%s<%s>\\n' \"$2\" $n; done";

const CAPABILITY: &str = "security.capability";
const NET_RAW: u32 = 1 << 13;

/// struct vfs_cap_data of linux/capability.h: revision 2, effective; permitted, inheritable, and the upper halves.
fn net_raw() -> Vec<u8> {
    let words = [0x0200_0001, NET_RAW, 0, 0, 0];
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

fn give_net_raw(file: &Path) -> Result<()> {
    rustix::fs::setxattr(file, CAPABILITY, &net_raw(), rustix::fs::XattrFlags::empty())
        .map_err(std::io::Error::from)?;
    Ok(())
}

/// execve(2) asks for the attribute that says which capabilities a file has, and the guest need not ask the host each time.
#[test]
fn a_program_has_the_capabilities_that_the_host_gives_its_file() -> Result<()> {
    let node = Node::start()?;
    let volume = volume(&node)?;
    let spec = node
        .spec("starter", &["sh", "-c", STARTER])?
        .set("/process/noNewPrivileges", false)?
        .set("/process/user/uid", 1000)?
        .bind(&volume, "/data", &["rw"])?;
    let program = volume.join("cat");
    fs::copy(spec.root().join("bin/busybox"), &program)?;
    let mut starter = Reader::start(&node, "starter", &spec)?;
    for _ in 0..TIMES / 10 {
        // Often enough for the guest to know that there is none.
        for _ in 0..5 {
            starter.reads("", "0000000000000000")?;
        }
        give_net_raw(&program)?;
        starter.reads("", &format!("{NET_RAW:016x}"))?;
        rustix::fs::removexattr(&program, CAPABILITY).map_err(std::io::Error::from)?;
    }
    starter.reads("", "0000000000000000")?;
    let wrong = starter.end()?;
    assert!(wrong.is_empty(), "{} starts: {wrong:#?}", wrong.len());
    node.nothing_left()
}

/// The guest does not ask for them before it writes: the host's kernel takes them away.
#[test]
fn a_file_loses_its_capabilities_when_a_container_writes_to_it() -> Result<()> {
    let node = Node::start()?;
    let volume = volume(&node)?;
    let spec = node
        .spec("writer", &["sleep", "100000"])?
        .bind(&volume, "/data", &["rw"])?;
    node.run_spec("writer", &spec)?.arg("-d").ok()?;
    let has = |file: &Path| rustix::fs::getxattr(file, CAPABILITY, &mut [0; 32][..]).is_ok();
    let ways = [
        ("append", "echo more >> /data/append"),
        ("anew", "echo new > /data/anew"),
        ("emptied", ": > /data/emptied"),
        ("truncated", "truncate -s 3 /data/truncated"),
        ("inside", "echo x | dd of=/data/inside conv=notrunc"),
    ];
    for (name, script) in ways {
        let file = volume.join(name);
        fs::write(&file, "content")?;
        give_net_raw(&file)?;
        // The guest has seen it with them.
        let look = format!("cat /data/{name} > /dev/null; {script}");
        node.exec("writer", name).sh(&look).ok()?;
        assert!(!has(&file), "{name} has its capabilities still");
    }
    // A set-user-ID bit goes, too, as the writer has no CAP_FSETID.
    let bits = "chmod 4755 /data/append; echo more >> /data/append; stat -c %a /data/append";
    assert_eq!(node.exec("writer", "bits").sh(bits).ok()?, "755\n");
    node.remove("writer")?;
    node.nothing_left()
}

/// Takes a write lease of a file and lets go of it; ends with 1 if it is refused.
const LEASE: &str = "import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
except BlockingIOError:
    sys.exit(1)
";

/// virtiofsd keeps what was read open for the next reader, for some seconds.
#[test]
fn the_host_gets_a_write_lease_of_a_file_some_seconds_after_it_was_read() -> Result<()> {
    let node = Node::start()?;
    let volume = volume(&node)?;
    fs::write(volume.join("leased"), "content")?;
    let spec = node
        .spec("reader", &["sleep", "100000"])?
        .bind(&volume, "/data", &["rw"])?;
    node.run_spec("reader", &spec)?.arg("-d").ok()?;
    let lease = || -> Result<bool> {
        let mut python = Command::new("python3");
        let status = python.args(["-c", LEASE]).arg(volume.join("leased")).status()?;
        match status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => Err(std::io::Error::other(format!("python3: {status}")).into()),
        }
    };
    assert!(lease()?, "before it was read");
    // So often that one of the reads is less than five seconds ago, whatever else the machine does.
    let mut refused = false;
    for number in 0..10 {
        node.exec("reader", &format!("read{number}"))
            .program(["cat", "/data/leased"])
            .ok()?;
        refused = !lease()?;
        if refused {
            break;
        }
    }
    assert_eq!(refused, node.runtime() == Runtime::Kata);
    let begun = Instant::now();
    while !lease()? {
        assert!(begun.elapsed() < GRANTED, "it is refused still");
        std::thread::sleep(Duration::from_millis(100));
    }
    node.remove("reader")?;
    node.nothing_left()
}
