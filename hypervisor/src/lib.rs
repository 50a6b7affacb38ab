//! Boots and drives one VM.
