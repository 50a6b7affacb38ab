//! `enable_tracing`: a collector gets the spans of create, start, exec, kill and delete, of the shim and of the agent.

use framework::{Error, Node, Result};

mod kata_only {
    use std::{
        io::{BufRead as _, BufReader, Read as _, Write as _},
        net::{TcpListener, TcpStream},
        sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
        thread,
        time::{Duration, Instant},
    };

    use serde_json::Value;

    use super::*;

    /// A request as the collector got it.
    struct Received {
        head: String,
        body: Value,
    }

    /// What listens for OTLP/HTTP, and keeps all that it gets.
    struct Collector {
        address: String,
        received: Arc<(Mutex<Vec<Received>>, Condvar)>,
    }

    impl Collector {
        /// One that answers, or one that takes connections and says nothing.
        fn listen(answers: bool) -> Result<Self> {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let address = listener.local_addr()?.to_string();
            let received = Arc::<(Mutex<Vec<Received>>, Condvar)>::default();
            let kept = Arc::clone(&received);
            // It ends with the test's process.
            thread::spawn(move || {
                let mut silent = Vec::new();
                for stream in listener.incoming().flatten() {
                    if !answers {
                        silent.push(stream);
                    } else if let Ok(one) = take(&stream) {
                        kept.0.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                        kept.1.notify_all();
                    }
                }
            });
            Ok(Self { address, received })
        }

        fn configuration(&self, agent: bool) -> String {
            format!(
                "[runtime]\nenable_tracing = true\njaeger_endpoint = \"http://{}/v1/traces\"\njaeger_user = \"user\"\n\
                 jaeger_password = \"secret\"\n[agent.kata]\nenable_tracing = {agent}\n",
                self.address
            )
        }

        fn received(&self) -> MutexGuard<'_, Vec<Received>> {
            self.received.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn spans(&self) -> Vec<Span> {
            spans_in(&self.received())
        }

        /// All spans, once those are there that are waited for.
        fn spans_with(&self, awaited: impl Fn(&[Span]) -> bool) -> Result<Vec<Span>> {
            let pending = |received: &mut Vec<Received>| !awaited(&spans_in(received));
            let limit = framework::wait::patience(Duration::from_secs(20));
            let waited = self.received.1.wait_timeout_while(self.received(), limit, pending);
            let (received, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            let spans = spans_in(&received);
            match timeout.timed_out() {
                true => Err(Error::unexpected(format!("the span does not come: {spans:#?}"))),
                false => Ok(spans),
            }
        }
    }

    fn spans_in(received: &[Received]) -> Vec<Span> {
        let resources = received.iter().flat_map(|one| list(&one.body["resourceSpans"]));
        resources.flat_map(spans_of).collect()
    }

    fn take(mut stream: &TcpStream) -> std::io::Result<Received> {
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")?;
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Ok(Received { head, body })
    }

    fn list(value: &Value) -> &[Value] {
        value.as_array().map_or(&[], Vec::as_slice)
    }

    fn attribute(attributes: &Value, key: &str) -> Option<String> {
        let found = list(attributes).iter().find(|one| one["key"] == key)?;
        found["value"]["stringValue"].as_str().map(str::to_owned)
    }

    #[derive(Debug, Clone)]
    struct Span {
        service: String,
        sandbox: String,
        name: String,
        trace: String,
        id: String,
        parent: Option<String>,
        start: u64,
        end: u64,
        error: Option<String>,
        attributes: Value,
    }

    fn spans_of(resource: &Value) -> Vec<Span> {
        let of = |key| attribute(&resource["resource"]["attributes"], key).unwrap_or_default();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let number = |value: &Value| value.as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
        let spans = list(&resource["scopeSpans"])
            .iter()
            .flat_map(|scope| list(&scope["spans"]));
        spans
            .map(|span| Span {
                service: of("service.name"),
                sandbox: of("sandbox"),
                name: text(&span["name"]).unwrap_or_default(),
                trace: text(&span["traceId"]).unwrap_or_default(),
                id: text(&span["spanId"]).unwrap_or_default(),
                parent: text(&span["parentSpanId"]),
                start: number(&span["startTimeUnixNano"]),
                end: number(&span["endTimeUnixNano"]),
                error: (span["status"]["code"] == 2).then(|| text(&span["status"]["message"]).unwrap_or_default()),
                attributes: span["attributes"].clone(),
            })
            .collect()
    }

    /// The one span of a name, below a given one.
    fn child<'a>(spans: &'a [Span], name: &str, parent: &Span) -> Result<&'a Span> {
        let found = spans
            .iter()
            .find(|span| span.name == name && span.parent.as_ref() == Some(&parent.id));
        let found = found.ok_or_else(|| Error::unexpected(format!("no span {name} below {parent:?} in {spans:#?}")))?;
        // Both clocks are the host's, which the guest's follows. It is late by what the host's answer took at the boot, until it asks again.
        let near = if found.service == parent.service {
            500_000_000
        } else {
            2_000_000_000
        };
        assert!(
            found.trace == parent.trace && found.start + near >= parent.start && found.start <= found.end,
            "{found:?} below {parent:?}"
        );
        Ok(found)
    }

    fn request<'a>(spans: &'a [Span], name: &str, exec: Option<&str>) -> Result<&'a Span> {
        let of = |span: &&Span| span.name == name && attribute(&span.attributes, "exec").as_deref() == exec;
        let found = spans.iter().find(of);
        found.ok_or_else(|| Error::unexpected(format!("no span {name} of {exec:?} in {spans:#?}")))
    }

    /// The agent's span of the container's deletion: the last of all.
    fn agents_delete(spans: &[Span]) -> Result<&Span> {
        child(
            spans,
            "delete",
            child(spans, "delete in guest", request(spans, "Delete", None)?)?,
        )
    }

    #[test]
    fn create_start_exec_kill_and_delete_are_one_trace_of_shim_and_agent() -> Result<()> {
        let collector = Collector::listen(true)?;
        let node = Node::start_configured(&collector.configuration(true))?;
        node.run("web").arg("-d").program(["sleep", "1000"]).ok()?;
        assert_eq!(node.exec("web", "tool").program(["echo", "hello"]).ok()?, "hello\n");
        node.exec("web", "lost").program(["no-such-program"]).fails()?;
        let metrics = node.diagnose()?.args(["metrics", &node.id("web")]).ok()?;
        assert!(metrics.contains("kata_trace_spans_total{"), "{metrics}");
        node.remove("web")?;
        let spans = collector.spans_with(|spans| agents_delete(spans).is_ok())?;

        let boot = spans.iter().find(|span| span.name == "boot" && span.parent.is_none());
        let boot = boot.ok_or_else(|| Error::unexpected(format!("no boot in {spans:#?}")))?;
        assert_eq!(
            (boot.service.as_str(), boot.sandbox.as_str()),
            ("kata", node.id("web").as_str())
        );
        assert!(boot.end - boot.start > 100_000_000, "{boot:?}");
        child(&spans, "launch", boot)?;
        child(&spans, "greet", boot)?;

        let create = request(&spans, "Create", None)?;
        assert_eq!(create.parent.as_ref(), Some(&boot.id));
        assert_eq!(attribute(&create.attributes, "container"), Some(node.id("web")));
        child(&spans, "attach", create)?;
        let in_guest = child(&spans, "create in guest", create)?;
        let agents = child(&spans, "create_container", in_guest)?;
        assert_eq!(agents.service, "kata-agent");
        child(&spans, "launch", agents)?;

        let start = request(&spans, "Start", None)?;
        child(&spans, "start_container", child(&spans, "start in guest", start)?)?;
        let exec = request(&spans, "Start", Some("tool"))?;
        child(&spans, "exec", child(&spans, "exec in guest", exec)?)?;
        request(&spans, "Exec", Some("tool"))?;
        let kill = request(&spans, "Kill", None)?;
        child(&spans, "signal", child(&spans, "signal in guest", kill)?)?;
        let delete = request(&spans, "Delete", None)?;
        agents_delete(&spans)?;
        child(&spans, "detach", delete)?;
        let good = [create, start, exec, kill, delete, boot, agents];
        assert!(good.iter().all(|span| span.error.is_none()), "{good:#?}");

        // What fails says why, wherever it failed.
        let failed = request(&spans, "Start", Some("lost"))?;
        let in_guest = child(&spans, "exec in guest", failed)?;
        for span in [failed, in_guest, child(&spans, "exec", in_guest)?] {
            let error = span.error.as_deref().unwrap_or_default();
            assert!(error.contains("no-such-program"), "{span:?}");
        }

        let ids: std::collections::BTreeSet<_> = spans.iter().map(|span| &span.id).collect();
        assert_eq!(ids.len(), spans.len(), "an id is there twice");
        assert!(spans.iter().all(|span| span.trace == boot.trace));
        let received = collector.received();
        let head = &received[0].head;
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("Content-Type: application/json\r\n"), "{head}");
        assert!(head.contains("Authorization: Basic dXNlcjpzZWNyZXQ=\r\n"), "{head}");
        let configuration = node
            .diagnose()?
            .args(["config", "--path"])
            .arg(node.configuration())
            .ok()?;
        assert!(
            configuration.contains("(not shown)") && !configuration.contains("secret"),
            "{configuration}"
        );
        node.nothing_left()
    }

    #[test]
    fn a_create_that_fails_is_a_span_with_its_reason_and_the_agent_is_traced_only_if_asked() -> Result<()> {
        let collector = Collector::listen(true)?;
        let node = Node::start_configured(&collector.configuration(false))?;
        let long = format!("/no/such/{}", "x".repeat(3000));
        let spec = node.spec("rootless", &["true"])?.set("/root/path", long.as_str())?;
        node.run_spec("rootless", &spec)?.arg("--rm").fails()?;
        node.discard("rootless")?;
        let spans = collector.spans_with(|spans| request(spans, "Create", None).is_ok())?;
        let create = request(&spans, "Create", None)?;
        let attach = child(&spans, "attach", create)?;
        for span in [create, attach] {
            let error = span.error.as_deref().unwrap_or_default();
            assert!(error.contains("/no/such/xxx") && error.len() <= 1024, "{span:?}");
        }
        node.run("well").arg("--rm").program(["true"]).ok()?;
        let of_well = |span: &Span| span.name == "Delete" && span.sandbox == node.id("well");
        let spans = collector.spans_with(|spans| spans.iter().any(of_well))?;
        assert!(spans.iter().all(|span| span.service == "kata"), "{spans:#?}");
        node.nothing_left()
    }

    #[test]
    fn a_collector_that_hangs_holds_up_no_request_and_the_shims_end_for_two_seconds_at_most() -> Result<()> {
        // The shortest of three: other tests come and go meanwhile.
        let time = |configuration: &str| -> Result<Duration> {
            let node = Node::start_configured(configuration)?;
            node.run("first").arg("--rm").program(["true"]).ok()?;
            let mut times = Vec::new();
            for _ in 0..3 {
                let began = Instant::now();
                node.run("second").arg("--rm").program(["echo", "well"]).ok()?;
                times.push(began.elapsed());
            }
            node.nothing_left()?;
            Ok(times.into_iter().min().unwrap_or_default())
        };
        let collector = Collector::listen(false)?;
        let hung = time(&collector.configuration(true))?;
        let off = time("")?;
        // ctr waits for the shim's end. The rest is for the noise of the machine.
        assert!(
            hung < off * 2 + Duration::from_secs(4),
            "{hung:?}, and {off:?} without tracing"
        );
        Ok(())
    }

    #[test]
    fn without_tracing_nothing_is_sent_and_a_collector_that_is_not_there_is_said_once() -> Result<()> {
        let collector = Collector::listen(true)?;
        let off = collector
            .configuration(true)
            .replace("enable_tracing = true\njaeger", "enable_tracing = false\njaeger");
        let node = Node::start_configured(&off)?;
        node.run("off").arg("--rm").program(["true"]).ok()?;
        assert!(collector.spans().is_empty());
        node.nothing_left()?;

        let node = Node::start_configured(
            "[runtime]\nenable_tracing = true\njaeger_endpoint = \"http://127.0.0.1:9/v1/traces\"\n",
        )?;
        node.run("alone").arg("-d").program(["sleep", "1000"]).ok()?;
        for number in 0..3 {
            node.exec("alone", &format!("e{number}")).program(["true"]).ok()?;
        }
        node.remove("alone")?;
        node.nothing_left()?;
        let log = node.log();
        assert_eq!(log.matches("the collector does not take spans").count(), 1, "{log}");
        Ok(())
    }
}
