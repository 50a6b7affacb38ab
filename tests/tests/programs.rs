//! Real programs, this machine's own, do in a container what they do here.

use std::{fs, time::Duration};

use framework::{
    Node, Result,
    programs::{self, BASH, GIT, PYTHON},
};

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
