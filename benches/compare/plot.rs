//! Pictures: a bar for each contender.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use weightd_benches::gigabytes;

use crate::contest::{Outcome, Role, Standing};

const WIDTH: u32 = 900;
/// Room for one bar, and for its name above it.
const ROW: u32 = 44;
const MARGIN: i32 = 16;
const BAR: i32 = 18;
/// Room for the figure beside a bar.
const FIGURE: i32 = 90;

/// Draws how fast each was, in GB/s.
pub(crate) fn bars(path: &Path, outcome: &Outcome) -> Result<()> {
    let standings: Vec<&Standing> = outcome.contenders.iter().filter(|one| one.failure.is_none()).collect();
    let speed = |standing: &Standing| gigabytes(standing.bytes) / standing.median(|run| run.wall);
    let fastest = standings.iter().map(|standing| speed(standing)).fold(f64::MIN_POSITIVE, f64::max);
    let rows = u32::try_from(standings.len())?;
    let area = SVGBackend::new(path, (WIDTH, ROW * rows + 3 * ROW / 2)).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("drawing {}: {error}", path.display());
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    let text = |words: &str, size: i32, at: (i32, i32)| {
        area.draw(&Text::new(words.to_owned(), at, ("sans-serif", size).into_font()))
            .map_err(|error| failed(&error))
    };
    text(&format!("{}: GB/s", outcome.title), 20, (MARGIN, MARGIN))?;
    let room = f64::from(WIDTH) - f64::from(2 * MARGIN + FIGURE);
    for (row, standing) in (0_i32..).zip(standings) {
        let top = i32::try_from(ROW)? * (row + 1);
        text(&standing.name, 15, (MARGIN, top))?;
        #[expect(clippy::cast_possible_truncation, reason = "pixels")]
        let right = MARGIN + (room * speed(standing) / fastest) as i32;
        let bar = [(MARGIN, top + BAR), (right, top + BAR + BAR)];
        area.draw(&Rectangle::new(bar, colour(standing.role).filled())).map_err(|error| failed(&error))?;
        text(&format!("{:.2}", speed(standing)), 15, (right + 8, top + BAR + 2))?;
    }
    area.present().map_err(|error| failed(&error))
}

fn colour(role: Role) -> RGBColor {
    match role {
        Role::Limit => RGBColor(190, 190, 190),
        Role::Own => RGBColor(31, 119, 180),
        Role::Peer => RGBColor(255, 127, 14),
    }
}
