//! Standard output: a terminal is redrawn in place; anything else gets a line at intervals.
//!
//! Redrawing needs three control sequences that every current terminal knows: move up, erase to the
//! end of the line, and no wrapping. With wrapping, a window narrower than the table would break
//! the layout. Writes block; the main thread makes them, which otherwise only waits. A missing
//! reader is an error, not a panic.

use std::{
    env,
    io::{self, IsTerminal as _, Stdout, Write as _, stdout},
    time::Duration,
};

use super::table::{self, Frame, Paint};

/// The time between two frames.
const FRAME_INTERVAL: Duration = Duration::from_secs(1);
/// The number of frames per line of plain output.
const FRAMES_PER_LINE: u64 = 5;

#[derive(Debug)]
pub(super) struct Screen {
    out: Stdout,
    is_terminal: bool,
    paint: Paint,
    frames: u64,
    /// The number of lines of the last frame, which the next frame replaces.
    drawn_lines: usize,
}

impl Screen {
    /// Finds out whether standard output is a terminal.
    pub(super) fn open() -> Self {
        let out = stdout();
        let is_dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
        let is_terminal = out.is_terminal() && !is_dumb;
        // https://no-color.org: any value but the empty one turns colour off.
        let is_bare = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let paint = Paint { is_on: is_terminal && !is_bare };
        Screen { out, is_terminal, paint, frames: 0, drawn_lines: 0 }
    }

    /// How to colour the output.
    pub(super) fn paint(&self) -> Paint {
        self.paint
    }

    /// The ticks of the frames, the first one interval from now.
    pub(super) fn frames() -> tokio::time::Interval {
        let first = tokio::time::Instant::now() + FRAME_INTERVAL;
        let mut frames = tokio::time::interval_at(first, FRAME_INTERVAL);
        frames.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        frames
    }

    /// Prints text that stays on the screen.
    ///
    /// # Errors
    /// If standard output is closed.
    pub(super) fn print(&mut self, text: &str) -> io::Result<()> {
        self.drawn_lines = 0;
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Shows the current state.
    ///
    /// # Errors
    /// If standard output is closed.
    pub(super) fn show(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        self.frames += 1;
        if self.is_terminal {
            self.draw(&table::live(frame, self.paint))
        } else if self.frames.is_multiple_of(FRAMES_PER_LINE) {
            self.print(&table::progress(frame))
        } else {
            Ok(())
        }
    }

    /// Replaces the last frame with the final text.
    ///
    /// # Errors
    /// If standard output is closed.
    pub(super) fn close(&mut self, text: &str) -> io::Result<()> {
        if self.is_terminal { self.draw(text) } else { self.print(&format!("\n{text}")) }
    }

    fn draw(&mut self, text: &str) -> io::Result<()> {
        let drawing = over(self.drawn_lines, text);
        self.drawn_lines = text.lines().count();
        // Written in one call, so that nobody sees half a frame.
        self.out.write_all(drawing.as_bytes())?;
        self.out.flush()
    }
}

/// The control sequences that draw `text` over the last `lines` lines.
fn over(lines: usize, text: &str) -> String {
    let up = if lines > 0 { format!("\x1b[{lines}A") } else { String::new() };
    // Each line is erased from its end on. Erasing all lines first would flicker.
    let text = text.replace('\n', "\x1b[K\n");
    format!("\r{up}\x1b[?7l{text}\x1b[?7h\x1b[J")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_drawn_over_the_one_before() {
        assert_eq!(over(0, "a\n"), "\r\x1b[?7la\x1b[K\n\x1b[?7h\x1b[J");
        assert_eq!(over(7, "a\n"), "\r\x1b[7A\x1b[?7la\x1b[K\n\x1b[?7h\x1b[J");
    }
}
