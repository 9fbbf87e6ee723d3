# The image of the daemon: a static binary, the authorities that Debian trusts, and nothing else.
#
#   docker build .                             for the platform of the builder
#   docker build --platform linux/arm64 .      for another one, cross-compiled
#   scripts/image                              the same, with the revision as a label and its time as that of all files
#
# What is built depends on what is copied and on the arguments, not on when, where or by whom.

# Give the image's digest too (rust:...@sha256:...) where it must not depend on a registry's word.
ARG RUST_IMAGE=docker.io/library/rust:1.95.0-bookworm
# Set by BuildKit; older releases of buildah want to be told.
ARG BUILDPLATFORM

# hadolint ignore=DL3006
FROM --platform=$BUILDPLATFORM $RUST_IMAGE AS build
ARG TARGETARCH
WORKDIR /src

# What the target needs, where the base image lacks it. hadolint wants packages pinned; Debian keeps only the newest of
# a stable release, and those of the base image are pinned with it.
# hadolint ignore=DL3008
RUN set -eu; \
    case "${TARGETARCH:?build with BuildKit, buildah or podman, which set it}" in \
        amd64) target=x86_64-unknown-linux-gnu linker=x86_64-linux-gnu-gcc package=gcc-x86-64-linux-gnu ;; \
        arm64) target=aarch64-unknown-linux-gnu linker=aarch64-linux-gnu-gcc package=gcc-aarch64-linux-gnu ;; \
        *) echo "no image for $TARGETARCH" >&2; exit 1 ;; \
    esac; \
    if ! command -v "$linker"; then \
        apt-get update; \
        apt-get install -y --no-install-recommends "$package" "libc6-dev-$TARGETARCH-cross"; \
        rm -rf /var/lib/apt/lists/*; \
    fi; \
    if [ ! -d "$(rustc --print target-libdir --target "$target")" ]; then rustup target add "$target"; fi; \
    mkdir .cargo; \
    printf '%s\n' >.cargo/config.toml \
        "[build]" "target = '$target'" \
        "[target.$target]" "linker = '$linker'" \
        "rustflags = ['-Ctarget-feature=+crt-static'," \
        "    '--remap-path-prefix=/usr/local/cargo=/cargo', '--remap-path-prefix=/src=.']"

COPY Cargo.toml Cargo.lock ./
COPY crates crates
COPY proto proto
COPY src src
COPY tests/Cargo.toml tests/
# The secret is a CA bundle for cargo, for those whose way to the crates has an authority of its own.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=secret,id=ca \
    set -eu; \
    if [ -s /run/secrets/ca ]; then export CARGO_HTTP_CAINFO=/run/secrets/ca; fi; \
    export CARGO_HOME=/usr/local/cargo; \
    export CFLAGS="-ffile-prefix-map=/usr/local/cargo=/cargo -ffile-prefix-map=/src=."; \
    cargo build --locked --release -p transit-kms; \
    mv target/*/release/transit-kms /; \
    rm -rf target

ARG VERSION=0.1.0
ARG REVISION=unknown
# Seconds since 1970; BuildKit takes the image's own time from it too.
ARG SOURCE_DATE_EPOCH=0
COPY LICENSE ./
# Builders tell what they have cached by the content of files, not by their time, and by the text of a LABEL, not by what
# it comes to. All that it must depend on is therefore in one file.
RUN set -eu; \
    if ! grep -qx "version = \"$VERSION\"" Cargo.toml; then \
        echo "VERSION is $VERSION, and Cargo.toml says otherwise" >&2; exit 1; \
    fi; \
    install -D -m 0755 /transit-kms /image/transit-kms; \
    install -D -m 0644 LICENSE /image/LICENSE; \
    install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt; \
    echo 'hosts: files dns' >/image/etc/nsswitch.conf; \
    printf '%s\n' 'root:x:0:0::/:/' 'transit-kms:x:65532:65532::/:/' >/image/etc/passwd; \
    printf '%s\n' 'root:x:0:' 'transit-kms:x:65532:' >/image/etc/group; \
    printf '%s\n' "VERSION=$VERSION" "REVISION=$REVISION" "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH" \
        >/image/etc/transit-kms-release; \
    chmod -R u=rwX,go=rX /image; \
    find /image -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

FROM scratch
COPY --from=build /image/ /
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="transit-kms" \
      org.opencontainers.image.description="Kubernetes KMS v2 provider for the Transit engine of HashiCorp Vault and OpenBao" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
USER 65532:65532
ENTRYPOINT ["/transit-kms"]
CMD ["--help"]
