//! Pages of what is in a bucket.

use std::{ops::Bound, sync::Arc};

use base64::{Engine, prelude::BASE64_URL_SAFE};

use super::{object::Stored, refusal::Refusal, request::Query, store::Objects};

/// Entries of a page, also when more are asked for.
const MOST: usize = 1000;

/// Which entries are asked for.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    prefix: &'a str,
    /// What lies behind the next one of these is one entry.
    delimiter: Option<&'a str>,
    /// Whether an object whose name ends where that entry's does is listed beside it.
    with_trailing: bool,
    start: &'a str,
    end: Option<&'a str>,
    /// The last entry of the page before.
    after: Option<String>,
    most: usize,
}

/// Some entries.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) objects: Vec<Arc<Stored>>,
    pub(super) prefixes: Vec<String>,
    /// What to ask the next page with.
    pub(super) next: Option<String>,
}

impl<'a> Asked<'a> {
    pub(super) fn of(query: &'a Query) -> Result<Self, Refusal> {
        let after = query.get("pageToken").map(|token| {
            let name = BASE64_URL_SAFE.decode(token).ok().and_then(|name| String::from_utf8(name).ok());
            name.ok_or_else(|| Refusal::invalid("Invalid pageToken."))
        });
        let most = query.number("maxResults")?.and_then(|most| usize::try_from(most).ok());
        Ok(Self {
            prefix: query.get("prefix").unwrap_or_default(),
            delimiter: query.get("delimiter"),
            with_trailing: query.is_set("includeTrailingDelimiter"),
            start: query.get("startOffset").unwrap_or_default(),
            end: query.get("endOffset"),
            after: after.transpose()?,
            most: most.unwrap_or(MOST).clamp(1, MOST),
        })
    }

    /// The page of them.
    pub(super) fn page(&self, objects: &Objects) -> Page {
        let mut page = Page::default();
        let (mut last, mut count) = (None, 0);
        let first = Bound::Included(self.start.max(self.prefix));
        for (name, object) in objects.range::<str, _>((first, Bound::Unbounded)) {
            if !name.starts_with(self.prefix) || self.end.is_some_and(|end| name.as_str() >= end) {
                break;
            }
            let folder = self.folder(name);
            let entry = folder.unwrap_or(name);
            // A page ends before an entry, never within one.
            if last == Some(entry) || self.after.as_deref().is_some_and(|after| entry <= after) {
                continue;
            }
            if count == self.most {
                page.next = last.map(|last| BASE64_URL_SAFE.encode(last));
                break;
            }
            (last, count) = (Some(entry), count + 1);
            page.prefixes.extend(folder.map(str::to_owned));
            if folder.is_none_or(|folder| self.with_trailing && folder == name) {
                page.objects.push(Arc::clone(object));
            }
        }
        page
    }

    /// The entry that stands for a name and others, up to and with the delimiter.
    fn folder<'n>(&self, name: &'n str) -> Option<&'n str> {
        let delimiter = self.delimiter?;
        let at = self.prefix.len() + name.get(self.prefix.len()..)?.find(delimiter)?;
        Some(&name[..at + delimiter.len()])
    }
}
