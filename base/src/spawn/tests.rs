use std::fs::File;
use std::io::{Read, Seek, Write};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use super::*;

const LIMIT: Duration = Duration::from_secs(60);

fn shell(script: &str) -> Program {
    Program::new("/bin/sh").args(["-c", script])
}

fn said(program: Program) -> Vec<String> {
    let finished = program.run(LIMIT).unwrap();
    assert!(finished.status.success(), "{finished:?}");
    finished.stdout.lines().map(str::to_owned).collect()
}

fn own_score() -> i32 {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    text.trim().parse().unwrap()
}

const SCORE_AND_LIMITS: &str = "cat /proc/self/oom_score_adj; ulimit -c; ulimit -n";

#[test]
fn a_program_has_an_empty_environment_and_nothing_of_this_process() {
    let told = said(shell("wc -c </proc/$$/environ; pwd; readlink /proc/self/fd/0"));
    assert_eq!(told, ["0", "/", "/dev/null"]);
    let told = said(
        shell("tr '\\0' '\\n' </proc/$$/environ")
            .envs([("A", "1")])
            .inherit_envs(&["PATH", "NO_SUCH"]),
    );
    let path = std::env::var("PATH").unwrap();
    assert_eq!(told, ["A=1".to_owned(), format!("PATH={path}")]);
}

#[test]
fn a_program_has_the_score_and_the_limits_that_it_is_given() {
    let own = own_score();
    let before = getrlimit(Resource::Nofile);
    raise_open_files().unwrap();
    let raised = getrlimit(Resource::Nofile).current.unwrap();
    let many = before.maximum.map_or(1 << 16, |hard| hard.min(1 << 16));
    assert_eq!(raised, before.current.unwrap().max(many));
    let told = said(shell(SCORE_AND_LIMITS));
    assert_eq!(
        (&told[0], &told[2]),
        (&own.to_string(), &before.current.unwrap().to_string())
    );
    let accounting = Accounting {
        score: Score::BeforeCaller,
        open_files: OpenFiles::Many,
        core_dumps: CoreDumps::Never,
    };
    // dash counts core files in blocks of 512 bytes.
    let wanted = [(own + 1).min(1000).to_string(), "0".to_owned(), raised.to_string()];
    assert_eq!(said(shell(SCORE_AND_LIMITS).accounting(accounting)), wanted);
    let scored = |score| {
        let accounting = Accounting {
            score,
            ..Accounting::default()
        };
        said(shell("cat /proc/self/oom_score_adj").accounting(accounting))[0].clone()
    };
    assert_eq!(scored(Score::Of(own.max(0) + 7)), (own.max(0) + 7).to_string());
    assert_eq!(scored(Score::NotSpared), own.max(0).to_string());
}

#[test]
fn descriptors_are_passed_under_their_numbers() {
    let file = |text: &str| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        OwnedFd::from(file)
    };
    // The second has most likely the number that the first is to get, or the other way round.
    let (first, second) = (file("first\n"), file("second\n"));
    let told = said(shell("cat <&3; cat <&4").descriptors(vec![second, first]));
    assert_eq!(told, ["second", "first"]);
}

#[test]
fn a_program_leads_a_group_or_a_session() {
    let leads = "set -- $(cut -d')' -f2 /proc/$$/stat); echo $(($3 == $$)) $(($4 == $$))";
    assert_eq!(said(shell(leads)), ["1 0"]);
    assert_eq!(said(shell(leads).session()), ["1 1"]);
}

#[test]
fn the_end_of_a_flood_is_kept_and_a_daemon_that_keeps_the_streams_is_not_waited_for() {
    let script = "head -c 10000000 /dev/zero | tr '\\0' x >&2; echo end >&2; sleep 600 & echo $!; exit 3";
    let began = Instant::now();
    let finished = shell(script).run(LIMIT).unwrap();
    assert!(began.elapsed() < LIMIT);
    assert_eq!(finished.status.code(), Some(3));
    assert!(finished.stderr.ends_with("xend") && finished.stderr.len() < 300_000);
    let daemon = finished
        .stdout
        .parse()
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .unwrap();
    rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_program_that_hangs_is_killed_with_its_group() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    // The child has the FIFO open until it is killed.
    let script = format!("echo hangs >&2; sleep 600 >{} & wait", fifo.display());
    let reads = std::thread::spawn(move || File::open(fifo).unwrap().read_to_end(&mut Vec::new()).unwrap());
    let error = shell(&script).run(Duration::from_secs(5)).unwrap_err();
    assert_eq!(error.to_string(), "did not end within 5 s and was killed: hangs");
    assert_eq!(reads.join().unwrap(), 0);
}

#[test]
fn a_program_that_is_not_there_is_an_error() {
    let error = Program::new("/nonexistent").run(LIMIT).unwrap_err();
    assert!(matches!(error, RunError::Start(_)), "{error}");
}
