//! In place of `coverage`, where the code is compiled without counters: nothing is ever new.

pub(crate) struct Coverage;

impl Coverage {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn begin(&mut self) {}

    pub(crate) fn is_new(&mut self) -> bool {
        false
    }

    pub(crate) fn edges(&self) -> usize {
        0
    }
}
