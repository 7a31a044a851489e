//! Names in URLs.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Everything but what a path segment may hold as it is; a slash in an object's name must not end the segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What a whole path may hold as it is.
const PATH: &AsciiSet = &SEGMENT.remove(b'/');

/// `name` as one segment of a URL's path, or a query value.
pub(crate) fn segment(name: &str) -> String {
    // A URL parser resolves segments of dots away, also escaped ones: nothing here can name an object `..` in a
    // path. In a query they stay.
    utf8_percent_encode(name, SEGMENT).to_string()
}

/// `name` as a path: its slashes stay.
pub(crate) fn path(name: &str) -> String {
    utf8_percent_encode(name, PATH).to_string()
}
