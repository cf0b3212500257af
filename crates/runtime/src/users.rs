//! Names of users, from `/etc/passwd` (passwd(5)). Other name services are not asked: this is for display only.

use std::fs;

/// Knows the users' names.
#[derive(Debug, Default)]
pub(crate) struct Users {
    passwd: String,
}

impl Users {
    /// Those of this host; none if the file cannot be read.
    pub(crate) fn of_host() -> Self {
        Self { passwd: fs::read_to_string("/etc/passwd").unwrap_or_default() }
    }

    /// A user's name, if it has one.
    pub(crate) fn name(&self, uid: u32) -> Option<&str> {
        self.passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid) && !name.is_empty()).then_some(name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_number() {
        let users = Users { passwd: "root:x:0:0::/root:/bin/sh\nbroken\nwww:x:33:33::/:\n".into() };
        assert_eq!(users.name(33), Some("www"));
        assert_eq!(users.name(0), Some("root"));
        assert_eq!(users.name(7), None);
    }
}
