//! Tests against real servers; `support` starts and stops them.
