//! `/iptables` of the management API and `kata-ctl iptables`: the rules that a container of the guest has made are read, and rules that are
//! set are those that the container sees.

use framework::{
    Node, Result,
    programs::{self, IPTABLES},
};

mod kata_only {
    use std::fs;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use framework::http;
    use serde_json::json;

    use super::*;

    const RULES: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
                         -A INPUT -p udp -m udp --dport 1234 -m comment --comment \"of the tool\" -j DROP\nCOMMIT\n";

    #[test]
    fn the_rules_of_a_guest_are_read_and_set_as_its_containers_see_them() -> Result<()> {
        let node = Node::start()?;
        let spec = node.spec("firewall", &["sleep", "1000"])?;
        programs::add(&spec.root(), &[IPTABLES])?;
        let capabilities = json!(["CAP_NET_ADMIN", "CAP_NET_RAW"]);
        let set =
            |spec: framework::Spec, set: &str| spec.set(&format!("/process/capabilities/{set}"), capabilities.clone());
        let spec = ["bounding", "effective", "permitted"].into_iter().try_fold(spec, set)?;
        node.run_spec("firewall", &spec)?.arg("-d").ok()?;
        let inside = |exec: &str, program: &str, words: &str| {
            let words = words.split(' ').map(str::to_owned);
            let args = [IPTABLES.path.to_owned(), program.to_owned()].into_iter().chain(words);
            node.exec("firewall", exec).program(args.collect::<Vec<_>>()).ok()
        };
        let id = node.id("firewall");
        let get = |more: &[&str]| {
            let words = ["iptables", "get", "--sandbox-id", &id];
            node.diagnose()?.args(words).args(more).ok()
        };
        let file = node.dir().join("rules");
        let set = |file: &Path| {
            let words = ["iptables", "set", "--sandbox-id", &id];
            node.diagnose()?.args(words).arg(file).output()
        };
        // The first request of a sandbox, for which the program has yet to be unpacked, and an extension with a library of its own.
        let odds = "-A INPUT -p tcp -m tcp --dport 99 -m statistic --mode random --probability 0.5";
        fs::write(&file, format!("*filter\n:INPUT ACCEPT [0:0]\n{odds} -j DROP\nCOMMIT\n"))?;
        assert_eq!(set(&file)?.success()?.stdout(), "");
        // The tool's own names and its output: what iptables-save prints.
        let rules = get(&[])?;
        assert!(rules.contains("--dport 99 -m statistic --mode random"), "{rules}");
        inside("flush", "iptables", "-F INPUT")?;
        assert!(!get(&[])?.contains("-A "));

        inside("one", "iptables", "-A INPUT -p tcp --dport 81 -j REJECT")?;
        inside(
            "two",
            "ip6tables",
            "-t nat -A OUTPUT -p tcp --dport 82 -j REDIRECT --to-ports 83",
        )?;
        let rules = get(&[])?;
        let made = "-A INPUT -p tcp -m tcp --dport 81 -j REJECT --reject-with icmp-port-unreachable";
        assert!(
            rules.contains("*filter") && rules.contains(made) && rules.contains("COMMIT"),
            "{rules}"
        );
        assert!(!rules.contains("--dport 82"), "{rules}");
        let rules = get(&["--v6"])?;
        assert!(
            rules.contains("*nat") && rules.contains("--dport 82 -j REDIRECT --to-ports 83"),
            "{rules}"
        );

        // As Kata's own tools ask the shim.
        let socket = format!("/run/vc/sbs/{id}/shim-monitor.sock");
        let (head, body) = http::ask(UnixStream::connect(&socket)?, "PUT", "/iptables", RULES.as_bytes())?;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head} {body}");
        let seen = inside("three", "iptables", "-S INPUT")?;
        assert!(
            seen.contains("--dport 1234") && seen.contains("of the tool") && !seen.contains("--dport 81"),
            "{seen}"
        );

        // By the tool: what was read is set again, after a change.
        fs::write(&file, get(&[])?.replace("1234", "4321"))?;
        assert_eq!(set(&file)?.success()?.stdout(), "");
        assert!(inside("four", "iptables", "-S INPUT")?.contains("--dport 4321"));

        // What the program does not take is its own message, and changes nothing.
        fs::write(&file, "*filter\n-A INPUT -j NOSUCHTARGET\nCOMMIT\n")?;
        let refused = set(&file)?.failure()?;
        assert!(
            refused.contains("iptables-restore ended with") && refused.contains("NOSUCHTARGET"),
            "{refused}"
        );
        assert!(inside("five", "iptables", "-S INPUT")?.contains("--dport 4321"));
        assert!(set(Path::new("/no/such/rules"))?.failure()?.contains("/no/such/rules"));

        // Nobody but the two knows of the programs: containerd has one task, and the guest keeps none.
        let tasks = node.ctr().args(["task", "ls", "-q"]).ok()?;
        assert_eq!(tasks.lines().count(), 1, "{tasks}");
        node.remove("firewall")?;
        node.nothing_left()
    }
}
