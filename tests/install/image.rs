//! The image: how it is built, and what it stands.
