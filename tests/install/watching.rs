//! The alerting rules and the dashboard, against what a daemon really says.
