//! `multipart/related`: what is said of an object, its bytes, and perhaps their checksums, in one body.

use bytes::Bytes;

use super::refusal::Refusal;

/// The parts of an upload.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// JSON.
    pub(super) described: Bytes,
    pub(super) content_type: Option<String>,
    pub(super) media: Bytes,
    /// JSON, of clients that compute checksums while they send.
    pub(super) claimed: Option<Bytes>,
}

/// One part.
struct Part {
    content_type: Option<String>,
    body: Bytes,
}

/// Divides a body with this `Content-Type`. Nothing is copied.
pub(super) fn parts(body: &Bytes, content_type: &str) -> Result<Parts, Refusal> {
    let malformed = || Refusal::invalid("Malformed multipart body.");
    let boundary = boundary(content_type).ok_or_else(malformed)?;
    let mut parts = divided(body, &format!("--{boundary}")).ok_or_else(malformed)?.into_iter();
    let (described, media) = parts.next().zip(parts.next()).ok_or_else(malformed)?;
    Ok(Parts {
        described: described.body,
        content_type: media.content_type,
        media: media.body,
        claimed: parts.next().map(|part| part.body),
    })
}

fn boundary(content_type: &str) -> Option<&str> {
    let mut parameters = content_type.split(';').map(str::trim);
    let boundary = parameters.find_map(|parameter| parameter.strip_prefix("boundary="))?;
    // gcloud has it in the quotes of Python.
    Some(boundary.trim_matches(['"', '\''])).filter(|boundary| !boundary.is_empty())
}

fn divided(body: &Bytes, delimiter: &str) -> Option<Vec<Part>> {
    let start = find(body, delimiter.as_bytes())? + delimiter.len();
    let mut rest = body.slice(start..);
    // Lines end as RFC 2046 says, or as gcloud has them. What ends the first also ends what is before a delimiter, and is
    // no byte of it.
    let end = if rest.starts_with(b"\r\n") { "\r\n" } else { "\n" };
    let (before, blank) = (format!("{end}{delimiter}"), format!("{end}{end}"));
    let mut parts = Vec::new();
    while !rest.starts_with(b"--") {
        let length = find(&rest, before.as_bytes())?;
        parts.push(part(&rest.slice(..length), end, &blank)?);
        rest = rest.slice(length + before.len()..);
    }
    Some(parts)
}

/// Reads a part, which begins with the end of the delimiter's line.
fn part(bytes: &Bytes, end: &str, blank: &str) -> Option<Part> {
    let head = find(bytes, blank.as_bytes())?;
    let text = std::str::from_utf8(&bytes[..head]).ok()?;
    let content_type = text
        .split(end)
        .filter_map(|line| line.split_once(':'))
        .find_map(|(name, value)| name.eq_ignore_ascii_case("content-type").then(|| value.trim().to_owned()));
    Some(Part { content_type, body: bytes.slice(head + blank.len()..) })
}

/// Where `wanted` is in `bytes`.
fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = *wanted.first()?;
    let mut from = 0;
    loop {
        from += bytes[from..].iter().position(|byte| *byte == first)?;
        if bytes[from..].starts_with(wanted) {
            return Some(from);
        }
        from += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str, content_type: &str) -> Result<Parts, Refusal> {
        parts(&Bytes::copy_from_slice(body.as_bytes()), content_type)
    }

    #[test]
    fn parts_are_divided_as_each_client_writes_them() {
        let of_the_rfc = "--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\ncontent-type: text/plain\r\n\r\n\
                          one\r\n--two\r\n--b\r\n\r\n{\"crc32c\":\"x\"}\r\n--b--\r\n";
        let parts = read(of_the_rfc, "multipart/related; boundary=b").unwrap();
        assert_eq!((&parts.described[..], &parts.media[..]), (&b"{}"[..], &b"one\r\n--two"[..]));
        assert_eq!(parts.content_type.as_deref(), Some("text/plain"));
        assert_eq!(parts.claimed.as_deref(), Some(&b"{\"crc32c\":\"x\"}"[..]));

        let of_gcloud = "--=b==\nContent-Type: application/json\nMIME-Version: 1.0\n\n{}\n--=b==\nContent-Type: a/b\n\n\
                         ends with\r\n--=b==--";
        let parts = read(of_gcloud, "multipart/related; boundary='=b=='").unwrap();
        assert_eq!(&parts.media[..], b"ends with\r");
        assert_eq!(parts.claimed, None);

        let empty = "--b\r\n\r\n{}\r\n--b\r\n\r\n\r\n--b--";
        assert_eq!(&read(empty, "multipart/related; boundary=\"b\"").unwrap().media[..], b"");
    }

    #[test]
    fn what_is_no_multipart_is_refused() {
        for (body, content_type) in [
            ("", "multipart/related; boundary=b"),
            ("--b\r\n\r\n{}\r\n--b--", "multipart/related; boundary=b"),
            ("--b\r\n\r\n{}\r\n--b\r\n\r\nno end", "multipart/related; boundary=b"),
            ("--b\r\n\r\n{}\r\n--b\r\n\r\nx\r\n--b--", "multipart/related"),
        ] {
            assert!(read(body, content_type).is_err(), "{body:?}");
        }
    }
}
