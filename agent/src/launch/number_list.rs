//! Lists of CPUs and of memory nodes as the kernel writes them: `0-3,7` (cpuset(7), "List format").

/// Above this no kernel has CPUs or nodes.
pub(super) const END: usize = 1024;

/// The numbers of a list, each once and below [`END`], in order; none if it is no list.
pub(super) fn parse(list: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        numbers.extend(first..=last.min(END - 1));
    }
    numbers.sort_unstable();
    numbers.dedup();
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_and_numbers_are_read() {
        assert_eq!(parse("0-3,7, 2\n"), Some(vec![0, 1, 2, 3, 7]));
        assert_eq!(parse(""), Some(Vec::new()));
        assert_eq!(parse("1020-99999").map(|numbers| numbers.len()), Some(4));
        for wrong in ["a", "1-", "-1", "1,,x"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = parse(&text);
        }
    }
}
