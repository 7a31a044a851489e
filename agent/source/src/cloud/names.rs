//! Names that the library would refuse or change, carried through it.
//!
//! A listing is given up by the library at the first name with an empty part, `..` or a control character in it,
//! and a `/` or a space at either end of a name is lost. So such a name is written another way in the answer,
//! before the library reads it, and turned back in what the library makes of it: whether it can be taken is for
//! [`Listed`](crate::Listed) to say.

use std::{borrow::Cow, ops::Range};

use bytes::Bytes;
use object_store::path::Path;
use percent_encoding::percent_decode_str;
use quick_xml::{
    Reader,
    escape::resolve_predefined_entity,
    events::{BytesRef, BytesStart, Event},
};

/// Begins a name that is carried; its bytes follow in hexadecimal digits, which nothing on the way changes.
const CARRIED: &str = "weightd-carried-";

/// The elements that hold names, and what they are in: of S3, Azure and WebDAV.
const NAMES: [(&[u8], &[u8]); 3] = [(b"Contents", b"Key"), (b"Blob", b"Name"), (b"response", b"href")];

/// An object's name as its origin has it, from a path of the library; as far as it can be shown, when it is not
/// UTF-8.
pub(crate) fn of(path: &Path) -> Result<Cow<'_, str>, String> {
    let raw = path.as_ref();
    let Some(bytes) = raw.strip_prefix(CARRIED).and_then(|digits| hex::decode(digits).ok()) else {
        return Ok(raw.into());
    };
    match String::from_utf8(bytes) {
        Ok(name) => Ok(name.into()),
        Err(error) => Err(String::from_utf8_lossy(error.as_bytes()).into_owned()),
    }
}

/// A listing in which every name is one that comes through the library. One that is not XML stays as it is: the
/// library says what is wrong with it.
pub(super) fn carry(listing: Bytes) -> Bytes {
    let Some(changes) = changes(&listing).filter(|changes| !changes.is_empty()) else { return listing };
    let mut carried = Vec::with_capacity(listing.len());
    let mut from = 0;
    for (at, text) in changes {
        carried.extend_from_slice(&listing[from..at.start]);
        carried.extend_from_slice(text.as_bytes());
        from = at.end;
    }
    carried.extend_from_slice(&listing[from..]);
    carried.into()
}

/// A name as it is read, piece by piece: entities and CDATA sections are pieces of their own.
struct Name {
    start: usize,
    text: String,
    is_url: bool,
    is_escaped: bool,
}

/// What is written instead of which bytes.
fn changes(listing: &[u8]) -> Option<Vec<(Range<usize>, String)>> {
    let mut reader = Reader::from_reader(listing);
    let (mut changes, mut parents, mut name) = (Vec::new(), Vec::<Vec<u8>>::new(), None::<Name>);
    let position = |reader: &Reader<&[u8]>| usize::try_from(reader.buffer_position()).ok();
    loop {
        let before = position(&reader)?;
        match (reader.read_event().ok()?, &mut name) {
            (Event::Eof, _) => return Some(changes),
            (Event::Start(element), _) => {
                let start = position(&reader)?;
                name = parents.last().and_then(|parent| begun(parent, &element, start));
                parents.push(element.local_name().as_ref().to_vec());
            }
            (Event::Text(text), Some(name)) => name.text.push_str(&text.decode().ok()?),
            (Event::CData(text), Some(name)) => name.text.push_str(&text.decode().ok()?),
            (Event::GeneralRef(reference), Some(name)) => name.text.push_str(&resolved(&reference)?),
            (Event::End(_), _) => {
                parents.pop();
                changes.extend(name.take().and_then(|name| Some((name.start..before, name.carried()?))));
            }
            _ => {}
        }
    }
}

fn begun(parent: &[u8], element: &BytesStart<'_>, start: usize) -> Option<Name> {
    let local = element.local_name();
    let known = NAMES.iter().any(|(within, name)| *within == parent && *name == local.as_ref());
    // Azure writes names that XML cannot hold as in a URL, and says so.
    let is_escaped = || {
        let attribute = element.try_get_attribute("Encoded").ok().flatten();
        attribute.is_some_and(|attribute| attribute.value.as_ref() == b"true")
    };
    known.then(|| Name {
        start,
        text: String::new(),
        is_url: local.as_ref() == b"href",
        is_escaped: is_escaped(),
    })
}

/// What an entity or a character reference stands for, zero too.
fn resolved(reference: &BytesRef<'_>) -> Option<String> {
    let reference = reference.decode().ok()?;
    let Some(number) = reference.strip_prefix('#') else {
        return resolve_predefined_entity(&reference).map(str::to_owned);
    };
    let code = match number.strip_prefix('x') {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => number.parse(),
    };
    code.ok().and_then(char::from_u32).map(String::from)
}

impl Name {
    /// What is written instead; nothing when it comes through as it is.
    fn carried(self) -> Option<String> {
        if self.is_url {
            return carried_url(&self.text);
        }
        let bytes: Cow<'_, [u8]> = match self.is_escaped {
            true => percent_decode_str(&self.text).into(),
            false => self.text.as_bytes().into(),
        };
        let comes_through = |name: &str| Path::parse(name).is_ok_and(|path| path.as_ref() == name);
        let is_plain = !self.is_escaped
            && self.text.trim() == self.text
            && !self.text.starts_with(CARRIED)
            && comes_through(&self.text);
        (!is_plain).then(|| written(&bytes))
    }
}

/// The same of an address in a listing of WebDAV, whose path is a name, with `/` before it, and after it if it is
/// a directory.
fn carried_url(address: &str) -> Option<String> {
    let address = address.trim();
    let path = match address.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => address,
    };
    let bytes: Cow<'_, [u8]> = percent_decode_str(path.trim_matches('/')).into();
    let is_plain = |name: &str| !name.starts_with(CARRIED) && Path::parse(name).is_ok();
    match std::str::from_utf8(&bytes) {
        Ok(name) if is_plain(name) => None,
        _ => Some(format!("/{}", written(&bytes))),
    }
}

fn written(name: &[u8]) -> String {
    format!("{CARRIED}{}", hex::encode(name))
}

#[cfg(test)]
mod tests;
