//! What the documents say is so: links, flags, messages.
