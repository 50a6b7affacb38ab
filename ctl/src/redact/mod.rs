//! Removes secrets from any text: TOML, JSON, YAML, environment, command lines, logs.
//!
//! The text is not parsed: a log has JSON in a string in JSON, and a partial file must be as safe as a complete one. The
//! redactor looks for names that indicate a secret and removes the value after them. It removes too much rather than too
//! little. Line numbers do not change.

mod mask;
mod names;
mod value;

use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) use self::mask::MASK;

/// Counts what it takes out.
#[derive(Debug, Default)]
pub(crate) struct Redactor {
    count: AtomicUsize,
}

impl Redactor {
    pub(crate) fn clean(&self, text: &str) -> String {
        let without_keys = self.without_blocks(text);
        let without_named = self.without_named(&without_keys);
        self.without_shapes(&without_named)
    }

    /// How many were taken out so far.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn found(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Private keys (RFC 7468), also where their line ends are written as `\n` in a string.
    fn without_blocks(&self, text: &str) -> String {
        const BEGIN: &str = "-----BEGIN ";
        let mut clean = String::with_capacity(text.len());
        let mut rest = self.without_end_of_block(text, &mut clean);
        while let Some(start) = rest.find(BEGIN) {
            let (before, block) = rest.split_at(start);
            clean.push_str(before);
            let label = block[BEGIN.len()..].split("-----").next().unwrap_or_default();
            let private = label.len() < 64 && label.contains("PRIVATE KEY");
            if !private {
                clean.push_str(BEGIN);
                rest = &block[BEGIN.len()..];
                continue;
            }
            self.found();
            let end = format!("-----END {label}-----");
            // A key whose end is missing reaches to the end of the text.
            let length = block.find(&end).map_or(block.len(), |at| at + end.len());
            clean.push_str(MASK);
            clean.extend(block[..length].matches('\n'));
            rest = &block[length..];
        }
        clean.push_str(rest);
        clean
    }

    /// A private key whose beginning is not in the text, such as that of a log: all before its end that may be of it. The
    /// answer is what is left to look through.
    fn without_end_of_block<'a>(&self, text: &'a str, clean: &mut String) -> &'a str {
        const END: &str = "-----END ";
        let Some(end) = text.find(END) else { return text };
        let label = text[end + END.len()..].split("-----").next().unwrap_or_default();
        if text[..end].contains("-----BEGIN ") || label.len() >= 64 || !label.contains("PRIVATE KEY") {
            return text;
        }
        let of_key = |line: &str| {
            line.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+/= \t\r\n".contains(&byte))
        };
        let lines: Vec<_> = text[..end].split_inclusive('\n').collect();
        let key = lines
            .iter()
            .rev()
            .take_while(|line| of_key(line))
            .map(|line| line.len());
        let start = end - key.sum::<usize>();
        self.found();
        clean.push_str(&text[..start]);
        clean.push_str(MASK);
        clean.extend(text[start..end].matches('\n'));
        &text[end..]
    }

    /// What stands behind a name that says "secret".
    fn without_named(&self, text: &str) -> String {
        let mut clean = String::with_capacity(text.len());
        let mut at = 0;
        while let Some(name) = names::next(text, at) {
            clean.push_str(&text[at..name.end]);
            at = name.end;
            if !names::secret(&text[name.start..name.end]) {
                continue;
            }
            let Some(value) = value::behind(text, &name) else {
                continue;
            };
            clean.push_str(&text[at..value.start]);
            let secret = &text[value.clone()];
            if value::harmless(secret) {
                clean.push_str(secret);
            } else {
                self.found();
                clean.push_str(MASK);
                clean.extend(secret.matches('\n'));
            }
            at = value.end;
        }
        clean.push_str(&text[at..]);
        clean
    }

    /// What gives itself away: passwords in URLs, headers, tokens with a known beginning.
    fn without_shapes(&self, text: &str) -> String {
        let mut clean = String::with_capacity(text.len());
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 {
                clean.push('\n');
            }
            let line = self.without_userinfo(line);
            let line = self.without_credentials(&line);
            clean.push_str(&self.without_tokens(&line));
        }
        clean
    }

    /// `scheme://user:password@host` (RFC 3986, 3.2.1).
    fn without_userinfo(&self, line: &str) -> String {
        let mut clean = String::with_capacity(line.len());
        let mut rest = line;
        while let Some(start) = rest.find("://") {
            let (before, authority) = rest.split_at(start + 3);
            clean.push_str(before);
            let word = authority
                .find(|c: char| c.is_whitespace() || "\"'<>`".contains(c))
                .unwrap_or(authority.len());
            let host = authority[..word].find(['/', '?', '#']).unwrap_or(word);
            // A password may have what should end it: then what stands behind the colon is no port.
            let port = authority[..host].split_once(':');
            let odd = port.is_some_and(|(_, port)| !port.bytes().all(|byte| byte.is_ascii_digit()));
            let end = if odd { word } else { host };
            if let Some(at) = authority[..end].rfind('@') {
                if &authority[..at] != MASK {
                    self.found();
                }
                clean.push_str(MASK);
                rest = &authority[at..];
            } else {
                rest = authority;
            }
        }
        clean.push_str(rest);
        clean
    }

    /// `Bearer TOKEN`, `Basic CREDENTIALS` (RFC 6750, RFC 7617), and curl's `-u user:password`.
    fn without_credentials(&self, line: &str) -> String {
        const SCHEMES: [&str; 6] = ["Bearer ", "bearer ", "BEARER ", "Basic ", "basic ", "BASIC "];
        let mut clean = line.to_owned();
        for scheme in SCHEMES {
            clean = self.masked_behind(&clean, scheme, |word| {
                word.len() >= 6 && word != MASK && !is_plain(word)
            });
        }
        for flag in [" -u ", " --user ", " --user=", " -u="] {
            clean = self.masked_behind(&clean, flag, |word| word.contains(':') && word != MASK && !is_ids(word));
        }
        let client = CLIENTS.iter().any(|client| line.contains(client));
        for flag in [" -p", "\"-p", "'-p"] {
            clean = self.masked_behind(&clean, flag, |word| word != MASK && is_glued(word, client));
        }
        clean
    }

    /// Masks the word behind each `marker` that is a secret.
    fn masked_behind(&self, line: &str, marker: &str, secret: impl Fn(&str) -> bool) -> String {
        let mut clean = String::with_capacity(line.len());
        let mut rest = line;
        while let Some(start) = rest.find(marker) {
            let (before, behind) = rest.split_at(start + marker.len());
            clean.push_str(before);
            let end = behind
                .find(|c: char| c.is_whitespace() || "\"'`,;\\".contains(c))
                .unwrap_or(behind.len());
            if secret(&behind[..end]) {
                self.found();
                clean.push_str(MASK);
                rest = &behind[end..];
            } else {
                rest = behind;
            }
        }
        clean.push_str(rest);
        clean
    }

    /// Tokens that say what they are by their first characters, as their makers document them.
    fn without_tokens(&self, line: &str) -> String {
        let mut clean = String::with_capacity(line.len());
        let mut rest = line;
        while let Some(start) = rest.find(|c: char| is_token_character(c)) {
            clean.push_str(&rest[..start]);
            let word = &rest[start..];
            let end = word.find(|c: char| !is_token_character(c)).unwrap_or(word.len());
            if names::token(word[..end].trim_end_matches('.')) {
                self.found();
                clean.push_str(MASK);
            } else {
                clean.push_str(&word[..end]);
            }
            rest = &word[end..];
        }
        clean.push_str(rest);
        clean
    }
}

/// Programs whose `-pWORD` is a password, whatever the word.
const CLIENTS: [&str; 4] = ["mysql", "mariadb", "sshpass", "mongo"];

/// Whether a word that stands right behind `-p` is a password (`-pSECRET`), and not a port, a process's number, or the rest of
/// an option's name (`-pidfile=x`).
fn is_glued(word: &str, client: bool) -> bool {
    let name = word.split('=').next().unwrap_or_default();
    let rest_of_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    let numbers = word
        .bytes()
        .all(|byte| byte.is_ascii_digit() || b":.,-/".contains(&byte));
    !word.is_empty()
        && if client {
            !numbers || word.len() >= 6
        } else {
            !rest_of_name && !numbers
        }
}

/// `1000:1000`: a user and a group.
fn is_ids(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_digit() || byte == b':')
}

/// Whether it looks like a word of a language, and not like a generated secret.
fn is_plain(word: &str) -> bool {
    word.bytes()
        .all(|byte| byte.is_ascii_lowercase() || b".:".contains(&byte))
}

fn is_token_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || "_-.".contains(character)
}

#[cfg(test)]
mod tests;
