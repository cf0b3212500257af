//! `doctor`: what is the matter with this host, in one go.

use std::process::ExitCode;

use config::Config;
use sandbox::{plan::Plan, trial};

use super::{check, gc};
use crate::{
    Result,
    cli::{Context, output},
};

/// `doctor`.
pub(crate) fn doctor(context: &Context, boot: bool) -> Result<ExitCode> {
    let mut problems = Vec::new();
    let outcomes = check::run(context, &[]);
    output(context, &check::lines(&outcomes))?;
    problems.extend(count(
        outcomes.iter().filter(|outcome| outcome.verdict == "fails").count(),
        "check fails",
        "checks fail",
    ));

    match gc::find(context) {
        Ok(found) => {
            let items: Vec<_> = found.items().cloned().collect();
            output(context, &format!("\n{}", gc::text(&items, !items.is_empty())))?;
            if !items.is_empty() {
                problems.push("something is left over, which `kata-runtime gc` removes".into());
            }
            for (path, why) in &found.unclear {
                problems.push(format!("{}: {why}", path.display()));
            }
        }
        Err(error) => problems.push(format!("it cannot be told what is left over: {}", error.chain())),
    }

    if boot {
        match try_boot(context) {
            Ok(table) => drop(output(context, &format!("\na guest was booted and ended\n{table}"))?),
            Err(error) => problems.push(format!("no guest boots: {}", error.chain())),
        }
    }
    let verdict = match &problems[..] {
        [] if boot => "\nhealthy: everything that was tried works\n".to_owned(),
        [] => "\nhealthy, as far as can be told without booting a guest (--boot does)\n".to_owned(),
        problems => {
            format!("\nnot healthy:\n{}", problems.iter().map(|text| format!("  {text}\n")).collect::<String>())
        }
    };
    output(context, &verdict)?;
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn count(number: usize, one: &str, more: &str) -> Option<String> {
    match number {
        0 => None,
        1 => Some(format!("1 {one}")),
        number => Some(format!("{number} {more}")),
    }
}

/// Boots a guest without a container, and gives where the time went.
fn try_boot(context: &Context) -> Result<String> {
    crate::rootless::check()?;
    let config = Config::load(context.config_file.as_deref())?;
    let plan = Plan::new(&config, &mut |warning| context.log.warning(warning))?;
    let timeline = trial::boot(&context.store, &plan)?;
    Ok(timeline.table().into_iter().map(|line| line + "\n").collect())
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn numbers_are_in_words_that_fit() {
        assert_eq!(count(0, "check fails", "checks fail"), None);
        assert_eq!(count(1, "check fails", "checks fail").unwrap(), "1 check fails");
        assert_eq!(count(2, "check fails", "checks fail").unwrap(), "2 checks fail");
    }
}
