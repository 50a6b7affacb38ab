//! Which names indicate that a secret follows, and which words are secrets themselves.

use std::ops::Range;

/// Parts of a name that say it.
const PARTS: [&str; 24] = [
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "pass",
    "pwd",
    "pw",
    "secret",
    "secrets",
    "token",
    "tokens",
    "auth",
    "auths",
    "authorization",
    "credential",
    "credentials",
    "creds",
    "cred",
    "cookie",
    "cookies",
    "jwt",
    "bearer",
    "apikey",
    "sas",
];

/// What says it anywhere in a name, also where its words run together.
const ANYWHERE: [&str; 11] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "apikey",
    "accesskey",
    "privatekey",
    "authorization",
    "accesssignature",
];

/// Names that sound so and are not: the working directories of a shell.
const HARMLESS: [&str; 2] = ["pwd", "oldpwd"];

/// Last parts of names that stand before the place of a secret, not the secret.
const PLACES: [&str; 8] = ["file", "path", "dir", "directory", "name", "type", "method", "endpoint"];

/// Beginnings of tokens, and the shortest that is one.
const TOKENS: [(&str, usize); 27] = [
    ("ghp_", 20),
    ("gho_", 20),
    ("ghu_", 20),
    ("ghs_", 20),
    ("ghr_", 20),
    ("github_pat_", 30),
    ("glpat-", 20),
    ("xoxb-", 20),
    ("xoxp-", 20),
    ("xoxa-", 20),
    ("sk_live_", 16),
    ("AKIA", 20),
    ("ASIA", 20),
    ("AIza", 35),
    ("dckr_pat_", 20),
    ("hvs.", 20),
    ("npm_", 30),
    ("hvb.", 20),
    ("xapp-", 20),
    ("xoxe-", 20),
    ("sk-", 32),
    ("sk_test_", 16),
    ("rk_live_", 16),
    ("pypi-", 30),
    ("glrt-", 20),
    ("GOCSPX-", 20),
    ("AGE-SECRET-KEY-1", 40),
];

fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || "_-.".contains(character)
}

/// The next word of the text that can be a name.
pub(super) fn next(text: &str, from: usize) -> Option<Range<usize>> {
    let start = from + text[from..].find(is_name)?;
    let length = text[start..].find(|c: char| !is_name(c)).unwrap_or(text.len() - start);
    Some(start..start + length)
}

/// Whether a secret stands behind a name.
pub(super) fn secret(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let plain: &str = lower.trim_start_matches('-');
    if HARMLESS.contains(&plain) {
        return false;
    }
    let parts = parts(name);
    let last = parts.last().map_or("", String::as_str);
    if PLACES.contains(&last) {
        return false;
    }
    let together: String = plain.chars().filter(char::is_ascii_alphanumeric).collect();
    let says = parts.iter().any(|part| PARTS.contains(&part.as_str()));
    says || matches!(last, "key" | "keys" | "pem") && parts.len() > 1 && !parts.iter().any(|part| part == "public")
        || matches!(plain, "key-data" | "client-key-data" | "certificate-key")
        || ANYWHERE.iter().any(|word| together.contains(word))
}

/// `registryAuth_TOKEN-2` is `registry`, `auth`, `token`, `2`.
fn parts(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut before = '_';
    for character in name.chars() {
        let begins = !character.is_ascii_alphanumeric()
            || character.is_ascii_uppercase() && before.is_ascii_lowercase()
            || character.is_ascii_digit() != before.is_ascii_digit();
        if begins && parts.last().is_some_and(|part| !part.is_empty()) {
            parts.push(String::new());
        }
        if character.is_ascii_alphanumeric()
            && let Some(part) = parts.last_mut()
        {
            part.push(character.to_ascii_lowercase());
        }
        before = character;
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Whether a word is a token by itself.
pub(super) fn token(word: &str) -> bool {
    if TOKENS
        .iter()
        .any(|(start, length)| word.starts_with(start) && word.len() >= *length)
    {
        return true;
    }
    // A JSON web token (RFC 7519): three parts, of which the first begins with `{"`.
    let mut parts = word.split('.');
    let first = parts.next().unwrap_or_default();
    first.starts_with("eyJ") && first.len() >= 10 && parts.count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_known_in_every_spelling() {
        for name in [
            "password",
            "PASSWORD",
            "jaeger_password",
            "--password",
            "dbPassword",
            "DB_PASS",
            "MYSQL_PWD",
            "api-key",
            "apiKey",
            "APIKEY",
            "access_key",
            "aws_secret_access_key",
            "identitytoken",
            "registry.auth",
            "auth",
            "Authorization",
            "client-key-data",
            "tls_key",
            "X-Auth-Token",
            "sshPrivateKey",
            "myPASSWORD2",
            "POSTGRES_PASSWORD",
            "pw",
        ] {
            assert!(secret(name), "{name}");
        }
    }

    #[test]
    fn names_of_other_things_are_not() {
        for name in [
            "PWD",
            "OLDPWD",
            "path",
            "kernel",
            "author",
            "compass",
            "passthrough",
            "authority",
            "key",
            "public_key",
            "key_file",
            "token_path",
            "bypass",
            "keyboard",
            "tls_key_file",
            "host",
            "password_file",
        ] {
            assert!(!secret(name), "{name}");
        }
    }
}
