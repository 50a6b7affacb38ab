//! The identity of the process: user, groups, umask, home directory; and the working directory, which depends on it.

use std::{collections::BTreeSet, io, path::Path};

use oci_spec::runtime::{Process, User};
use rustix::{
    fs::Mode,
    process::{Gid, Uid, chdir, getcwd, umask},
    thread::{set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::fault::{Context, Fault, Result};

/// Largest /etc/passwd that is read, in bytes.
const MAX_PASSWD: u64 = 4 << 20;

/// Largest id that runc takes (moby/sys/user, `maxID`).
const MAX_ID: u32 = i32::MAX.cast_unsigned();

/// Becomes the user and goes to the working directory.
///
/// The directory is entered before the user changes, for one that only root may enter; where root may not (a
/// file system that knows better, FUSE for one) the user itself is asked. runc has the same order.
pub(super) fn assume(process: &Process) -> Result<()> {
    let cwd = process.cwd();
    if !cwd.is_absolute() {
        return Err(Fault::Refused(format!(
            "process.cwd: {} is not an absolute path",
            cwd.display()
        )));
    }
    let entered = enter(cwd)?;
    set_keep_capabilities(true).or_fail(|| "cannot keep the capabilities over the change of the user")?;
    become_user(process.user())?;
    if !entered && !enter(cwd)? {
        return Err(Fault::Refused(format!(
            "cannot enter the working directory {}: permission denied",
            cwd.display()
        )));
    }
    set_keep_capabilities(false).or_fail(|| "cannot give up keeping the capabilities")?;
    let here = getcwd(Vec::new()).or_refuse(|| format!("the working directory {} cannot be used", cwd.display()))?;
    if here.as_bytes().first() != Some(&b'/') {
        return Err(Fault::Refused(format!(
            "the working directory {} is outside of the container",
            cwd.display()
        )));
    }
    umask(Mode::from_raw_mode(process.user().umask().unwrap_or(0o022)));
    Ok(())
}

/// Whether the directory could be entered; `false` where it was for want of permission.
fn enter(cwd: &Path) -> Result<bool> {
    match chdir(cwd).map_err(io::Error::from) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error).or_refuse(|| format!("cannot enter the working directory {}", cwd.display())),
    }
}

/// Refuses ids that runc does not take. The largest number of all means "as it is" to setresuid(2): root would stay root.
pub(super) fn check_ids(user: &User) -> Result<()> {
    let additional = user.additional_gids().iter().flatten().copied();
    if additional.chain([user.uid(), user.gid()]).any(|id| id > MAX_ID) {
        return Err(Fault::Refused(format!(
            "process.user: uids and gids must be in range 0-{MAX_ID}"
        )));
    }
    Ok(())
}

fn become_user(user: &User) -> Result<()> {
    let additional: BTreeSet<u32> = user.additional_gids().iter().flatten().copied().collect();
    // The largest number of all means "as it is" to setresuid(2): it would leave root what it is.
    if [user.uid(), user.gid()]
        .iter()
        .chain(&additional)
        .any(|id| *id > MAX_ID)
    {
        return Err(Fault::Refused(format!(
            "process.user: uids and gids must be in range 0-{MAX_ID}"
        )));
    }
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    let groups: Vec<_> = additional.into_iter().map(Gid::from_raw).collect();
    // A user namespace may forbid to leave groups, and then there is none to leave.
    let forbidden = std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|says| says.trim() == "deny");
    if !(forbidden && groups.is_empty()) {
        set_thread_groups(&groups).or_refuse(|| format!("cannot set the additional groups {groups:?}"))?;
    }
    set_thread_res_gid(gid, gid, gid).or_refuse(|| format!("cannot become group {}", user.gid()))?;
    set_thread_res_uid(uid, uid, uid).or_refuse(|| format!("cannot become user {}", user.uid()))
}

/// The environment: each variable once, the last one given, and HOME from the container's /etc/passwd where it lacks.
pub(super) fn environment(process: &Process) -> Result<Vec<String>> {
    let mut variables: Vec<String> = Vec::new();
    for given in process.env().as_deref().unwrap_or_default() {
        let refused = |reason: &str| Err(Fault::Refused(format!("process.env: {reason}: {given:?}")));
        match given.split_once('=') {
            None => return refused("invalid environment variable"),
            Some(("", _)) => return refused("environment variable name can't be empty"),
            Some(_) if given.contains('\0') => return refused("environment variable can't contain null"),
            Some(_) => {}
        }
        let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
        variables.retain(|earlier| name(earlier) != name(given));
        variables.push(given.clone());
    }
    if !variables
        .iter()
        .any(|variable| variable.strip_prefix("HOME=").is_some_and(|home| !home.is_empty()))
    {
        variables.retain(|variable| !variable.starts_with("HOME="));
        variables.push(format!(
            "HOME={}",
            home(process.user().uid()).unwrap_or_else(|| "/".to_owned())
        ));
    }
    Ok(variables)
}

fn home(uid: u32) -> Option<String> {
    use std::{io::Read, os::unix::fs::OpenOptionsExt};
    let mut text = Vec::new();
    // A FIFO in its place must not hold us up.
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open("/etc/passwd");
    file.ok()?.take(MAX_PASSWD).read_to_end(&mut text).ok()?;
    home_in(&String::from_utf8_lossy(&text), uid)
}

/// The sixth field of the user's line (passwd(5)).
fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let its = fields.nth(2)?.trim().parse::<u32>().ok()?;
        let home = fields.nth(2)?;
        (its == uid && !home.is_empty()).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn home_is_the_users_own() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\n\nweb:x:33:33::/srv/www:/bin/false\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 33).as_deref(), Some("/srv/www"));
        assert_eq!(home_in(passwd, 34), None);
    }

    #[test]
    fn the_last_of_two_variables_counts() {
        let mut process = Process::default();
        process.set_env(Some(vec!["A=1".into(), "HOME=/x".into(), "A=2".into()]));
        assert_eq!(environment(&process).unwrap(), ["HOME=/x", "A=2"]);
    }

    proptest! {
        #[test]
        fn any_passwd_is_read(passwd: String, uid: u32) {
            let _ = home_in(&passwd, uid);
        }
    }
}
