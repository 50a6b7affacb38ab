//! Does with the files of a directory what it is told to, a line an operation, and prints what came of it, a line a result: so that
//! several programs at several places can be compared with one that is alone.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, Read, Write},
    os::unix::fs::MetadataExt,
    path::Path,
};

use crate::mapping::Shared;

/// `guest-probe act DIR`: until its standard input ends. Each result ends with its operation's number.
pub(crate) fn act(directory: &str) -> crate::error::Result<()> {
    println!("acting");
    for (number, line) in io::stdin().lock().lines().enumerate() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let said = match one(Path::new(directory), &words) {
            Ok(said) => said,
            Err(error) => format!("errno {}", error.raw_os_error().unwrap_or(-1)),
        };
        println!("{said} <{number}>");
    }
    Ok(())
}

fn one(directory: &Path, words: &[&str]) -> io::Result<String> {
    let path = |name: &str| directory.join(name);
    match words {
        // By opening: this is what sees everything that was written before.
        ["read", name] => return Ok(runs(&fs::read(path(name))?)),
        ["mapped", name] => return mapped(&path(name)),
        ["size", name] => {
            let file = File::open(path(name))?.metadata()?;
            return Ok(format!("{} bytes, {} names", file.len(), file.nlink()));
        }
        ["list", name] => return list(&path(name)),
        // Without opening it: what is known of the name is believed for a while afterwards.
        ["look", name] => return Ok(format!("{} bytes", path(name).symlink_metadata()?.len())),
        ["write", name, byte, count] => fs::write(path(name), text(byte, count))?,
        ["create", name, byte, count] => {
            let file = OpenOptions::new().write(true).create_new(true).open(path(name));
            file?.write_all(&text(byte, count))?;
        }
        ["append", name, byte, count] => {
            let file = OpenOptions::new().append(true).open(path(name));
            file?.write_all(&text(byte, count))?;
        }
        ["truncate", name, length] => {
            let length = length.parse().map_err(io::Error::other)?;
            OpenOptions::new().write(true).open(path(name))?.set_len(length)?;
        }
        // By its name, without opening it.
        ["cut", name, length] => {
            let length = length.parse().map_err(io::Error::other)?;
            nix::unistd::truncate(&path(name), length)?;
        }
        ["rename", from, to] => fs::rename(path(from), path(to))?,
        ["link", from, to] => fs::hard_link(path(from), path(to))?,
        ["unlink", name] => fs::remove_file(path(name))?,
        other => return Err(io::Error::other(format!("cannot {other:?}"))),
    }
    Ok("done".to_owned())
}

fn text(byte: &str, count: &str) -> Vec<u8> {
    byte.bytes().cycle().take(count.parse().unwrap_or_default()).collect()
}

/// What a file has, short: `a*100 b*20`.
fn runs(content: &[u8]) -> String {
    let runs = content.chunk_by(|one, next| one == next);
    let runs = runs.map(|run| format!("{}*{}", char::from(run[0]), run.len()));
    format!("[{}]", runs.collect::<Vec<_>>().join(" "))
}

/// By a mapping, as programs are read that are started.
fn mapped(path: &Path) -> io::Result<String> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    if length == 0 {
        let mut nothing = Vec::new();
        file.read_to_end(&mut nothing)?;
        return Ok(runs(&nothing));
    }
    let mapping = Shared::file(&file, true)?;
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let content: Vec<u8> = (0..length).map(|at| mapping.read(at)).collect();
    Ok(runs(&content))
}

fn list(path: &Path) -> io::Result<String> {
    let names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(format!("{names:?}"))
}
