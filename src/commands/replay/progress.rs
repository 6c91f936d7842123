//! A progress line for reading the inputs, shown only on a terminal.

use std::{
    cell::Cell,
    fs,
    io::{self, IsTerminal as _, Read, Write as _},
    path::PathBuf,
    rc::Rc,
};

/// The bytes between two updates of the line, for inputs of unknown size.
const STEP_BYTES: u64 = 16 << 20;

const BAR_CHARS: u64 = 40;

/// How many bytes of all inputs have been read.
pub(super) struct Progress {
    is_shown: bool,
    read: Rc<Cell<u64>>,
    /// 0 if it is not known.
    total: u64,
    shown_at: Option<u64>,
}

impl Progress {
    pub(super) fn of(inputs: &[PathBuf]) -> Self {
        let sizes = inputs.iter().map(|input| {
            let metadata = fs::metadata(input).ok().filter(fs::Metadata::is_file);
            metadata.map(|metadata| metadata.len())
        });
        let total = sizes.sum::<Option<u64>>().unwrap_or(0);
        let is_shown = io::stderr().is_terminal();
        Progress { is_shown, read: Rc::default(), total, shown_at: None }
    }

    /// Wraps an input so that its bytes are counted.
    pub(super) fn counted<'i>(&self, input: impl Read + 'i) -> impl Read + 'i {
        Counted { input, read: Rc::clone(&self.read) }
    }

    /// Writes the line, if it has changed.
    pub(super) fn show(&mut self) {
        if !self.is_shown {
            return;
        }
        let read = self.read.get();
        let step = if self.total == 0 { STEP_BYTES } else { (self.total / 100).max(1) };
        let now = read / step;
        if self.shown_at.replace(now) == Some(now) {
            return;
        }
        // An error is ignored: the line is only for a terminal.
        let _ = write!(io::stderr(), "\r{}\x1b[K", line(read, self.total));
    }

    /// Removes the line, so that something else can be written.
    pub(super) fn clear(&mut self) {
        if self.shown_at.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(read: u64, total: u64) -> String {
    let mib = read >> 20;
    if total == 0 {
        return format!("read {mib} MiB");
    }
    let of_total = |whole: u64| (u128::from(read) * u128::from(whole) / u128::from(total)) as usize;
    let full = of_total(BAR_CHARS).min(BAR_CHARS as usize);
    let bar = "=".repeat(full) + &" ".repeat(BAR_CHARS as usize - full);
    format!("[{bar}] {:3} %, {mib} MiB", of_total(100).min(100))
}

struct Counted<R> {
    input: R,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.read.set(self.read.get() + read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn the_line_says_how_much_of_the_whole() {
        let half = format!("[{}{}]  50 %, 10 MiB", "=".repeat(20), " ".repeat(20));
        assert_eq!(line(10 << 20, 20 << 20), half);
        assert!(line(1 << 40, 20 << 20).starts_with(&format!("[{}] 100 %", "=".repeat(40))));
        assert_eq!(line(3 << 20, 0), "read 3 MiB");
    }
}
