//! How long programs take to start from one directory and from another, and how long two programs take that have a file in turns.

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::{
        fs::chroot,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    process::Command,
    time::Instant,
};

use serde_json::{Map, Value, json};

use crate::error::Result;

/// `guest-probe times root|in ROUNDS COUNT DIR,DIR… PROGRAM…`: prints an object from each directory to the seconds that one run of
/// the program takes there, the best of the rounds, in which the directories take turns. `root`: the directory is the
/// program's root. `in`: it is its working directory. A first round, by which caches are filled, does not count.
pub(crate) fn times(how: &str, rounds: &str, count: &str, directories: &str, program: &[&str]) -> Result<()> {
    let mut best = Map::new();
    for round in 0..=rounds.parse::<u32>()? {
        for directory in directories.split(',') {
            let mut command = Command::new("/proc/self/exe");
            let output = command.args(["time", how, count, directory]).args(program).output()?;
            if !output.status.success() {
                return Err(format!("{program:?} in {directory}: {output:?}").into());
            }
            let took: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
            let best = best.entry(directory).or_insert(json!(took));
            if round < 2 || best.as_f64().is_some_and(|best| took < best) {
                *best = json!(took);
            }
        }
    }
    println!("{}", Value::Object(best));
    Ok(())
}

/// One directory's part of a round.
pub(crate) fn time(how: &str, count: &str, directory: &str, program: &[&str]) -> Result<()> {
    let [name, arguments @ ..] = program else {
        return Err("no program".into());
    };
    let count: u32 = count.parse()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    match how {
        "root" => {
            chroot(directory)?;
            env::set_current_dir("/")?;
        }
        "in" => env::set_current_dir(directory)?,
        other => return Err(format!("a program is run with a directory as its root or in it, not {other}").into()),
    }
    let began = Instant::now();
    for _ in 0..count {
        let mut command = Command::new(name);
        let status = command
            .args(arguments)
            .stdin(null.try_clone()?)
            .stdout(null.try_clone()?)
            .status()?;
        if !status.success() {
            return Err(format!("{program:?}: {status}").into());
        }
    }
    println!("{}", began.elapsed().as_secs_f64() / f64::from(count));
    Ok(())
}

/// `guest-probe turns serve DIR…`: answers each turn of `call` in each directory, in this order.
pub(crate) fn serve_turns(directories: &[&str]) -> Result<()> {
    let mut listeners = Vec::new();
    for directory in directories {
        listeners.push((
            UnixListener::bind(Path::new(directory).join("socket"))?,
            Path::new(directory),
        ));
    }
    println!("serving");
    for (listener, directory) in listeners {
        let (stream, _) = listener.accept()?;
        let mut answers = stream.try_clone()?;
        for turn in BufReader::new(stream).lines() {
            let turn = turn?;
            let found = fs::read_to_string(directory.join("file"))?;
            if found != turn {
                return Err(format!("in {}: {found} in place of {turn}", directory.display()).into());
            }
            fs::write(directory.join("file"), format!("answer to {turn}"))?;
            writeln!(answers, "done")?;
        }
    }
    Ok(())
}

/// `guest-probe turns call COUNT DIR…`: writes a file, has the other one read and rewrite it, and reads it. Prints an object
/// from each directory to turns a second. What is read stale is an error.
pub(crate) fn call_turns(count: &str, directories: &[&str]) -> Result<()> {
    let count: u32 = count.parse()?;
    let mut rates = Map::new();
    for directory in directories {
        let file = Path::new(directory).join("file");
        let mut stream = UnixStream::connect(Path::new(directory).join("socket"))?;
        let mut answers = BufReader::new(stream.try_clone()?);
        let began = Instant::now();
        for number in 0..count {
            let turn = format!("turn {number}");
            fs::write(&file, &turn)?;
            writeln!(stream, "{turn}")?;
            let mut answer = String::new();
            answers.read_line(&mut answer)?;
            let found = fs::read_to_string(&file)?;
            if found != format!("answer to {turn}") {
                return Err(format!("{}: {found} after {turn}", file.display()).into());
            }
        }
        rates.insert(
            (*directory).to_owned(),
            json!(f64::from(count) / began.elapsed().as_secs_f64()),
        );
    }
    println!("{}", Value::Object(rates));
    Ok(())
}
