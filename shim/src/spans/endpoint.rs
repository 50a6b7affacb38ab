//! Where spans are sent: an `http://` URL, and who the shim is there.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use config::{OTLP_PATH, Runtime};

/// Where a collector on the node listens (OpenTelemetry's default for OTLP/HTTP).
const DEFAULT: &str = "http://localhost:4318";

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Host and port, as `Host` has them.
    authority: String,
    path: String,
    /// The value of the header `Authorization`.
    authorization: Option<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={url}: a collector's URL begins with http:// and has no user in it (TLS is not spoken)")]
pub(super) struct EndpointError {
    variable: &'static str,
    url: String,
}

impl Endpoint {
    /// The configuration's, if it takes OTLP; else the environment's (OpenTelemetry's "OTLP exporter configuration": the URL for traces is
    /// taken as it is, the general one has the path appended); else the node's own.
    pub(super) fn of(runtime: &Runtime, variable: impl Fn(&str) -> Option<String>) -> Result<Self, EndpointError> {
        let variable = |name: &'static str| Some((name, variable(name).filter(|value| !value.is_empty())?));
        let configured = Some(&runtime.jaeger_endpoint).filter(|url| url.ends_with(OTLP_PATH));
        let (name, url) = if let Some(url) = configured {
            ("jaeger_endpoint", url.clone())
        } else if let Some(traces) = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            traces
        } else {
            let (name, base) = variable("OTEL_EXPORTER_OTLP_ENDPOINT").unwrap_or(("", DEFAULT.to_owned()));
            (name, format!("{}{OTLP_PATH}", base.trim_end_matches('/')))
        };
        let mut endpoint = Self::parse(&url).ok_or_else(|| EndpointError {
            variable: name,
            url: without_user(&url),
        })?;
        // For who was meant, and not for whoever has the port that is taken instead.
        if configured.is_some() && !runtime.jaeger_user.is_empty() {
            let pair = format!("{}:{}", runtime.jaeger_user, runtime.jaeger_password.reveal());
            endpoint.authorization = Some(format!("Basic {}", STANDARD.encode(pair)));
        }
        Ok(endpoint)
    }

    fn parse(url: &str) -> Option<Self> {
        let rest = url.strip_prefix("http://")?;
        let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        let valid = !authority.is_empty() && !authority.contains('@') && plain(authority) && plain(path);
        valid.then(|| Self {
            authority: authority.to_owned(),
            path: path.to_owned(),
            authorization: None,
        })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}{}", self.authority, self.path)
    }

    /// `host:port` to connect to.
    pub(super) fn address(&self) -> String {
        let bracket = self.authority.rfind(']').unwrap_or(0);
        match self.authority[bracket..].contains(':') {
            true => self.authority.clone(),
            false => format!("{}:80", self.authority),
        }
    }

    /// The head of a request with a body of so many bytes (RFC 9112).
    pub(super) fn head(&self, length: usize) -> String {
        let authorization = self.authorization.iter();
        let authorization: String = authorization
            .map(|value| format!("Authorization: {value}\r\n"))
            .collect();
        format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: tatami/{}\r\nContent-Type: application/json\r\n{authorization}\
             Content-Length: {length}\r\nConnection: close\r\n\r\n",
            self.path,
            self.authority,
            env!("CARGO_PKG_VERSION"),
        )
    }
}

/// A URL for a message: who is named in it, with a password, is left out.
fn without_user(url: &str) -> String {
    match (url.find("//"), url.rfind('@')) {
        (Some(start), Some(at)) if start < at => format!("{}//…{}", &url[..start], &url[at..]),
        _ => url.to_owned(),
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({})", self.url())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(jaeger: &str, variables: &[(&str, &str)]) -> Result<String, String> {
        let runtime = Runtime {
            jaeger_endpoint: jaeger.to_owned(),
            ..Runtime::default()
        };
        let variable = |name: &str| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        Endpoint::of(&runtime, variable)
            .map(|endpoint| endpoint.url())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_configuration_comes_first_if_it_takes_otlp_then_the_environment() {
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:1/x");
        let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://b:2/");
        let url = |text: &str| Ok(text.to_owned());
        assert_eq!(of("http://c:3/v1/traces", &[traces, base]), url("http://c:3/v1/traces"));
        assert_eq!(of("http://c:14268/api/traces", &[traces, base]), url("http://t:1/x"));
        assert_eq!(of("", &[base]), url("http://b:2/v1/traces"));
        assert_eq!(
            of("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]),
            url("http://localhost:4318/v1/traces")
        );
        let refused = of("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://b")]).unwrap_err();
        assert!(
            refused.starts_with("OTEL_EXPORTER_OTLP_ENDPOINT=https://b/v1/traces: "),
            "{refused}"
        );
        let refused = of("http://u:p@c/v1/traces", &[]).unwrap_err();
        assert!(
            refused.starts_with("jaeger_endpoint=http://…@c/v1/traces: "),
            "{refused}"
        );
    }

    #[test]
    fn a_request_has_the_head_that_a_collector_needs() {
        let runtime = Runtime {
            jaeger_endpoint: "http://[::1]:4318/v1/traces".to_owned(),
            jaeger_user: "Aladdin".to_owned(),
            jaeger_password: config::Secret::new("open sesame".to_owned()),
            ..Runtime::default()
        };
        let endpoint = Endpoint::of(&runtime, |_| None).unwrap();
        assert_eq!(endpoint.address(), "[::1]:4318");
        let head = endpoint.head(12);
        assert!(
            head.starts_with("POST /v1/traces HTTP/1.1\r\nHost: [::1]:4318\r\n"),
            "{head}"
        );
        assert!(
            head.contains("\r\nAuthorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n"),
            "{head}"
        );
        assert!(
            head.ends_with("\r\nContent-Length: 12\r\nConnection: close\r\n\r\n"),
            "{head}"
        );
        assert!(!format!("{endpoint:?} {runtime:?}").contains("sesame"));
        let thrift = Runtime {
            jaeger_endpoint: "http://jaeger:14268/api/traces".to_owned(),
            ..runtime
        };
        let elsewhere = Endpoint::of(&thrift, |_| None).unwrap();
        assert!(
            !elsewhere.head(12).contains("Authorization"),
            "the password is jaeger's"
        );
        for (url, address) in [("http://[::1]/v1/traces", "[::1]:80"), ("http://c/v1/traces", "c:80")] {
            assert_eq!(Endpoint::parse(url).unwrap().address(), address);
        }
    }
}
