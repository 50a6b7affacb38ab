//! The flat keyed files of the kernel.

/// `key value` per line (memory.stat, cpu.stat, *.events). Lines of another form are left out.
pub(crate) fn flat(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}
