//! Finds the value after a name: where the value of `name = value`, `name: value` or `--name value` begins and ends.
//!
//! The caller has found the name; nothing here knows which names matter.

use std::ops::Range;

/// Longest value of brackets that is looked through, in bytes; a longer one is taken to its line's end.
const BRACKETS: usize = 64 << 10;

/// Where the value is; none where there is none.
pub(super) fn behind(text: &str, name: &Range<usize>) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let mut at = name.end;
    // The name's own quotes, escaped or not, and what closes it in a table's header or an index.
    while at < bytes.len() && b"\\\"'`]".contains(&bytes[at]) {
        at += 1;
    }
    let closed = at;
    at = skip_blanks(bytes, at);
    let separator = match bytes.get(at) {
        Some(b'=') => {
            at += 1;
            // `=>`, `==`
            at += usize::from(matches!(bytes.get(at), Some(b'>' | b'=')));
            b'='
        }
        Some(b':') if bytes.get(at + 1) == Some(&b'=') => {
            at += 2;
            b'='
        }
        Some(b':') => {
            at += 1;
            b':'
        }
        // `--name value`: no other name has its value behind a blank. As JSON, `"--name", "value"`.
        _ if text[name.clone()].starts_with('-') && at > closed => return flag_value(text, at),
        Some(b',') if text[name.clone()].starts_with('-') => return flag_value(text, at + 1),
        _ => return None,
    };
    at = skip_blanks(bytes, at);
    value(text, name, at, separator)
}

fn skip_blanks(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() && matches!(bytes[at], b' ' | b'\t') {
        at += 1;
    }
    at
}

fn flag_value(text: &str, at: usize) -> Option<Range<usize>> {
    let at = skip_blanks(text.as_bytes(), at);
    // Another option, or the end: the flag has no value.
    if matches!(text.as_bytes().get(at), None | Some(b'-' | b'\n')) {
        return None;
    }
    quoted(text, at).or_else(|| Some(at..word_end(text, at)))
}

fn value(text: &str, name: &Range<usize>, at: usize, separator: u8) -> Option<Range<usize>> {
    if let Some(value) = quoted(text, at) {
        return Some(value);
    }
    match text.as_bytes().get(at) {
        None => None,
        Some(b'{' | b'[') => Some(at..brackets_end(text, at)),
        // YAML: what follows on deeper lines, a block or a list.
        Some(b'\n' | b'\r') if separator == b':' => block(text, name, at),
        Some(b'|' | b'>' | b'#') if separator == b':' => {
            let end = block(text, name, at).map_or_else(|| line_end(text, at), |block| block.end);
            Some(at..end)
        }
        Some(b'\n' | b'\r') => None,
        Some(_) => Some(
            at..in_string(text, name, at).unwrap_or_else(|| {
                if begins_line(text, name) {
                    line_end(text, at)
                } else {
                    word_end(text, at)
                }
            }),
        ),
    }
}

/// `"NAME=value"`: the end of the string that holds both.
fn in_string(text: &str, name: &Range<usize>, at: usize) -> Option<usize> {
    let before = &text.as_bytes()[..name.start];
    let quote = *before.last()?;
    if !matches!(quote, b'"' | b'\'') || matches!(text.as_bytes().get(name.end), Some(b'"' | b'\'' | b'\\')) {
        return None;
    }
    let slashes = before[..before.len() - 1]
        .iter()
        .rev()
        .take_while(|byte| **byte == b'\\')
        .count();
    Some(closing(text, at, quote, slashes))
}

/// The inside of a string: one of TOML's four kinds, JSON's, a shell's, or a string within a string (`\"`).
fn quoted(text: &str, at: usize) -> Option<Range<usize>> {
    let rest = &text[at..];
    for long in ["\"\"\"", "'''"] {
        if let Some(inside) = rest.strip_prefix(long) {
            let start = at + long.len();
            return Some(start..start + inside.find(long).unwrap_or(inside.len()));
        }
    }
    let slashes = rest.bytes().take_while(|byte| *byte == b'\\').count();
    let quote = *rest.as_bytes().get(slashes)?;
    let start = at + slashes + 1;
    matches!(quote, b'"' | b'\'' | b'`').then(|| start..closing(text, start, quote, slashes))
}

/// Where the closing quote of a string is, with the backslashes before it that the opening one had, too. A string that
/// is not closed ends with its line.
fn closing(text: &str, start: usize, quote: u8, slashes: usize) -> usize {
    let bytes = text.as_bytes();
    let mut run = 0;
    let mut at = start;
    while at < bytes.len() && bytes[at] != b'\n' {
        let byte = bytes[at];
        // Two single quotes are one, in YAML.
        if byte == quote && quote == b'\'' && bytes.get(at + 1) == Some(&quote) && at > start {
            at += 2;
            run = 0;
            continue;
        }
        // In a string within strings the closing quote has as many backslashes as the opening one; the string's own have
        // more. In one that is not, pairs of them are backslashes.
        let closes = if slashes == 0 { run % 2 == 0 } else { run <= slashes };
        if byte == quote && closes {
            return if slashes == 0 { at } else { at - run };
        }
        run = if byte == b'\\' { run + 1 } else { 0 };
        at += 1;
    }
    at
}

/// To the closing bracket, strings apart.
fn brackets_end(text: &str, at: usize) -> usize {
    let bytes = text.as_bytes();
    let mut depth = 0usize;
    let mut string = None;
    let mut end = at;
    while end < bytes.len() && end - at < BRACKETS {
        match (bytes[end], string) {
            (b'\\', Some(_)) => end += 1,
            (byte, Some(quote)) if byte == quote => string = None,
            (_, Some(_)) => {}
            (quote @ (b'"' | b'\''), None) => string = Some(quote),
            (b'{' | b'[', None) => depth += 1,
            (b'}' | b']', None) => {
                depth -= 1;
                if depth == 0 {
                    return end + 1;
                }
            }
            _ => {}
        }
        end += 1;
    }
    // Not closed: half a file. All that is left may belong to it.
    text.len()
}

/// The deeper lines below a name that begins its line.
fn block(text: &str, name: &Range<usize>, at: usize) -> Option<Range<usize>> {
    let start = line_end(text, at);
    let line = text[..name.start].rfind('\n').map_or(0, |newline| newline + 1);
    let indent = indentation(&text[line..]);
    let mut end = start;
    for part in text[start..].split_inclusive('\n') {
        let body = part.trim_end_matches(['\r', '\n']);
        let list = body.trim_start().starts_with("- ") && indentation(body) == indent;
        if end > start && !body.trim().is_empty() && indentation(body) <= indent && !list {
            break;
        }
        end += part.len();
    }
    // The last line's end is not the secret's.
    let end = start + text[start..end].trim_end().len();
    (end > start).then_some(start..end)
}

/// Blanks, and the dash of a list's item.
fn indentation(line: &str) -> usize {
    line.bytes().take_while(|byte| matches!(byte, b' ' | b'\t')).count()
}

/// Whether the name is the first of its line: then the whole rest is its value, blanks included.
fn begins_line(text: &str, name: &Range<usize>) -> bool {
    let line = text[..name.start].rfind('\n').map_or(0, |newline| newline + 1);
    let before = text[line..name.start].trim();
    matches!(before, "" | "-" | "export" | "Environment=")
}

fn line_end(text: &str, at: usize) -> usize {
    text[at..].find(['\r', '\n']).map_or(text.len(), |length| at + length)
}

/// To a blank or a quote. Commas and brackets may be part of a password.
fn word_end(text: &str, at: usize) -> usize {
    let ends = |c: char| c.is_whitespace() || c.is_control() || "\"'`".contains(c);
    text[at..].find(ends).map_or(text.len(), |length| at + length)
}

pub(super) fn harmless(value: &str) -> bool {
    let value = value.trim();
    value.is_empty()
        || value == super::mask::MASK
        || ["true", "false", "null", "none", "nil", "~", "{}", "[]"]
            .iter()
            .any(|word| value.eq_ignore_ascii_case(word))
}
