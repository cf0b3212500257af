//! Who the processes are that read what a guest writes.

/// First user id of virtual machine monitors: an otherwise unused range. The process id of who starts one is added, so that no two
/// live sandboxes share one.
const FIRST: u32 = 0x6b00_0000;

/// How many of a user's subordinate ids are taken for them, from the last one down.
const SUBORDINATE: u32 = 10_000;

/// Who the virtual machine monitor of this process is: somebody else than this process, if it may choose. `None` is the user itself.
pub(crate) fn vmm_uid() -> Option<u32> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let map = |file| std::fs::read_to_string(file).ok();
    choose(&map("/proc/self/uid_map")?, &map("/proc/self/gid_map")?, std::process::id())
}

/// The user of this process as it is known outside of its user namespace (user_namespaces(7)).
pub(crate) fn uid_outside() -> u32 {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    outside(&map, rustix::process::geteuid().as_raw())
}

fn outside(map: &str, id: u32) -> u32 {
    let of_line = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(|number| number.parse::<u32>().ok());
        let (first, outside, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let at = id.checked_sub(first).filter(|at| *at < count)?;
        outside.checked_add(at)
    };
    map.lines().find_map(of_line).unwrap_or(id)
}

/// user_namespaces(7): the first one has every id.
pub fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    ranges(&map) != [(0, u32::MAX - 1)]
}

/// Of the ids that a user namespace has (user_namespaces(7)), those of users and of groups.
fn choose(uids: &str, gids: &str, pid: u32) -> Option<u32> {
    let (uids, gids) = (ranges(uids), ranges(gids));
    let mapped =
        |id: u32| [&uids, &gids].iter().all(|map| map.iter().any(|(first, last)| (*first..=*last).contains(&id)));
    let of_host = FIRST.checked_add(pid).filter(|id| mapped(*id));
    // Rootless: the containers' own users have the first ones.
    let subordinate = || {
        let last = uids.iter().map(|(_, last)| *last).max()?;
        last.checked_sub(pid % SUBORDINATE).filter(|id| *id > SUBORDINATE && mapped(*id))
    };
    of_host.or_else(subordinate)
}

/// First and last id of each line.
fn ranges(map: &str) -> Vec<(u32, u32)> {
    let range = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(|number| number.parse::<u32>().ok());
        let (first, _, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some((first, first.checked_add(count.checked_sub(1)?)?))
    };
    map.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_host_it_is_one_of_a_range_of_ours() {
        let all = "         0          0 4294967295\n";
        assert_eq!(choose(all, all, 77), Some(FIRST + 77));
    }

    #[test]
    fn a_user_is_another_one_outside() {
        let map = "0 1000 1\n1 100000 65536\n";
        assert_eq!((outside(map, 0), outside(map, 3)), (1000, 100_002));
        assert_eq!(outside("0 0 4294967295\n", 0), 0);
        assert_eq!(outside("", 7), 7);
    }

    #[test]
    fn of_subordinate_ids_it_is_one_of_the_last() {
        let map = "0 1000 1\n1 100000 65536\n";
        assert_eq!(choose(map, map, 77), Some(65_536 - 77));
        assert_eq!(choose(map, map, 20_001), Some(65_536 - 1));
        assert_eq!(choose(map, "0 1000 1\n", 77), None, "no group");
    }

    #[test]
    fn without_subordinate_ids_it_is_the_user() {
        assert_eq!(choose("0 1000 1\n", "0 1000 1\n", 77), None);
        assert_eq!(choose("0 100000 65536\n", "0 100000 100\n", 77), None);
        assert_eq!(choose("garbage", "", 77), None);
    }
}
