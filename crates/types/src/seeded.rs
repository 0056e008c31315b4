//! Seeded bugs: places where a build for the harness can break a promise on purpose, to prove that it would be found.
//!
//! `if bug!("id") { … }` is one line of the code that it breaks. Without the feature `seeded-bugs` it is the constant
//! `false`, and nothing of it is left in a program. With it one bug of the process is switched on by its id. What each
//! one breaks, and which run finds it, stands in the catalogue (`jepsen/bugs`).

/// Whether this seeded bug is switched on: never, outside of a build for the harness.
#[macro_export]
macro_rules! bug {
    ($id:literal) => {
        $crate::seeded::is_on($id)
    };
}

#[cfg(all(feature = "seeded-bugs", not(debug_assertions)))]
compile_error!("seeded bugs are for the harness: a release has none");

#[cfg(feature = "seeded-bugs")]
mod switch {
    use std::sync::OnceLock;

    static ON: OnceLock<String> = OnceLock::new();

    /// Switches one bug on, for the rest of the process. The first call decides.
    pub fn switch_on(id: &str) {
        ON.get_or_init(|| id.to_owned());
    }

    /// Whether it is switched on.
    pub fn is_on(id: &str) -> bool {
        ON.get().is_some_and(|on| on == id)
    }
}

#[cfg(feature = "seeded-bugs")]
pub use switch::{is_on, switch_on};

/// There are none in this build.
#[cfg(not(feature = "seeded-bugs"))]
#[inline]
pub const fn is_on(_id: &str) -> bool {
    false
}
