//! Real programs, this machine's own, do in a container what they do here.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use framework::{
    HostMount, Node, Result,
    programs::{self, BASH, GCC, GIT, MAKE, PERL, PYTHON, TAIL, TAR},
};
use rustix::mount::MountFlags;

const LIMIT: Duration = Duration::from_secs(240);

#[test]
fn a_shell_a_version_control_system_and_an_interpreter_work_on_a_volume() -> Result<()> {
    let node = Node::start()?;
    let volume = node.dir().join("volume");
    fs::create_dir(&volume)?;
    let spec = node
        .spec("programs", &["sleep", "1000"])?
        .bind(&volume, "/work", &["rw"])?;
    programs::add(&spec.root(), &[BASH, GIT, PYTHON])?;
    node.run_spec("programs", &spec)?.arg("-d").ok()?;
    let bash = |exec: &str, script: &str| {
        let exec = node.exec("programs", exec).limit(LIMIT);
        exec.program(["/usr/bin/bash", "-euc", script]).ok()
    };
    assert_eq!(bash("array", "a=(1 2 3); echo ${#a[@]} ${a[@]:1}")?, "3 2 3\n");

    let repository = "export HOME=/tmp GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b; \
                      git() { /usr/bin/git -c gc.auto=0 -c maintenance.auto=false \"$@\"; }; cd /work; git init -q --template= -b main r; cd r; \
                      for i in 1 2 3; do echo $i > f$i; git add .; git commit -q -m c$i; done; echo changed > f2; \
                      git log --format=%s; git status --porcelain; git show HEAD~1:f2";
    assert_eq!(bash("git", repository)?, "c3\nc2\nc1\n M f2\n2\n");
    // The host reads the same repository.
    assert_eq!(fs::read_to_string(volume.join("r/f2"))?, "changed\n");

    let script = "import json, sqlite3, hashlib, tempfile, os\n\
                  base = sqlite3.connect('/work/base.db')\n\
                  base.execute('create table t(n integer)')\n\
                  with base: base.executemany('insert into t values (?)', [(n,) for n in range(1000)])\n\
                  total = sqlite3.connect('/work/base.db').execute('select sum(n) from t').fetchone()[0]\n\
                  with tempfile.NamedTemporaryFile(dir='/work') as file:\n    \
                      file.write(b'x' * 100000); file.flush()\n    \
                      size = os.stat(file.name).st_size\n\
                  print(json.dumps([total, size, hashlib.sha256(b'a').hexdigest()[:8]]))\n";
    fs::write(volume.join("script.py"), script)?;
    for exec in ["python1", "python2"] {
        if exec == "python2" {
            fs::remove_file(volume.join("base.db"))?;
        }
        let said = bash(exec, "/usr/bin/python3 -S /work/script.py")?;
        assert_eq!(said, "[499500, 100000, \"ca978112\"]\n");
    }
    node.remove("programs")?;
    node.nothing_left()
}

#[test]
fn a_database_whose_writer_gets_sigkill_with_its_container_has_every_acknowledged_row() -> Result<()> {
    let node = Node::start()?;
    let volume = node.dir().join("volume");
    fs::create_dir(&volume)?;
    let writer = "import sqlite3\n\
                  base = sqlite3.connect('/work/base.db', isolation_level=None)\n\
                  base.execute('pragma journal_mode=wal'); base.execute('pragma synchronous=full')\n\
                  base.execute('create table t(n integer)')\n\
                  for n in range(1, 1000000):\n    \
                      base.execute('insert into t values (?)', (n,)); print(n, flush=True)\n";
    let reader = "import sqlite3, sys\n\
                  base = sqlite3.connect('/work/base.db')\n\
                  rows = base.execute('select count(*), max(n) from t').fetchone()\n\
                  print(rows[0] == rows[1] >= int(sys.argv[1]), base.execute('pragma integrity_check').fetchone()[0])\n";
    fs::write(volume.join("writer.py"), writer)?;
    fs::write(volume.join("reader.py"), reader)?;
    let python = |name: &str, script: &str, argument: &str| {
        let path = format!("/work/{script}.py");
        let spec = node.spec(name, &["/usr/bin/python3", "-S", &path, argument])?;
        let spec = spec.bind(&volume, "/work", &["rw"])?;
        programs::add(&spec.root(), &[PYTHON])?;
        node.run_spec(name, &spec)
    };
    let running = python("writer", "writer", "")?.limit(LIMIT).spawn()?;
    running.shows("\n100\n")?;
    node.task("kill", "writer").args(["--signal", "9"]).ok()?;
    let said = running.wait()?.code(137)?.stdout();
    let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let acknowledged = whole.lines().last().unwrap_or_default();
    node.discard("writer")?;
    let read = python("reader", "reader", acknowledged)?.arg("--rm").limit(LIMIT);
    assert_eq!(read.ok()?, "True ok\n", "acknowledged: {acknowledged}");
    node.nothing_left()
}

#[test]
fn a_compiler_under_make_an_archiver_and_sockets_locks_and_pipes_work_on_a_volume() -> Result<()> {
    let node = Node::start()?;
    let volume = node.dir().join("volume");
    fs::create_dir(&volume)?;
    let spec = node
        .spec("build", &["sleep", "1000"])?
        .set("/process/env", serde_json::json!(["PATH=/usr/bin:/bin", "LC_ALL=C"]))?
        .bind(&volume, "/work", &["rw"])?;
    programs::add(&spec.root(), &[BASH, GCC, MAKE, TAR, PERL])?;
    node.run_spec("build", &spec)?.arg("-d").ok()?;
    let bash = |exec: &str, script: &str| {
        let exec = node.exec("build", exec).limit(LIMIT);
        exec.program(["/usr/bin/bash", "-euc", script]).ok()
    };

    // Times that only the file system's resolution tells apart: make has to see which file is newer.
    let makefile = "all: a.o b.o\n%.o: %.c all.h\n\tgcc -I. -c $<\n\t@echo made $@\n";
    fs::write(volume.join("Makefile"), makefile)?;
    let build = "cd /work; echo 'int f(void);' > all.h; for f in a b; do echo '#include \"all.h\"' > $f.c; echo \"int $f(void) { return f(); }\" >> $f.c; done; \
                 make -s; make -s; echo '/* */' >> b.c; make -s; touch all.h; make -s -j2 | sort";
    assert_eq!(
        bash("make", build)?,
        "made a.o\nmade b.o\nmade b.o\nmade a.o\nmade b.o\n"
    );

    let archive = "cd /work; mkdir from to; echo text > from/file; ln from/file from/hard; ln -s file from/soft; mkfifo from/fifo; \
                   truncate -s 1G from/sparse; chown 1234:4321 from/file; chmod 4750 from/file; touch -d '2001-02-03 04:05:06' from/file; \
                   tar -C from --sparse -cf - . | tar -C to -xpf -; \
                   cd to; stat -c '%n %u:%g %a %h %Y' file hard; readlink soft; stat -c '%F %s' fifo sparse; [ $(stat -c %b sparse) -lt 1000 ] && echo thin";
    let wanted = "file 1234:4321 4750 2 981173106\nhard 1234:4321 4750 2 981173106\nfile\nfifo 0\nregular file 1073741824\nthin\n";
    assert_eq!(bash("tar", archive)?, wanted);

    let perl = "use strict; use Socket; use Fcntl qw(:flock);\n\
                socketpair(my $here, my $there, AF_UNIX, SOCK_STREAM, 0) or die;\n\
                socket(my $server, AF_UNIX, SOCK_STREAM, 0) or die; bind($server, sockaddr_un('/work/socket')) or die; listen($server, 5);\n\
                open(my $lock, '>', '/work/lock') or die; flock($lock, LOCK_EX) or die;\n\
                my $pid = fork;\n\
                if (!$pid) { close $here; socket(my $c, AF_UNIX, SOCK_STREAM, 0); connect($c, sockaddr_un('/work/socket')) or die;\n  \
                    syswrite($c, 'by the socket '); open(my $l, '>>', '/work/lock'); syswrite($there, flock($l, LOCK_EX | LOCK_NB) ? 'free' : 'locked'); exit 7 }\n\
                close $there; accept(my $c, $server) or die; sysread($c, my $said, 100); sysread($here, my $locked, 100); waitpid($pid, 0);\n\
                print $said, $locked, ' ', $? >> 8, ' ', join(',', map { open(my $p, '-|', \"echo $_\"); my $x = <$p>; chomp $x; $x } 1..5), \"\\n\";\n";
    fs::write(volume.join("script.pl"), perl)?;
    assert_eq!(
        bash("perl", "perl /work/script.pl")?,
        "by the socket locked 7 1,2,3,4,5\n"
    );
    node.remove("build")?;
    node.nothing_left()
}

/// Commits rows, and says each number once its commit has returned.
const WRITER: &str = "import sqlite3, sys
base = sqlite3.connect(sys.argv[1], isolation_level=None)
base.execute('pragma journal_mode=wal')
base.execute('create table t(n integer)')
n = 0
while True:
    n += 1
    base.execute('insert into t values (?)', [n])
    print(n, flush=True)
";
/// Opens the database, counts, and closes it, which is when SQLite may remove the log.
const SIDECAR: &str = "import sqlite3, sys
for turn in range(int(sys.argv[2])):
    base = sqlite3.connect(sys.argv[1], timeout=60)
    rows = base.execute('select count(*), max(n) from t').fetchone()
    check = base.execute('pragma integrity_check').fetchone()[0]
    base.close()
print(*rows, check)
";
/// Rows before the writer is killed.
const ROWS: usize = 100;

#[test]
fn a_database_with_a_sidecar_has_every_row_that_was_acknowledged_before_its_writer_was_killed() -> Result<()> {
    let node = Node::start()?;
    let scripts = node.dir().join("scripts");
    fs::create_dir(&scripts)?;
    fs::write(scripts.join("writer.py"), WRITER)?;
    fs::write(scripts.join("sidecar.py"), SIDECAR)?;
    // What the kubelet has by this name is in the guest's memory if it is a tmpfs, and else on the disk.
    let empty_dirs = node.dir().join("kubernetes.io~empty-dir");
    let (disk, memory, host) = (
        empty_dirs.join("disk"),
        empty_dirs.join("memory"),
        node.dir().join("host"),
    );
    fs::create_dir_all(&disk)?;
    fs::create_dir(&host)?;
    let mounted = HostMount::new(&memory, MountFlags::empty())?;
    let pod = node.spec("pod", &["sleep", "100000"])?.of_pod(&node, "sandbox")?;
    node.run_spec("pod", &pod)?.arg("-d").ok()?;
    for name in ["application", "sidecar"] {
        let mut spec = node.spec(name, &["sleep", "100000"])?.of_pod(&node, "container")?;
        programs::add(&spec.root(), &[PYTHON])?;
        let volumes: [(&Path, &str, &str); 4] = [
            (&scripts, "/scripts", "ro"),
            (&disk, "/disk", "rw"),
            (&memory, "/memory", "rw"),
            (&host, "/host", "rw"),
        ];
        for (source, destination, option) in volumes {
            spec = spec.bind(source, destination, &[option])?;
        }
        node.run_spec(name, &spec)?.arg("-d").ok()?;
    }
    for volume in ["disk", "memory", "host"] {
        let base = format!("/{volume}/base.db");
        let python = |name: &str, exec: &str, script: &str, arguments: &[&str]| {
            let words = ["/usr/bin/python3", "-S", script]
                .into_iter()
                .chain(arguments.iter().copied());
            node.exec(name, &format!("{exec}-{volume}")).program(words).limit(LIMIT)
        };
        let writer = python("application", "writer", "/scripts/writer.py", &[&base]).spawn()?;
        writer.shows("\n5\n")?;
        python("sidecar", "beside", "/scripts/sidecar.py", &[&base, "10"]).ok()?;
        writer.shows(&format!("\n{ROWS}\n"))?;
        let kill = node.task("kill", "application");
        kill.args(["--exec-id", &format!("writer-{volume}"), "--signal", "9"])
            .ok()?;
        let acknowledged = writer.wait()?.stdout().lines().count();
        assert!(acknowledged >= ROWS, "{volume}: {acknowledged}");
        let found = python("sidecar", "after", "/scripts/sidecar.py", &[&base, "1"]).ok()?;
        // One more can be there: committed, and not yet said.
        let right = [acknowledged, acknowledged + 1].map(|rows| format!("{rows} {rows} ok\n"));
        assert!(right.contains(&found), "{volume}: {acknowledged} acknowledged, {found}");
    }
    for name in ["sidecar", "application", "pod"] {
        node.remove(name)?;
    }
    mounted.unmount()?;
    node.nothing_left()
}

/// tail(1) takes FUSE for a remote file system: it polls, and looks for a new file by the name only when the old one has not grown
/// for some polls. The remedy of docs/mounts.md is to poll more often.
#[test]
fn a_log_that_is_rotated_twice_within_seconds_is_followed_without_a_gap() -> Result<()> {
    const LINES: usize = 40;
    const ROTATED: [usize; 2] = [13, 26];
    let node = Node::start()?;
    let logs = node.dir().join("logs");
    fs::create_dir(&logs)?;
    let log = logs.join("log");
    fs::write(&log, "")?;
    let spec = node.spec("tail", &["sleep", "1000"])?.bind(&logs, "/logs", &["rw"])?;
    programs::add(&spec.root(), &[TAIL])?;
    node.run_spec("tail", &spec)?.arg("-d").ok()?;
    let follow = "echo following; exec /usr/bin/tail -n +1 -F -s 0.2 --max-unchanged-stats=1 /logs/log";
    let following = node.exec("tail", "follow").sh(follow).limit(LIMIT).spawn()?;
    following.shows("following")?;
    // The program itself is started after that: it has the file when it shows a line.
    fs::write(&log, "line 0 \n")?;
    following.shows("line 0 ")?;
    // Each line at its time, not after a pause.
    let begun = Instant::now();
    for number in 1..LINES {
        let at = Duration::from_millis(150) * u32::try_from(number).unwrap_or_default();
        std::thread::sleep(at.saturating_sub(begun.elapsed()));
        if ROTATED.contains(&number) {
            // A machine may stand still for the seconds between two rotations: a file that was never open is a gap on any file system.
            let first = ROTATED
                .into_iter()
                .filter(|rotated| *rotated < number)
                .max()
                .unwrap_or(0);
            following.shows(&format!("line {first} "))?;
            fs::rename(&log, logs.join(format!("log.{number}")))?;
        }
        let mut file = fs::File::options().append(true).create(true).open(&log)?;
        std::io::Write::write_all(&mut file, format!("line {number} \n").as_bytes())?;
    }
    following.shows(&format!("line {} ", LINES - 1))?;
    let said = following.said();
    let missing: Vec<usize> = (0..LINES)
        .filter(|number| !said.contains(&format!("line {number} \n")))
        .collect();
    assert!(missing.is_empty(), "{missing:?} are missing");
    node.task("kill", "tail")
        .args(["--exec-id", "follow", "--signal", "9"])
        .ok()?;
    following.wait()?;
    node.remove("tail")?;
    node.nothing_left()
}
