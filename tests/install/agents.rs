//! The agent configurations, with real agents that log in.
