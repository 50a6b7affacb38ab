//! OTLP's form of spans, as JSON (OpenTelemetry Protocol 1.x, "JSON Protobuf Encoding"): ids in hex, 64-bit numbers as
//! strings, enumerations as numbers.

use serde_json::{Value, json};
use trace::{Kind, Record};

use crate::id::{Namespace, SandboxId};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Shim,
    Agent,
}

impl Origin {
    /// Kata's names of its services.
    fn service(self) -> &'static str {
        match self {
            Origin::Shim => "kata",
            Origin::Agent => "kata-agent",
        }
    }
}

/// What all spans of a sandbox have in common.
pub(super) struct Resource {
    namespace: String,
    sandbox: String,
    host: String,
}

impl Resource {
    pub(super) fn new(namespace: &Namespace, sandbox: &SandboxId) -> Self {
        Self {
            namespace: namespace.as_str().to_owned(),
            sandbox: sandbox.as_str().to_owned(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        }
    }

    fn attributes(&self, origin: Origin) -> Value {
        let attributes = [
            ("service.name", origin.service()),
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("host.name", &self.host),
            ("containerd.namespace", &self.namespace),
            ("sandbox", &self.sandbox),
        ];
        attributes.iter().map(|(key, value)| attribute(key, value)).collect()
    }

    /// An ExportTraceServiceRequest.
    pub(super) fn request(&self, spans: &[(Origin, Record)]) -> Vec<u8> {
        let of = |origin: Origin| {
            let spans: Vec<Value> = spans
                .iter()
                .filter(|(of, _)| *of == origin)
                .map(|(_, one)| span(one))
                .collect();
            let scope = json!({ "name": "tatami", "version": env!("CARGO_PKG_VERSION") });
            (!spans.is_empty()).then(|| {
                json!({
                    "resource": { "attributes": self.attributes(origin) },
                    "scopeSpans": [{ "scope": scope, "spans": spans }],
                })
            })
        };
        let all: Vec<Value> = [Origin::Shim, Origin::Agent].into_iter().filter_map(of).collect();
        json!({ "resourceSpans": all }).to_string().into_bytes()
    }
}

fn attribute(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn span(record: &Record) -> Value {
    let attributes = record.attributes.iter().map(|(key, value)| attribute(key, value));
    let mut span = json!({
        "traceId": record.context.trace_id(),
        "spanId": record.context.span_id(),
        "name": record.name,
        "kind": match record.kind {
            Kind::Internal => 1,
            Kind::Server => 2,
        },
        "startTimeUnixNano": record.start.to_string(),
        "endTimeUnixNano": record.end.to_string(),
        "attributes": attributes.collect::<Vec<_>>(),
        // Unset where it succeeded: OK is for an application's own judgement.
        "status": record.error.as_ref().map_or_else(|| json!({}), |error| json!({ "code": 2, "message": error })),
    });
    if let (Some(parent), Some(fields)) = (&record.parent, span.as_object_mut()) {
        fields.insert("parentSpanId".to_owned(), parent.span_id().into());
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;
    use trace::Context;

    #[test]
    fn spans_are_written_as_the_protocol_says() {
        let root = Context::root();
        let record = Record {
            context: root.child(),
            parent: Some(root),
            name: "Create".to_owned(),
            kind: Kind::Server,
            start: 1_700_000_000_000_000_000,
            end: 1_700_000_000_000_000_007,
            attributes: [("container".to_owned(), "c".to_owned())].into(),
            error: Some("no such file".to_owned()),
        };
        let resource = Resource::new(&Namespace::new("default").unwrap(), &SandboxId::new("pod").unwrap());
        let text = resource.request(&[(Origin::Shim, record.clone())]);
        let value: Value = serde_json::from_slice(&text).unwrap();
        let resources = value["resourceSpans"].as_array().unwrap();
        assert_eq!(resources.len(), 1);
        let attributes = resources[0]["resource"]["attributes"].as_array().unwrap();
        assert!(
            attributes.contains(&attribute("service.name", "kata"))
                && attributes.contains(&attribute("sandbox", "pod"))
        );
        let expected = json!({
            "traceId": root.trace_id(),
            "spanId": record.context.span_id(),
            "parentSpanId": root.span_id(),
            "name": "Create",
            "kind": 2,
            "startTimeUnixNano": "1700000000000000000",
            "endTimeUnixNano": "1700000000000000007",
            "attributes": [{ "key": "container", "value": { "stringValue": "c" } }],
            "status": { "code": 2, "message": "no such file" },
        });
        assert_eq!(resources[0]["scopeSpans"][0]["spans"][0], expected);
    }
}
