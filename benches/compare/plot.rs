//! Pictures: a bar for each contender, in GB/s, or in seconds where it is seen what took them or bytes are not what counts.

use std::{fmt::Display, path::Path};

use anyhow::{Result, anyhow};
use plotters::{coord::Shift, prelude::*};

use crate::contest::{Outcome, Role, Standing};

const WIDTH: u32 = 900;
/// Room for one bar, and for its name above it.
const ROW: u32 = 44;
const MARGIN: i32 = 16;
const BAR: i32 = 18;
/// Room for the figure beside a bar.
const FIGURE: i32 = 90;
/// Of a phase's name.
const NAME: i32 = 120;
/// Of phases, one after the other.
const PHASES: [RGBColor; 5] = [
    RGBColor(190, 190, 190),
    RGBColor(31, 119, 180),
    RGBColor(220, 220, 160),
    RGBColor(255, 127, 14),
    RGBColor(150, 200, 150),
];

/// A part of a bar.
struct Part {
    length: f64,
    colour: RGBColor,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws how each did.
pub(crate) fn bars(path: &Path, outcome: &Outcome) -> Result<()> {
    let standings: Vec<&Standing> = outcome.contenders.iter().filter(|one| one.failure.is_none()).collect();
    let phases = standings.first().map(|standing| standing.phases()).unwrap_or_default();
    let all: Vec<Vec<Part>> = standings.iter().map(|standing| parts(standing)).collect();
    let longest = all.iter().map(|parts| length(parts)).fold(f64::MIN_POSITIVE, f64::max);
    let is_speed = phases.is_empty() && standings.iter().all(|standing| standing.speed().is_some());
    let unit = if is_speed { "GB/s" } else { "s" };
    let rows = u32::try_from(standings.len())?;
    let area = SVGBackend::new(path, (WIDTH, ROW * rows + 3 * ROW / 2)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| anyhow!("drawing {}: {error}", path.display()))?;
    text(&area, &format!("{}: {unit}", outcome.title), 20, (MARGIN, MARGIN))?;
    let bottom = i32::try_from(ROW * (rows + 1))?;
    for ((at, phase), colour) in (0_i32..).zip(&phases).zip(PHASES) {
        let left = MARGIN + at * NAME;
        rectangle(&area, [(left, bottom), (left + BAR, bottom + BAR)], colour)?;
        text(&area, phase.name, 15, (left + BAR + 6, bottom + 2))?;
    }
    for ((row, standing), parts) in (0_i32..).zip(standings).zip(&all) {
        let top = i32::try_from(ROW)? * (row + 1);
        text(&area, &standing.name, 15, (MARGIN, top))?;
        bar(&area, parts, longest, top + BAR)?;
    }
    area.present().map_err(|error| anyhow!("drawing {}: {error}", path.display()))
}

/// One bar, with its figure.
fn bar(area: &Area<'_>, parts: &[Part], longest: f64, top: i32) -> Result<()> {
    let room = f64::from(WIDTH) - f64::from(2 * MARGIN + FIGURE);
    #[expect(clippy::cast_possible_truncation, reason = "pixels")]
    let place = |length: f64| MARGIN + (room * length / longest) as i32;
    let mut done = 0.0;
    for part in parts {
        rectangle(area, [(place(done), top), (place(done + part.length), top + BAR)], part.colour)?;
        done += part.length;
    }
    text(area, &format!("{done:.2}"), 15, (place(done) + 8, top + 2))
}

fn parts(standing: &Standing) -> Vec<Part> {
    let phases = standing.phases();
    if phases.is_empty() {
        let length = standing.speed().unwrap_or_else(|| standing.median(|run| run.wall));
        return vec![Part { length, colour: colour(standing.role) }];
    }
    phases.iter().zip(PHASES).map(|(phase, colour)| Part { length: phase.seconds, colour }).collect()
}

fn length(parts: &[Part]) -> f64 {
    parts.iter().map(|part| part.length).sum()
}

fn text(area: &Area<'_>, words: &str, size: i32, at: (i32, i32)) -> Result<()> {
    area.draw(&Text::new(words.to_owned(), at, ("sans-serif", size).into_font())).map_err(failed)
}

fn rectangle(area: &Area<'_>, corners: [(i32, i32); 2], colour: RGBColor) -> Result<()> {
    area.draw(&Rectangle::new(corners, colour.filled())).map_err(failed)
}

fn failed(error: impl Display) -> anyhow::Error {
    anyhow!("drawing: {error}")
}

fn colour(role: Role) -> RGBColor {
    match role {
        Role::Limit => RGBColor(190, 190, 190),
        Role::Own => RGBColor(31, 119, 180),
        Role::Peer => RGBColor(255, 127, 14),
    }
}
