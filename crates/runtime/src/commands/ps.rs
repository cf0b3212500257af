//! `ps`: the processes of a container as its guest counts them, laid out as ps(1) does.
//!
//! runc runs the host's ps(1), which cannot see into a guest. Its standard output (`-ef`) and columns chosen by `-o` are
//! made here; other options are refused by name.
//!
//! In JSON it is process ids of the host, as with runc: engines look for them there. It is the one of the process that stands for the container's;
//! those of the guest would name strangers.

use std::{
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use agent_api::ProcessInfo;
use sandbox::{client::Client, store::Status};

use crate::{
    Error, Result,
    cli::{Context, output},
    go, sys,
    users::Users,
};

/// Lists the processes.
pub(crate) fn ps(context: &Context, id: &str, format: &str, options: &[String]) -> Result<ExitCode> {
    let columns = match format {
        "table" => columns(options)?,
        "json" => Vec::new(),
        _ => return Err(Error::refused("invalid format option")),
    };
    let state = context.store.state(id)?;
    if format == "json" {
        let pids: Vec<u32> = [state.pid].into_iter().filter(|pid| *pid != 0).collect();
        let text = go::json(&pids).map_err(|e| Error::io("write the pids as JSON", e))?;
        return output(context, &(text + "\n"));
    }
    let mut processes = match state.status {
        Status::Stopped => Vec::new(),
        _ => Client::new(&context.store, id)?.processes()?,
    };
    processes.sort_by_key(|process| process.pid);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    output(context, &table(&columns, &processes, now, &Users::of_host()))
}

/// What a column shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    User,
    Uid,
    Pid,
    Ppid,
    Cpu,
    Started,
    Elapsed,
    Tty,
    State,
    Time,
    Command,
    Name,
}

/// A column's name for `-o`, its heading, its width in characters, and whether it is flush right; as in ps(1).
const COLUMNS: [(Column, &str, &str, usize, bool); 16] = [
    (Column::User, "user", "USER", 8, false),
    (Column::User, "euser", "EUSER", 8, false),
    (Column::Uid, "uid", "UID", 5, true),
    (Column::Pid, "pid", "PID", 5, true),
    (Column::Ppid, "ppid", "PPID", 5, true),
    (Column::Cpu, "c", "C", 2, true),
    (Column::Started, "stime", "STIME", 5, false),
    (Column::Elapsed, "etimes", "ELAPSED", 7, true),
    (Column::Tty, "tty", "TT", 8, false),
    (Column::Tty, "tt", "TT", 8, false),
    (Column::State, "stat", "STAT", 4, false),
    (Column::Time, "time", "TIME", 8, true),
    (Column::Command, "cmd", "CMD", 0, false),
    (Column::Command, "args", "COMMAND", 0, false),
    (Column::Command, "command", "COMMAND", 0, false),
    (Column::Name, "comm", "COMMAND", 15, false),
];

/// A column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shown {
    column: Column,
    heading: &'static str,
    width: usize,
    right: bool,
}

/// The table of `ps -ef`.
const FULL: [Shown; 8] = [
    Shown { column: Column::User, heading: "UID", width: 8, right: false },
    Shown { column: Column::Pid, heading: "PID", width: 5, right: true },
    Shown { column: Column::Ppid, heading: "PPID", width: 5, right: true },
    Shown { column: Column::Cpu, heading: "C", width: 2, right: true },
    Shown { column: Column::Started, heading: "STIME", width: 5, right: false },
    Shown { column: Column::Tty, heading: "TTY", width: 8, right: false },
    Shown { column: Column::Time, heading: "TIME", width: 8, right: true },
    Shown { column: Column::Command, heading: "CMD", width: 0, right: false },
];

/// The table of `ps -ex`.
const LONG: [Shown; 5] = [
    Shown { column: Column::Pid, heading: "PID", width: 7, right: true },
    Shown { column: Column::Tty, heading: "TTY", width: 8, right: false },
    Shown { column: Column::State, heading: "STAT", width: 4, right: false },
    Shown { column: Column::Time, heading: "TIME", width: 6, right: true },
    Shown { column: Column::Command, heading: "COMMAND", width: 0, right: false },
];

fn columns(options: &[String]) -> Result<Vec<Shown>> {
    let mut chosen = Vec::new();
    let mut usual: &[Shown] = &FULL;
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let list = match option.as_str() {
            "-ef" | "-e" | "-f" | "-A" => continue,
            "-x" | "-ex" => {
                usual = &LONG;
                continue;
            }
            "-o" => options.next().ok_or_else(|| Error::refused("ps: -o needs a list of columns"))?.as_str(),
            option => match option.strip_prefix("-o") {
                Some(list) => list,
                None => {
                    return Err(Error::refused(format!(
                        "ps: option {option:?} is not supported, because the host's ps cannot see into the guest; -ef, -x and -o are"
                    )));
                }
            },
        };
        for name in list.split(',') {
            let (column, _, heading, width, right) =
                *COLUMNS.iter().find(|(_, known, ..)| *known == name).ok_or_else(|| {
                    let known: Vec<&str> = COLUMNS.iter().map(|(_, known, ..)| *known).collect();
                    Error::refused(format!("ps: column {name:?} is not supported; these are: {}", known.join(", ")))
                })?;
            chosen.push(Shown { column, heading, width, right });
        }
    }
    Ok(if chosen.is_empty() { usual.to_vec() } else { chosen })
}

fn table(columns: &[Shown], processes: &[ProcessInfo], now: u64, users: &Users) -> String {
    let mut text = String::new();
    let mut row = |cells: Vec<String>| {
        let mut line = String::new();
        for (index, (shown, cell)) in columns.iter().zip(cells).enumerate() {
            let separator = if index == 0 { "" } else { " " };
            let width = if index + 1 == columns.len() && !shown.right { 0 } else { shown.width };
            line += &match shown.right {
                true => format!("{separator}{cell:>width$}"),
                false => format!("{separator}{cell:<width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    row(columns.iter().map(|shown| shown.heading.to_owned()).collect());
    for process in processes {
        row(columns.iter().map(|shown| cell(shown.column, process, now, users)).collect());
    }
    text
}

fn cell(column: Column, process: &ProcessInfo, now: u64, users: &Users) -> String {
    match column {
        Column::User => match users.name(process.uid) {
            // As ps(1): eight characters, the last of which says that there are more.
            Some(name) if name.chars().count() > 8 => name.chars().take(7).chain(['+']).collect(),
            Some(name) => name.to_owned(),
            None => process.uid.to_string(),
        },
        Column::Uid => process.uid.to_string(),
        Column::Pid => process.pid.to_string(),
        Column::Ppid => process.ppid.to_string(),
        Column::Cpu => {
            let lived_ms = now.saturating_sub(process.start_s).max(1) * 1000;
            (process.cpu_ms.saturating_mul(100) / lived_ms).min(99).to_string()
        }
        Column::Started => started(process.start_s, now),
        Column::Elapsed => now.saturating_sub(process.start_s).to_string(),
        Column::Tty => process.tty.clone(),
        Column::State => process.state.clone(),
        Column::Time => duration(process.cpu_ms / 1000),
        Column::Command => process.command.clone(),
        Column::Name => {
            let program = process.command.split_ascii_whitespace().next().unwrap_or_default();
            let name = program.rsplit('/').next().unwrap_or_default().trim_matches(['[', ']']);
            name.chars().take(15).collect()
        }
    }
}

/// `HH:MM` today, `MonDD` this year, else the year.
fn started(start: u64, now: u64) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (then, now) = (sys::local_time(start as i64), sys::local_time(now as i64));
    if then.year != now.year {
        then.year.to_string()
    } else if then.day_of_year != now.day_of_year {
        format!("{}{:02}", MONTHS[(then.month as usize - 1) % 12], then.day)
    } else {
        format!("{:02}:{:02}", then.hour, then.minute)
    }
}

/// `[DD-]HH:MM:SS`.
fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let days = if days > 0 { format!("{days}-") } else { String::new() };
    format!("{days}{hours:02}:{minutes:02}:{:02}", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An hour before midnight of some day, whatever the time zone: far from both ends of the local day.
    fn noon() -> u64 {
        let day = 400 * 86_400;
        day + 12 * 3600 - sys::local_time(day as i64).offset as u64
    }

    fn process() -> ProcessInfo {
        ProcessInfo {
            pid: 71,
            ppid: 1,
            uid: 4_000_000_000,
            cpu_ms: 61_500,
            start_s: noon(),
            tty: "?".into(),
            state: "S".into(),
            command: "/bin/sleep 1000".into(),
        }
    }

    #[test]
    fn the_table_looks_like_that_of_ps() {
        let text = table(&FULL, &[process()], noon() + 100, &Users::default());
        assert_eq!(
            text,
            "UID        PID  PPID  C STIME TTY          TIME CMD\n\
             4000000000    71     1 61 12:00 ?        00:01:01 /bin/sleep 1000\n"
        );
    }

    #[test]
    fn columns_can_be_chosen() {
        let options = |options: &[&str]| columns(&options.iter().map(ToString::to_string).collect::<Vec<_>>());
        let chosen = options(&["-o", "pid,comm,cmd"]).unwrap();
        let text = table(&chosen, &[process()], noon(), &Users::default());
        assert_eq!(text, "  PID COMMAND         CMD\n   71 sleep           /bin/sleep 1000\n");
        assert_eq!(options(&["-e", "-f"]).unwrap(), FULL);
        assert_eq!(options(&["-opid"]).unwrap().len(), 1);
        let text = table(&options(&["-e", "-x"]).unwrap(), &[process()], noon(), &Users::default());
        assert_eq!(text, "    PID TTY      STAT   TIME COMMAND\n     71 ?        S    00:01:01 /bin/sleep 1000\n");
        for (refused, word) in
            [(vec!["aux"], "\"aux\""), (vec!["-o", "rss"], "\"rss\""), (vec!["-o"], "list of columns")]
        {
            assert!(options(&refused).unwrap_err().to_string().contains(word));
        }
    }

    #[test]
    fn times_are_short() {
        assert_eq!(duration(3 * 86_400 + 3661), "3-01:01:01");
        assert_eq!(started(noon(), noon() + 86_400), "Feb05");
        assert_eq!(started(noon(), noon() + 366 * 86_400), "1971");
    }
}
