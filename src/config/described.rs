//! The getters of [`Section`] whose bounds and defaults come from the description of the key.
//!
//! A key without a description, or with another type in it, is a mistake in the code, which every
//! test that loads a configuration would find.

use std::{fmt::Display, time::Duration};

use super::{
    keys::{Key, Kind},
    section::{Read, Section},
    values,
};

impl Section<'_, '_> {
    /// An integer within its bounds.
    pub(super) fn integer<T>(&mut self, key: &'static str) -> Read<T>
    where
        T: TryFrom<u64> + TryFrom<i128> + PartialOrd + Display,
    {
        let Kind::Integer { min, max, .. } = self.kind(key) else { unlike(key) };
        self.integer_within(key, number(key, min)..=number(key, max))
    }

    /// An integer up to its upper bound, or 0; the caller reports a 0 that is not allowed.
    pub(super) fn integer_or_zero<T>(&mut self, key: &'static str) -> Read<T>
    where
        T: TryFrom<u64> + TryFrom<i128> + PartialOrd + Display,
    {
        let Kind::Integer { max, .. } = self.kind(key) else { unlike(key) };
        self.integer_within(key, number(key, 0)..=number(key, max))
    }

    /// The default of an integer.
    pub(super) fn default_integer<T: TryFrom<u64>>(&self, key: &'static str) -> T {
        let Kind::Integer { default: Some(default), .. } = self.kind(key) else { unlike(key) };
        number(key, default)
    }

    /// An integer, or its default.
    pub(super) fn integer_or_default<T>(&mut self, key: &'static str) -> T
    where
        T: TryFrom<u64> + TryFrom<i128> + PartialOrd + Display,
    {
        let default = self.default_integer(key);
        self.integer(key).or(default)
    }

    /// A duration within its bounds.
    pub(super) fn duration(&mut self, key: &'static str) -> Read<Duration> {
        let Kind::Duration { min, max, .. } = self.kind(key) else { unlike(key) };
        self.duration_within(key, min..=max)
    }

    /// The default of a duration.
    pub(super) fn default_duration(&self, key: &'static str) -> Duration {
        let Kind::Duration { default, .. } = self.kind(key) else { unlike(key) };
        default
    }

    /// A duration, or its default.
    pub(super) fn duration_or_default(&mut self, key: &'static str) -> Duration {
        let default = self.default_duration(key);
        self.duration(key).or(default)
    }

    /// A duration of a policy, in which there are no environment variables, or its default.
    pub(super) fn literal_duration_or_default(&mut self, key: &'static str) -> Duration {
        let Kind::Duration { min, max, default } = self.kind(key) else { unlike(key) };
        self.literal_duration_within(key, min..=max).or(default)
    }

    /// A boolean, or its default.
    pub(super) fn boolean_or_default(&mut self, key: &'static str) -> bool {
        let Kind::Boolean { default } = self.kind(key) else { unlike(key) };
        self.boolean(key).or(default)
    }

    /// The value for the word, or for the default word. `of` has the values in the order of the
    /// words in the description.
    pub(super) fn word<T: Copy, const N: usize>(&mut self, key: &'static str, of: [T; N]) -> T {
        let Kind::Word { words, default } = self.kind(key) else { unlike(key) };
        let default = words.iter().position(|word| *word == default);
        self.word_read(key, of).or(of[default.expect("the default is one of the words")])
    }

    /// The value for the word, if the file has the key.
    pub(super) fn word_read<T: Copy, const N: usize>(
        &mut self,
        key: &'static str,
        of: [T; N],
    ) -> Read<T> {
        let Kind::Word { words, .. } = self.kind(key) else { unlike(key) };
        assert_eq!(words.len(), N, "`{key}` has a value for each word");
        let choices: Vec<_> = words.iter().copied().zip(of).collect();
        self.text(key, |text| values::choice(key, text, &choices))
    }

    /// The default of a list of words.
    pub(super) fn default_words(&self, key: &'static str) -> &'static [&'static str] {
        let Kind::WordsOr { default, .. } = self.kind(key) else { unlike(key) };
        default
    }

    /// The default of a listener, a URL or a path.
    pub(super) fn default_text(&self, key: &'static str) -> &'static str {
        match self.kind(key) {
            Kind::Listener { default } | Kind::UrlPath { default } | Kind::Url { default } => {
                default
            }
            _ => unlike(key),
        }
    }

    fn kind(&self, key: &str) -> Kind {
        let described = self.keys.iter().find(|described: &&Key| described.name == key);
        described.unwrap_or_else(|| panic!("`{key}` is not described")).kind
    }
}

fn unlike(key: &str) -> ! {
    panic!("`{key}` is described as another type")
}

fn number<T: TryFrom<u64>>(key: &str, value: u64) -> T {
    T::try_from(value).unwrap_or_else(|_| panic!("`{key}` does not fit its type"))
}
