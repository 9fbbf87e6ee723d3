//! The Helm chart: lint, golden files, what its schema refuses, what an API server takes.
