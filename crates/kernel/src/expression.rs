//! Expressions over options, as they stand behind `depends on`.

use crate::dotconfig::DotConfig;

/// Whether an expression holds in a configuration; `None` if it has parts that are not understood, such as macros.
pub(crate) fn holds(text: &str, config: &DotConfig) -> Option<bool> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens: &tokens, config };
    let value = parser.alternatives()?;
    parser.tokens.is_empty().then_some(value)
}

/// The options an expression names, each once.
pub(crate) fn symbols(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for token in tokens(text).unwrap_or_default() {
        if let Token::Word(word) = token
            && word.starts_with(|first: char| first.is_ascii_uppercase())
            && !found.contains(&word)
        {
            found.push(word);
        }
    }
    found
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Mark(&'static str),
}

/// Longer ones first: one may be the beginning of another.
const MARKS: [&str; 11] = ["&&", "||", "!=", "<=", ">=", "=", "<", ">", "!", "(", ")"];

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut rest = text.trim_start();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let length = if let Some(mark) = MARKS.into_iter().find(|mark| rest.starts_with(mark)) {
            found.push(Token::Mark(mark));
            mark.len()
        } else if let Some(quoted) = rest.strip_prefix('"') {
            let end = quoted.find('"')?;
            found.push(Token::Text(quoted[..end].into()));
            end + 2
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            if end == 0 {
                return None;
            }
            found.push(Token::Word(rest[..end].into()));
            end
        };
        rest = rest[length..].trim_start();
    }
    Some(found)
}

struct Parser<'a> {
    tokens: &'a [Token],
    config: &'a DotConfig,
}

impl Parser<'_> {
    fn next_if(&mut self, mark: &str) -> bool {
        let found = matches!(self.tokens, [Token::Mark(first), ..] if *first == mark);
        if found {
            self.tokens = &self.tokens[1..];
        }
        found
    }

    fn alternatives(&mut self) -> Option<bool> {
        let mut value = self.conjunction()?;
        while self.next_if("||") {
            value |= self.conjunction()?;
        }
        Some(value)
    }

    fn conjunction(&mut self) -> Option<bool> {
        let mut value = self.term()?;
        while self.next_if("&&") {
            value &= self.term()?;
        }
        Some(value)
    }

    fn term(&mut self) -> Option<bool> {
        if self.next_if("!") {
            return self.term().map(|value| !value);
        }
        if self.next_if("(") {
            let value = self.alternatives()?;
            return self.next_if(")").then_some(value);
        }
        let left = self.operand()?;
        let Some(mark) = ["!=", "<=", ">=", "=", "<", ">"].into_iter().find(|mark| self.next_if(mark)) else {
            return Some(left != "n");
        };
        let right = self.operand()?;
        let (left, right) = (left.trim_matches('"'), right.trim_matches('"'));
        let numbers = || Some((left.parse::<i64>().ok()?, right.parse::<i64>().ok()?));
        match mark {
            "=" => Some(left == right),
            "!=" => Some(left != right),
            "<=" => numbers().map(|(left, right)| left <= right),
            ">=" => numbers().map(|(left, right)| left >= right),
            "<" => numbers().map(|(left, right)| left < right),
            _ => numbers().map(|(left, right)| left > right),
        }
    }

    /// The value of an option, or what stands for itself.
    fn operand(&mut self) -> Option<String> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        match first {
            Token::Word(word) if matches!(word.as_str(), "y" | "n" | "m") => Some(word.clone()),
            Token::Word(word) if word.starts_with(|first: char| first.is_ascii_digit()) => Some(word.clone()),
            Token::Word(word) => Some(self.config.value(word).to_string()),
            Token::Text(text) => Some(text.clone()),
            Token::Mark(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_have_the_values_that_kconfig_gives_them() {
        let config = DotConfig::parse("CONFIG_A=y\nCONFIG_N=250\nCONFIG_S=\"x\"\n");
        let cases = [
            ("A", Some(true)),
            ("B", Some(false)),
            ("!B && A", Some(true)),
            ("B || A && !A", Some(false)),
            ("(B || A) && !(A && B)", Some(true)),
            ("B || A && A", Some(true)),
            ("B=n", Some(true)),
            ("A = y && B != y", Some(true)),
            ("N >= 100 && N<1000", Some(true)),
            ("N > 250 || N <= 249", Some(false)),
            ("S = \"x\"", Some(true)),
            ("$(cc-option,-mfoo)", None),
            ("A &&", None),
            ("(A", None),
            ("A B", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(holds(text, &config), expected, "{text}");
        }
        assert_eq!(symbols("!B && (A || B) && N=4 && y"), ["B", "A", "N"]);
    }
}
