//! `otlp_endpoint`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A collector of traces that is spoken to by plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtlpEndpoint {
    /// Name or address of its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Where traces are posted to.
    pub path: String,
}

/// OpenTelemetry's own port and path for traces over HTTP.
const PORT: u16 = 4318;
const PATH: &str = "/v1/traces";

impl Default for OtlpEndpoint {
    fn default() -> Self {
        Self { host: "localhost".into(), port: PORT, path: PATH.into() }
    }
}

impl OtlpEndpoint {
    /// Host and port, as a request names them.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for OtlpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.path)
    }
}

impl FromStr for OtlpEndpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = |why: &str| {
            format!("must be http://HOST[:PORT][/PATH], such as \"http://localhost:4318\", not {text:?}{why}")
        };
        if text.starts_with("https://") {
            return Err(refused(": TLS is not spoken; run a collector on this host, which forwards"));
        }
        let rest = text.strip_prefix("http://").ok_or_else(|| refused(""))?;
        let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_graphic());
        if !plain(rest) {
            return Err(refused(""));
        }
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']').ok_or_else(|| refused(""))?;
                (host, port.strip_prefix(':'))
            }
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Ok(PORT), str::parse).map_err(|_| refused(": that is no port"))?;
        if host.is_empty() || host.contains(['@', '?', '#']) || port == 0 {
            return Err(refused(""));
        }
        // As OpenTelemetry has it: a bare endpoint is the beginning of the one for traces.
        let path = if path.is_empty() || path == "/" { PATH } else { path };
        Ok(Self { host: host.into(), port, path: path.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_opentelemetrys_own() {
        for (text, full) in [
            ("http://localhost", "http://localhost:4318/v1/traces"),
            ("http://collector:80/", "http://collector:80/v1/traces"),
            ("http://[::1]:9/x/y", "http://[::1]:9/x/y"),
            ("http://10.0.0.1/in", "http://10.0.0.1:4318/in"),
        ] {
            let endpoint: OtlpEndpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), full);
            assert_eq!(endpoint.to_string().parse::<OtlpEndpoint>().unwrap(), endpoint);
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_what_is_expected() {
        for text in
            ["", "localhost:4318", "http://", "http://:1", "http://h:0", "http://h:99999", "http://a b", "ftp://h"]
        {
            assert!(text.parse::<OtlpEndpoint>().unwrap_err().contains("http://HOST"), "{text}");
        }
        assert!("https://h".parse::<OtlpEndpoint>().unwrap_err().contains("TLS"));
    }
}
