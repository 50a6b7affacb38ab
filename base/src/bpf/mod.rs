//! BPF programs: instructions, and how they reach the kernel. What a program does is its user's.

mod attachment;
mod instruction;
mod sys;

pub use attachment::Attachment;
pub use instruction::*;
pub use sys::{attach, link, load, socket_map};
