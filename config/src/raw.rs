//! A value as written in a file or an annotation, before it is interpreted.
//!
//! An annotation is always text: `"true"`, `"512"` and `"[\"--a\"]"` are parsed as a boolean, a number and a list. A file
//! has types, so a number in quotes is refused there.

use toml::de::DeValue;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) String);

impl Refusal {
    pub(crate) fn new(allowed: impl Into<String>) -> Self {
        Self(allowed.into())
    }
}

/// A value before it has a meaning.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Raw<'a> {
    File(&'a DeValue<'a>),
    Annotation(&'a str),
}

impl Raw<'_> {
    pub(crate) fn boolean(self) -> Option<bool> {
        match self {
            Raw::File(value) => value.as_bool(),
            Raw::Annotation(text) => text.trim().parse().ok(),
        }
    }

    /// A whole number.
    pub(crate) fn integer(self) -> Option<i64> {
        match self {
            Raw::File(DeValue::Integer(number)) => i64::from_str_radix(number.as_str(), number.radix()).ok(),
            Raw::File(_) => None,
            Raw::Annotation(text) => text.trim().parse().ok(),
        }
    }

    /// A finite number, whole or not.
    pub(crate) fn number(self) -> Option<f64> {
        let number = match self {
            Raw::File(DeValue::Float(number)) => number.as_str().parse().ok()?,
            Raw::File(DeValue::Integer(number)) if number.radix() == 10 => number.as_str().parse().ok()?,
            Raw::File(_) => return None,
            Raw::Annotation(text) => text.trim().parse::<f64>().ok()?,
        };
        number.is_finite().then_some(number)
    }

    /// A string.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Raw::File(value) => value.as_str(),
            Raw::Annotation(text) => Some(text),
        }
    }

    /// A list of strings. In an annotation: a list as in TOML or JSON, or strings with commas between them.
    pub(crate) fn list(self) -> Option<Vec<String>> {
        match self {
            Raw::File(value) => strings(value),
            Raw::Annotation(text) if text.trim_start().starts_with('[') => {
                strings(DeValue::parse(text.trim()).ok()?.get_ref())
            }
            Raw::Annotation(text) => Some(
                text.split(',')
                    .map(str::trim)
                    .filter(|part| !part.is_empty())
                    .map(str::to_owned)
                    .collect(),
            ),
        }
    }
}

fn strings(value: &DeValue<'_>) -> Option<Vec<String>> {
    value
        .as_array()?
        .iter()
        .map(|item| item.get_ref().as_str().map(str::to_owned))
        .collect()
}
