//! Follows what stands between the commas of a list, or behind the colons of an object, except
//! strings and what is inside brackets, so that nothing in a document vanishes unnoticed.

/// What has been read of an element, or of the value of a member.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Slot {
    /// A value is awaited.
    #[default]
    Empty,
    /// So many letters of `null`.
    Null(usize),
    /// Another number or word.
    Scalar,
    /// No further value is awaited.
    Full,
    /// Something that is no value, which has been reported.
    Stray,
}

impl Slot {
    const LETTERS: &[u8] = b"null";
    pub(super) const NULL: Slot = Slot::Null(Slot::LETTERS.len());

    /// Reads a byte. Returns whether it is the first that shows that there is no value.
    pub(super) fn goes_on(&mut self, byte: u8, next: fn(Slot, u8) -> Slot) -> bool {
        let was = std::mem::replace(self, next(*self, byte));
        let is_cut = matches!(was, Slot::Null(_)) && was != Slot::NULL;
        match *self {
            Slot::Stray => was != Slot::Stray,
            Slot::Null(_) => false,
            // The end of a document is more important than what stands before it.
            _ => is_cut && byte != b'}',
        }
    }

    /// The next slot in a list, in which elements are objects or `null`.
    pub(super) fn in_list(self, byte: u8) -> Slot {
        match (byte, self) {
            (b',', _) => Slot::Empty,
            (b'{' | b'[', Slot::Empty | Slot::Full) | (b']' | b'}', _) => Slot::Full,
            (b' ' | b'\t' | b'\r' | b'\n', Slot::Empty | Slot::Full) => self,
            (b' ' | b'\t' | b'\r' | b'\n', Slot::NULL) => Slot::Full,
            (_, Slot::Empty | Slot::Null(_)) => self.letter(byte).unwrap_or(Slot::Stray),
            _ => Slot::Stray,
        }
    }

    /// The next slot in an object, in which anything may follow a colon.
    pub(super) fn in_object(self, byte: u8) -> Slot {
        match (byte, self) {
            (b':', _) => Slot::Empty,
            (b',', _) => Slot::Full,
            (_, Slot::Stray) => Slot::Stray,
            (b'"' | b'{' | b'[' | b'}' | b']', _) => Slot::Full,
            (b' ' | b'\t' | b'\r' | b'\n', Slot::Null(_) | Slot::Scalar) => Slot::Full,
            (b' ' | b'\t' | b'\r' | b'\n', _) => self,
            (_, Slot::Full) => Slot::Stray,
            _ => self.letter(byte).unwrap_or(Slot::Scalar),
        }
    }

    /// The next slot if the byte is the next letter of `null`.
    fn letter(self, byte: u8) -> Option<Slot> {
        let letters = match self {
            Slot::Empty => 0,
            Slot::Null(letters) => letters,
            _ => return None,
        };
        (Slot::LETTERS.get(letters) == Some(&byte)).then_some(Slot::Null(letters + 1))
    }
}
