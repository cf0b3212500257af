//! Text as Go's standard library writes it, which is what readers of runc's output have learnt to parse.

use std::time::Duration;

use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

/// JSON on one line, as `encoding/json` writes it.
pub(crate) fn json(value: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string(value).map(|text| escape_html(&text))
}

/// JSON indented by `indent`, as `json.MarshalIndent` writes it.
pub(crate) fn json_indented(value: &impl Serialize, indent: &str) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(indent.as_bytes())))?;
    Ok(escape_html(&String::from_utf8_lossy(&bytes)))
}

/// Go escapes what could end a `<script>` element. These characters occur in strings only, never in JSON's own syntax.
fn escape_html(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => escaped.push_str(&format!("\\u{:04x}", c as u32)),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A string in double quotes, as the verb `%q` writes it.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A table as `text/tabwriter` lays it out with a minimal cell width of 12 and a padding of 3. The last cell of a row is
/// not padded.
pub(crate) fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    const MINIMUM: usize = 12;
    const PADDING: usize = 3;
    let width = |column: usize| {
        let longest = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        (longest + PADDING).max(MINIMUM)
    };
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < COLUMNS {
                text.extend(std::iter::repeat_n(' ', widths[column] - cell.chars().count()));
            }
        }
        text.push('\n');
    }
    text
}

/// A time such as `1m30s` or `1.5s`, as `time.ParseDuration` reads it.
///
/// # Errors
/// It is none, or negative, in words.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let invalid = || format!("{} is no time; one such as 500ms, 5s or 1m30s is expected", quote(text));
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text.strip_prefix('+').unwrap_or(text), 0.0);
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |at| digits + at);
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        let (_, each) = UNITS.iter().find(|(name, _)| *name == &rest[digits..unit]).ok_or_else(invalid)?;
        seconds += number * each;
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| invalid())
}

/// A number of bytes such as `512m`, as `units.RAMInBytes` reads it: all units are powers of 1024.
///
/// # Errors
/// It is none, in words.
pub(crate) fn bytes(text: &str) -> Result<i64, String> {
    let invalid = || format!("invalid size: '{text}'");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().map_err(|_| invalid())?;
    let unit = text[digits..].strip_prefix(' ').unwrap_or(&text[digits..]).to_ascii_lowercase();
    let power = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit) {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(invalid()),
    };
    // What is more than there can be is the most that there can be.
    Ok((number * 1024f64.powi(power)) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_escaped_and_indented_as_go_does() {
        let value = serde_json::json!({"a": ["<&>"]});
        assert_eq!(json(&value).unwrap(), r#"{"a":["\u003c\u0026\u003e"]}"#);
        assert_eq!(json_indented(&value, "  ").unwrap(), "{\n  \"a\": [\n    \"\\u003c\\u0026\\u003e\"\n  ]\n}");
    }

    #[test]
    fn times_are_read_as_go_does() {
        for (text, milliseconds) in
            [("5s", 5000), ("100ms", 100), ("1m30s", 90_000), ("1.5s", 1500), ("0", 0), ("0s", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "5", "-1s", "s", "5 s", "1d", "1..5s", "+"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_as_go_does() {
        for (text, number) in
            [("0", 0), ("33554432", 32 << 20), ("512m", 512 << 20), ("1.5g", 3 << 29), ("2 KiB", 2048), ("7b", 7)]
        {
            assert_eq!(bytes(text), Ok(number), "{text}");
        }
        for text in ["", "m", "-5", "5x", "5 mm", "1 2"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn strings_are_quoted_as_go_does() {
        assert_eq!(quote("a \"b\"\n\u{1}é\\"), r#""a \"b\"\n\x01é\\""#);
    }

    #[test]
    fn a_table_has_runcs_layout() {
        let row = |cells: [&str; 3]| cells.map(String::from);
        let text = table(&[row(["ID", "PID", "OWNER"]), row(["a-rather-long-name", "1", "root"])]);
        assert_eq!(
            text,
            "ID                   PID         OWNER\n\
             a-rather-long-name   1           root\n"
        );
    }
}
