//! Tables and units for people.

use comfy_table::{CellAlignment, ContentArrangement, Row, Table, presets};
use jiff::{Timestamp, tz::TimeZone};
use weightd_types::display_bytes;

/// Characters of an id that are shown in tables; every command takes the beginning of an id.
const ID_LENGTH: usize = 12;

/// A column's heading, and whether its cells are numbers.
pub(crate) type Column = (&'static str, bool);

/// Columns without borders, two spaces apart, nothing wrapped: easy to cut, easy to read.
pub(crate) fn columns(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(Row::from(columns.iter().map(|(heading, _)| *heading).collect::<Vec<_>>()));
    table.add_rows(rows);
    for (column, (_, is_number)) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 2));
        if *is_number {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Names on the left, values on the right.
pub(crate) fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let line = |(name, value): &(&str, String)| format!("{name:width$}  {value}").trim_end().to_owned();
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The beginning of an id.
pub(crate) fn short_id(id: &str) -> String {
    id.chars().take(ID_LENGTH).collect()
}

/// `62%`, rounded down so that 100% means all.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "100%".to_owned(),
        whole => format!("{}%", u128::from(part) * 100 / u128::from(whole)),
    }
}

/// Bytes a second, from bytes and seconds.
pub(crate) fn rate(bytes: u64, seconds: f64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let per_second = bytes as f64 / seconds.max(1e-3);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
    let whole = per_second as u64;
    format!("{}/s", display_bytes(whole))
}

/// `3 s`, `2 min 5 s`, `1 h 12 min`.
pub(crate) fn duration(seconds: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
    let seconds = seconds.ceil() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// `2026-11-23 18:40`, in the time zone of whoever reads it.
pub(crate) fn time(at: Option<Timestamp>) -> String {
    let local =
        |at: Timestamp| at.to_zoned_datetime(TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string();
    at.map_or_else(|| "-".to_owned(), local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_leave_no_space_at_the_end() {
        let rows = [vec!["a".to_owned(), "10".to_owned()], vec!["long".to_owned(), "5".to_owned()]];
        assert_eq!(columns(&[("NAME", false), ("SIZE", true)], rows), "NAME  SIZE\na       10\nlong     5");
    }

    #[test]
    fn people_read_units() {
        assert_eq!(percent(999, 1000), "99%");
        assert_eq!(percent(0, 0), "100%");
        assert_eq!(duration(2.1), "3 s");
        assert_eq!(duration(125.0), "2 min 5 s");
        assert_eq!(duration(4320.0), "1 h 12 min");
        assert_eq!(rate(2 << 20, 2.0), "1.00 MiB/s");
        assert_eq!(rate(1, 0.0), "1000 B/s");
    }
}
