//! What the processes of a server have mapped, as the kernel counts it.

use std::{collections::BTreeMap, fs, ops::AddAssign};

/// Bytes of mapped memory that are in a process's page tables.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mapped {
    /// All of them.
    pub(crate) resident: u64,
    /// The process's share: of a page that three processes have, a third.
    pub(crate) share: u64,
    /// Of pages that are its own, because it wrote to them.
    pub(crate) own: u64,
}

impl AddAssign for Mapped {
    fn add_assign(&mut self, other: Self) {
        self.resident += other.resident;
        self.share += other.share;
        self.own += other.own;
    }
}

/// What each process of a group has of the files that are meant by their names, where it has any.
pub(crate) fn of_group(group: u32, which: &impl Fn(&str) -> bool) -> BTreeMap<u32, Mapped> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let own = numbers.filter(|number| group_of(*number) == Some(group));
    own.map(|number| (number, mapped(number, which))).filter(|(_, mapped)| mapped.resident > 0).collect()
}

/// The process group that a process is in.
fn group_of(process: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the name, which may hold anything: state, parent, group.
    text.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()
}

fn mapped(process: u32, which: &impl Fn(&str) -> bool) -> Mapped {
    let text = fs::read_to_string(format!("/proc/{process}/smaps")).unwrap_or_default();
    let (mut all, mut is_meant) = (Mapped::default(), false);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            is_meant = line.find('/').is_some_and(|at| which(&line[at..]));
            continue;
        }
        let bytes = words.next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10;
        match first {
            "Rss:" if is_meant => all += Mapped { resident: bytes, ..Mapped::default() },
            "Pss:" if is_meant => all += Mapped { share: bytes, ..Mapped::default() },
            "Anonymous:" if is_meant => all += Mapped { own: bytes, ..Mapped::default() },
            _ => {}
        }
    }
    all
}
