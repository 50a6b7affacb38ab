//! A part of somebody else's file that is ours: added at its end between two marks, and taken out again so that the same
//! bytes are left. It knows neither what is in the file nor what is in the part.

const BEGIN: &str = "# BEGIN tatami (kata-ctl node install)";
const END: &str = "# END tatami (kata-ctl node uninstall removes this part)";
/// Ends the first line where the file did not end with a line feed and one had to be added.
const JOINED: &str = ", after an unfinished line";

/// Why a file's part cannot be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line} begins a part of this program that has no end: remove it by hand")]
pub(crate) struct Unfinished {
    /// Counted from 1.
    line: usize,
}

/// Where the part is, in bytes; with the line feed that had to be added before it.
fn find(text: &str) -> Result<Option<std::ops::Range<usize>>, Unfinished> {
    let mut begin = None;
    let mut at = 0_usize;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let content = line.trim_end_matches('\n');
        if content == BEGIN {
            begin = Some((at, number + 1));
        } else if content.strip_prefix(BEGIN) == Some(JOINED) {
            begin = Some((at.saturating_sub(1), number + 1));
        } else if let (END, Some((start, _))) = (content, begin) {
            return Ok(Some(start..at + line.len()));
        }
        at += line.len();
    }
    match begin {
        Some((_, line)) => Err(Unfinished { line }),
        None => Ok(None),
    }
}

/// The file without our part, and whether it had one.
pub(crate) fn without(text: &str) -> Result<(String, bool), Unfinished> {
    Ok(match find(text)? {
        Some(range) => {
            let mut rest = text.to_owned();
            // A line feed that was added stays if something follows by now.
            let joined = text[range.clone()].starts_with('\n') && range.end < text.len();
            rest.replace_range(range, if joined { "\n" } else { "" });
            (rest, true)
        }
        None => (text.to_owned(), false),
    })
}

/// The file with our part at its end, in place of an older one. `part` ends with a line feed.
pub(crate) fn with(text: &str, part: &str) -> Result<String, Unfinished> {
    let (mut text, _) = without(text)?;
    let joined = !text.is_empty() && !text.ends_with('\n');
    if joined {
        text.push('\n');
    }
    text.push_str(BEGIN);
    if joined {
        text.push_str(JOINED);
    }
    text.push('\n');
    text.push_str(part);
    text.push_str(END);
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_taken_out_leaves_the_same_bytes(text in "([a-z#\\[\\]\" =]{0,9}\n?){0,6}", part in "([a-z= ]{0,9}\n){0,3}") {
            let added = with(&text, &part).unwrap();
            prop_assert_eq!(with(&added, &part).unwrap(), added.clone());
            prop_assert_eq!(without(&added).unwrap(), (text.clone(), true));
            prop_assert_eq!(without(&text).unwrap(), (text, false));
        }
    }

    #[test]
    fn what_others_added_after_it_stays() {
        let added = with("a = 1", "b = 2\n").unwrap() + "[c]\n";
        assert_eq!(without(&added).unwrap().0, "a = 1\n[c]\n");
    }

    #[test]
    fn a_part_whose_end_was_deleted_is_an_error_with_its_line() {
        let text = with("a = 1\n", "b = 2\n").unwrap().replace(END, "");
        let error = without(&text).unwrap_err();
        assert_eq!(error, Unfinished { line: 2 });
        assert!(with(&text, "").is_err());
    }
}
