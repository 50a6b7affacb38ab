//! The messages of `runtime.v1`, as far as the tests use them: wire-compatible, so what is left out here is skipped by
//! both sides. Numbers and meanings are those of Kubernetes' `cri-api/pkg/apis/runtime/v1/api.proto`, which documents
//! every field.

mod common;
mod container;
mod pod;
mod security;
mod stats;
mod streaming;

pub use self::{common::*, container::*, pod::*, security::*, stats::*, streaming::*};
