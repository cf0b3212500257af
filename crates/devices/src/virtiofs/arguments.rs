//! The command line between the two halves of [`spawn`](super::spawn). Both are the same executable, so it need be
//! neither stable nor comfortable, only strict.

use std::{
    ffi::{CString, OsString},
    os::unix::ffi::OsStrExt,
};

use super::{Cache, Config, LogLevel, ROLE};
use crate::Error;

/// The arguments for `config`, the name first.
pub(super) fn write(config: &Config) -> Result<Vec<CString>, Error> {
    let zero = |_| Error::ZeroByte { path: config.shared_dir.clone() };
    [
        ROLE.as_bytes(),
        config.shared_dir.as_os_str().as_bytes(),
        config.cache.as_str().as_bytes(),
        config.log_level.as_str().as_bytes(),
    ]
    .into_iter()
    .map(|argument| CString::new(argument).map_err(zero))
    .collect()
}

/// The configuration in `arguments`, which come after the name.
pub(super) fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Config, Error> {
    let mut arguments = arguments.into_iter();
    let mut next =
        |name: &str| arguments.next().ok_or_else(|| Error::Argument { argument: format!("{name}, which is missing") });
    let shared_dir = next("shared directory")?.into();
    let [cache, log_level] = [next("cache")?, next("log level")?];
    let bad = |argument: &OsString| Error::Argument { argument: argument.to_string_lossy().into_owned() };
    let config = Config {
        shared_dir,
        cache: cache.to_str().and_then(|text| text.parse::<Cache>().ok()).ok_or_else(|| bad(&cache))?,
        log_level: LogLevel::ALL
            .into_iter()
            .find(|level| level.as_str() == log_level)
            .ok_or_else(|| bad(&log_level))?,
    };
    match arguments.next() {
        Some(extra) => Err(bad(&extra)),
        None => Ok(config),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn through(config: &Config) -> Result<Config, Error> {
        let written = write(config).unwrap();
        assert_eq!(written[0].to_str().unwrap(), ROLE);
        read(written.into_iter().skip(1).map(|argument| OsString::from_vec(argument.into_bytes())))
    }

    #[test]
    fn every_configuration_comes_back() {
        for cache in Cache::ALL {
            for log_level in LogLevel::ALL {
                let config = Config { shared_dir: "/run/a b\u{e9}".into(), cache, log_level };
                assert_eq!(through(&config).unwrap(), config);
            }
        }
    }

    #[test]
    fn a_path_that_is_not_text_comes_back() {
        let config = Config::new(OsString::from_vec(b"/run/\xff".to_vec()));
        assert_eq!(through(&config).unwrap(), config);
    }

    #[test]
    fn what_is_missing_superfluous_or_unknown_is_named() {
        let message = |arguments: &[&str]| read(arguments.iter().map(OsString::from)).unwrap_err().to_string();
        assert!(message(&["/d", "auto"]).contains("log level, which is missing"));
        assert!(message(&["/d", "auto", "warn", "more"]).contains("\"more\""));
        assert!(message(&["/d", "sometimes", "warn"]).contains("\"sometimes\""));
        assert!(message(&["/d", "auto", "loud"]).contains("\"loud\""));
    }

    #[test]
    fn an_unknown_cache_mode_is_told_the_known_ones() {
        assert_eq!(
            "none".parse::<Cache>().unwrap_err(),
            "\"none\" is not a cache mode: expected one of never, metadata, auto, always"
        );
    }
}
