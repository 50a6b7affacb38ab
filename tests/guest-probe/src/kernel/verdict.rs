//! What a kernel test found.

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The kernel does what it should; the figures.
    Right(String),
    /// The kernel has the fault; how it shows.
    Wrong(String),
}

impl Verdict {
    /// Right if the figure is what it should be. `what` names it.
    pub(super) fn figure(what: &str, found: i64, right: i64) -> Self {
        let says = format!("{what} {found} kB ({right} is right)");
        if found == right {
            Self::Right(says)
        } else {
            Self::Wrong(says)
        }
    }

    /// The first that is wrong, or the last.
    pub(super) fn all(verdicts: impl IntoIterator<Item = Self>) -> Self {
        let mut last = Self::Right(String::new());
        for verdict in verdicts {
            let wrong = matches!(verdict, Self::Wrong(_));
            last = verdict;
            if wrong {
                break;
            }
        }
        last
    }
}
