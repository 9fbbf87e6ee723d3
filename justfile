# Shortcuts for everyday commands; `just --list` shows them. CI and the scripts do not use this file.

# Show this list
default:
    @just --list

# Run the benchmarks against a real server
bench:
    TRANSIT_KMS_TEST_SERVER="$(scripts/tools --path)" cargo bench --locked -p integration-tests

# Build the daemon, optimised: target/release/transit-kms
build:
    cargo build --locked --release -p transit-kms

# Everything that must pass before a change is merged
ci:
    .ci/run

# Build the documentation of the code, with private items; warnings are errors
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items

# Format the code
fmt:
    cargo fmt --all

# Build the image, such as `just image --output transit-kms.tar`
image *arguments:
    scripts/image {{ arguments }}

# Check formatting and run clippy; warnings are errors
lint:
    cargo fmt --all --check && cargo clippy --locked --workspace --all-targets --test node -- -D warnings

# Run a real OpenBao, its agent and transit-kms on this machine until Ctrl-C
quickstart *arguments:
    scripts/quickstart {{ arguments }}

# Run all tests, or only those with a part of their name: `just test rotation`
test *arguments:
    scripts/test {{ arguments }}

# Run the tests that need only a Vault or OpenBao server
test-fast *arguments:
    scripts/test --fast {{ arguments }}
