//! What requests and answers look like on the wire.

pub(crate) mod answer;
pub(crate) mod chat;
pub(crate) mod completion;
pub(crate) mod message;
pub(crate) mod object;
pub(crate) mod sampling;
pub(crate) mod tokens;
