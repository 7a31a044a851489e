//! The loop: one thread that waits for clients, their requests, their ends, and the end of a grace.

use std::{
    collections::BTreeMap,
    io,
    ops::Bound,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        SocketFlags, accept_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use crate::{
    arenas, cgroup,
    kept::Kept,
    place::{settle, take_over},
    protocol::{DESCRIPTORS, Kind, MESSAGE_BYTES, Request, receive, send},
    refuse, room, say,
};

/// Most names, so that a client gone mad cannot use up descriptors.
const NAMES: usize = 4096;
/// How long an answer may take to leave, and a keeper that takes over to say that it has everything.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most clients at once.
pub(crate) const CLIENTS: usize = 64;

struct Keeper {
    listener: OwnedFd,
    kept: BTreeMap<String, Kept>,
    /// Most descriptors to keep.
    room: usize,
    /// Most bytes of arenas.
    resident_limit: u64,
    clients: BTreeMap<u64, OwnedFd>,
    next_client: u64,
}

/// What comes after a request.
enum After {
    GoOn,
    HangUp,
    End,
}

/// Keeps descriptors until the process is ended, or another keeper takes over.
pub(crate) fn run(path: &Path, replace: bool, resident_limit: u64) -> io::Result<()> {
    let room = room::make();
    let (listener, kept) = if replace { take_over(path, room)? } else { (settle(path)?, BTreeMap::new()) };
    say(&format!("keeping {} names, listening at {}", kept.len(), path.display()));
    Keeper { listener, kept, room, resident_limit, clients: BTreeMap::new(), next_client: 0 }.serve()
}

impl Keeper {
    fn serve(mut self) -> io::Result<()> {
        loop {
            let (client, device, news) = self.wait()?;
            if news {
                self.welcome();
            }
            for client in client {
                match self.attend_to(client) {
                    After::GoOn => {}
                    After::HangUp => self.leave(client),
                    After::End => return Ok(()),
                }
            }
            self.end_graces();
            for name in device {
                self.refuse(&name);
            }
        }
    }

    /// Waits for something to do: clients that said something, names whose readers asked something, a new client.
    fn wait(&self) -> io::Result<(Vec<u64>, Vec<String>, bool)> {
        let refusing: Vec<(&String, BorrowedFd<'_>)> = self
            .kept
            .iter()
            .filter(|(_, kept)| kept.refuses)
            .filter_map(|(name, kept)| Some((name, kept.device()?)))
            .collect();
        let mut waiting = vec![PollFd::new(&self.listener, PollFlags::IN)];
        waiting.extend(self.clients.values().map(|client| PollFd::new(client, PollFlags::IN)));
        waiting.extend(refusing.iter().map(|(_, device)| PollFd::from_borrowed_fd(*device, PollFlags::IN)));
        let next = self.kept.values().filter_map(Kept::refuses_at).min();
        let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout + Duration::from_millis(1)).ok());
        match poll(&mut waiting, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut events = waiting.iter().map(|waiting| !waiting.revents().is_empty());
        let news = events.next().unwrap_or_default();
        let clients: Vec<u64> =
            self.clients.keys().zip(events.by_ref()).filter(|(_, ready)| *ready).map(|(id, _)| *id).collect();
        let devices =
            refusing.iter().zip(events).filter(|(_, ready)| *ready).map(|((name, _), _)| (*name).clone());
        Ok((clients, devices.collect(), news))
    }

    fn welcome(&mut self) {
        match accept_with(&self.listener, SocketFlags::CLOEXEC) {
            Ok(client) if self.clients.len() < CLIENTS => {
                // One that does not read its answers, or hangs while it takes over, must not stop the others.
                for timeout in [Timeout::Send, Timeout::Recv] {
                    let _ = set_socket_timeout(&client, timeout, Some(PATIENCE));
                }
                self.clients.insert(self.next_client, client);
                self.next_client += 1;
            }
            // Dropped: too many.
            Ok(_) => {}
            Err(error) => say(&format!("a client could not connect: {error}")),
        }
    }

    /// Serves one request of a client.
    fn attend_to(&mut self, id: u64) -> After {
        let Some(client) = self.clients.get(&id) else { return After::GoOn };
        let (line, outcome) = match receive(client) {
            Ok(None) => return After::HangUp,
            Ok(Some((line, descriptors))) => match line.parse::<Request>() {
                Ok(Request::HandOver) => return self.hand_over(id),
                Ok(request) => (line, self.obey(id, request, descriptors)),
                Err(why) => (line, Err(why.to_owned())),
            },
            Err(error) => (String::new(), Err(error.to_string())),
        };
        let answer = outcome.as_ref().map_or_else(|why| format!("error {why}"), Clone::clone);
        let attended =
            line.strip_prefix("attend ").or_else(|| line.strip_prefix("arena ")?.split(' ').next());
        let name = attended.filter(|_| answer == "ok");
        let beside = name.and_then(|name| self.kept.get(name)).map(Kept::borrowed).unwrap_or_default();
        match self.clients.get(&id).map(|client| send(client, &answer, &beside)) {
            Some(Ok(())) => After::GoOn,
            _ => After::HangUp,
        }
    }

    fn obey(&mut self, client: u64, request: Request, descriptors: Vec<OwnedFd>) -> Result<String, String> {
        match request {
            Request::Put { kind, name, grace } => {
                self.put(name, Kept::new(kind, grace, descriptors, Some(client)))
            }
            Request::Attend(name) => {
                let Some(kept) = self.kept.get_mut(&name) else { return Ok("none".to_owned()) };
                kept.stop_refusing().map_err(|error| error.to_string())?;
                kept.attendant = Some(client);
                Ok("ok".to_owned())
            }
            Request::Drop(name) => {
                self.kept.remove(&name);
                Ok("ok".to_owned())
            }
            Request::Arena { name, bytes } => self.make_arena(client, name, bytes),
            Request::Allocate { name, from, bytes } => {
                let kept = self.kept.get(&name);
                let Some((kept, arena)) = kept.and_then(|kept| Some((kept, kept.arena()?))) else {
                    return Err("there is no arena of that name".to_owned());
                };
                arenas::allocate(arena, kept.mapping.as_ref(), from, bytes).map(|()| "ok".to_owned())
            }
            Request::Room => Ok(format!("ok {} {}", self.resident_limit, arenas::used(self.arenas()))),
            Request::List { prefix, after } => Ok(self.list(&prefix, &after)),
            Request::HandOver => Err("not here".to_owned()),
        }
    }

    fn arenas(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        self.kept.values().filter_map(Kept::arena)
    }

    /// Makes an arena. It never takes the place of something else: there is no telling who needs that.
    fn make_arena(&mut self, client: u64, name: String, bytes: u64) -> Result<String, String> {
        arenas::check(bytes)?;
        if self.kept.contains_key(&name) {
            return Err(format!("something is kept as {name} already: drop it first"));
        }
        if let Err(full) = arenas::find_room(self.arenas(), bytes, self.resident_limit, cgroup::headroom()) {
            return Ok(full);
        }
        let (memory, mapping) = arenas::make(bytes)?;
        let mut kept = Kept::new(Kind::Arena { bytes }, u64::MAX, vec![memory], Some(client));
        kept.mapping = Some(mapping);
        self.put(name, kept)
    }

    fn put(&mut self, name: String, mut kept: Kept) -> Result<String, String> {
        let others = self.kept.iter().filter(|(other, _)| **other != name);
        let (names, held) =
            others.fold((0, 0), |(names, held), (_, other)| (names + 1, held + other.descriptors.len()));
        if kept.descriptors.is_empty() {
            return Err("there is no descriptor to keep".to_owned());
        }
        if names >= NAMES {
            return Err(format!("{NAMES} names are kept already"));
        }
        // The rest is for agents that connect, and say what is already kept once more.
        if held + kept.descriptors.len() > self.room {
            return Err(format!("{held} descriptors are kept already; raise the limit of open files"));
        }
        kept.stop_refusing().map_err(|error| error.to_string())?;
        self.kept.insert(name, kept);
        Ok("ok".to_owned())
    }

    /// One message of names. Whoever asks again for those after the last one gets them all.
    fn list(&self, prefix: &str, after: &str) -> String {
        let mut answer = "ok".to_owned();
        let later = self.kept.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        for (name, _) in later.filter(|(name, _)| name.starts_with(prefix)) {
            if answer.len() + 1 + name.len() > MESSAGE_BYTES {
                break;
            }
            answer.push(' ');
            answer.push_str(name);
        }
        answer
    }

    /// Gives everything to the keeper that takes this one's place. When that one fails this one goes on.
    fn hand_over(&mut self, client: u64) -> After {
        let Some(to) = self.clients.get(&client) else { return After::GoOn };
        for (name, kept) in &mut self.kept {
            let line = kept.kind.keep(name, kept.grace);
            let handed = kept.stop_refusing().and_then(|()| send(to, &line, &kept.borrowed()));
            if let Err(error) = handed {
                say(&format!("could not hand {name} over: {error}"));
                return After::HangUp;
            }
        }
        // It may still find that it cannot hold all that. Nobody else is served before it has said so.
        let said = send(to, "all", &[]).and_then(|()| receive(to));
        let has_all = said.is_ok_and(|said| said.is_some_and(|(line, _)| line == "end"));
        if has_all && send(to, "ok", &[]).is_ok() {
            return After::End;
        }
        say("the keeper that was to take over did not");
        After::HangUp
    }

    /// A client's connection ended: what it attended to is alone.
    fn leave(&mut self, client: u64) {
        self.clients.remove(&client);
        for kept in self.kept.values_mut().filter(|kept| kept.attendant == Some(client)) {
            kept.attendant = None;
            kept.alone_since = Instant::now();
        }
    }

    fn end_graces(&mut self) {
        let now = Instant::now();
        for (name, kept) in &mut self.kept {
            if kept.refuses_at().is_some_and(|at| at <= now)
                && let Some(device) = kept.device()
            {
                let outcome = refuse::begin(device);
                let outcome =
                    outcome.map_or_else(|error| error.to_string(), |()| "its readers get EIO".to_owned());
                say(&format!("no agent came for {name} in {} s: {outcome}", kept.grace));
                kept.refuses = true;
            }
        }
    }

    fn refuse(&mut self, name: &str) {
        let Some(kept) = self.kept.get(name).filter(|kept| kept.refuses) else { return };
        let Some(device) = kept.device() else { return };
        match refuse::refuse_all(device) {
            Ok(true) => {}
            Ok(false) => {
                say(&format!("{name} was unmounted"));
                self.kept.remove(name);
            }
            Err(error) => {
                say(&format!("{name} cannot be answered and is given up: {error}"));
                self.kept.remove(name);
            }
        }
    }
}

const _: () = assert!(DESCRIPTORS <= 8, "the protocol says so");
