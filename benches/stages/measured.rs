//! The stages as functions that are not inlined, so that a profiler tells them apart by name:
//! `benches/instructions.sh` counts the instructions within each.

use std::time::Duration;

macro_rules! stages {
    ($($stage:ident)*) => {$(
        /// Runs a stage, and adds the time it takes.
        #[inline(never)]
        pub(crate) fn $stage<T>(time: &mut Duration, work: impl FnOnce() -> T) -> T {
            let started = crate::now();
            let done = work();
            *time += started.elapsed();
            done
        }
    )*};
}

stages!(walk intern ingest append decide log encode json);

macro_rules! sides {
    ($($side:ident)*) => {$(
        /// Runs the work of one side of a comparison.
        #[inline(never)]
        pub(crate) fn $side<T>(work: impl FnOnce() -> T) -> T {
            // Otherwise the compiler would merge the functions of both sides.
            std::hint::black_box(stringify!($side));
            work()
        }
    )*};
}

sides!(without with);
