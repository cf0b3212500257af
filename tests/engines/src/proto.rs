//! Protocol buffers as JSON: what a test sends and gets is written as JSON, and a table says what number and kind each field has.

use std::{collections::BTreeMap, sync::OnceLock};

use serde_json::{Map, Value};

/// One message a paragraph: its name, then `FIELD NUMBER KIND`. A kind is `int` (any number, boolean or enumeration), `text` (also bytes),
/// `map` (text to text), `any` (type and JSON or bytes), or a message; `*` after it: repeated.
const TABLE: &str = include_str!("messages.txt");

#[derive(Debug)]
struct Field {
    name: &'static str,
    number: u64,
    kind: &'static str,
    repeated: bool,
}

fn fields(message: &str) -> &'static [Field] {
    static MESSAGES: OnceLock<BTreeMap<&'static str, Vec<Field>>> = OnceLock::new();
    let messages = MESSAGES.get_or_init(|| {
        let paragraphs = TABLE.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty());
        paragraphs
            .map(|paragraph| {
                let mut lines = paragraph.lines();
                (lines.next().unwrap(), lines.map(field).collect())
            })
            .collect()
    });
    messages.get(message).unwrap_or_else(|| panic!("messages.txt has no {message}"))
}

fn field(line: &'static str) -> Field {
    let [name, number, kind] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("messages.txt: {line}") };
    let repeated = kind.ends_with('*');
    Field { name, number: number.parse().unwrap(), kind: kind.trim_end_matches('*'), repeated }
}

/// Encodes a message.
pub fn encode(message: &str, value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Some(object) = value.as_object() else { panic!("{message} is no object: {value}") };
    for (name, value) in object {
        let field = fields(message).iter().find(|field| field.name == name);
        let field = field.unwrap_or_else(|| panic!("{message} has no field {name}"));
        let one = [value.clone()];
        let values = if field.repeated { value.as_array().unwrap() } else { &one[..] };
        for value in values {
            put(field, value, &mut bytes);
        }
    }
    bytes
}

fn put(field: &Field, value: &Value, bytes: &mut Vec<u8>) {
    match field.kind {
        "int" => {
            let number = match value {
                Value::Bool(truth) => u64::from(*truth),
                number => number.as_i64().unwrap_or_else(|| panic!("{} is no number: {value}", field.name)) as u64,
            };
            varint(field.number << 3, bytes);
            varint(number, bytes);
        }
        "text" => block(field, value.as_str().unwrap_or_else(|| panic!("{} is no text", field.name)).as_bytes(), bytes),
        "map" => {
            for (key, value) in value.as_object().unwrap() {
                let mut entry = Vec::new();
                let text = |number| Field { name: "", number, kind: "text", repeated: false };
                put(&text(1), &Value::from(key.as_str()), &mut entry);
                put(&text(2), value, &mut entry);
                block(field, &entry, bytes);
            }
        }
        message => block(field, &encode(message, value), bytes),
    }
}

fn block(field: &Field, content: &[u8], bytes: &mut Vec<u8>) {
    varint(field.number << 3 | 2, bytes);
    varint(content.len() as u64, bytes);
    bytes.extend(content);
}

fn varint(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Decodes a message; fields that the table does not have are left out.
pub fn decode(message: &str, mut bytes: &[u8]) -> Value {
    let mut object = Map::new();
    while !bytes.is_empty() {
        let key = take_varint(&mut bytes);
        let (number, content) = match key & 7 {
            0 => (take_varint(&mut bytes), &[][..]),
            1 => (0, take(&mut bytes, 8)),
            2 => {
                let length = take_varint(&mut bytes) as usize;
                (0, take(&mut bytes, length))
            }
            5 => (0, take(&mut bytes, 4)),
            kind => panic!("{message}: wire type {kind}"),
        };
        let Some(field) = fields(message).iter().find(|field| field.number == key >> 3) else { continue };
        let value = match field.kind {
            "int" if key & 7 == 2 => {
                // Numbers that are repeated come packed.
                let mut packed = content;
                let entry = object.entry(field.name).or_insert_with(|| Value::from(Vec::<Value>::new()));
                while !packed.is_empty() {
                    entry.as_array_mut().unwrap().push(Value::from(take_varint(&mut packed) as i64));
                }
                continue;
            }
            "int" => Value::from(number as i64),
            "text" => Value::from(String::from_utf8_lossy(content).into_owned()),
            "map" => {
                let entry = decode("MapEntry", content);
                let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
                let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                map.as_object_mut().unwrap().insert(text("key"), text("value").into());
                continue;
            }
            message => decode(message, content),
        };
        if field.repeated {
            let entry = object.entry(field.name).or_insert_with(|| Value::from(Vec::<Value>::new()));
            entry.as_array_mut().unwrap().push(value);
        } else {
            object.insert(field.name.into(), value);
        }
    }
    Value::Object(object)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

fn take_varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    number
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let config = json!({
            "metadata": {"name": "pod", "attempt": 3},
            "labels": {"a": "b", "c": "d"},
            "port_mappings": [{"container_port": 80}, {"host_port": 300_000}],
            "dns_config": {"servers": ["one", "two"]},
            "linux": {"resources": {"oom_score_adj": -998, "memory_limit_in_bytes": 1_i64 << 40}},
        });
        assert_eq!(decode("PodSandboxConfig", &encode("PodSandboxConfig", &config)), config);
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        // The examples of the encoding's documentation: field 1 is 150, field 2 is "testing".
        let entry = encode("MapEntry", &json!({"value": "testing"}));
        assert_eq!(entry, b"\x12\x07testing");
        assert_eq!(encode("Int64Value", &json!({"value": 150})), [0x08, 0x96, 0x01]);
    }

    #[test]
    fn what_the_table_does_not_have_is_skipped() {
        let mut bytes = vec![0xfa, 0x01, 0x02, 1, 2, 0xfd, 0x01, 0, 0, 0, 0, 0xf9, 0x01, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(encode("Int64Value", &json!({"value": 7})));
        assert_eq!(decode("Int64Value", &bytes), json!({"value": 7}));
    }
}
