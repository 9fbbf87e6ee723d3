# The image of transit-kms: a static binary, Debian's CA certificates, and a few small files.
#
#   docker build .                             for the builder's platform
#   docker build --platform linux/arm64 .      for another platform, cross-compiled
#   scripts/image                              the same, with the revision as a label and the time of the commit
#
# The build is reproducible: the result depends only on the copied files and the build arguments.

# Add a digest (rust:...@sha256:...) if you do not trust the registry to keep the tag.
ARG RUST_IMAGE=docker.io/library/rust:1.95.0-bookworm
# BuildKit sets this. Older releases of buildah need it as a build argument.
ARG BUILDPLATFORM

# hadolint ignore=DL3006
FROM --platform=$BUILDPLATFORM $RUST_IMAGE AS build
ARG TARGETARCH
WORKDIR /src

# Installs what the base image lacks for the target. hadolint wants pinned packages, but Debian keeps only the newest
# version of a package in a stable release.
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
# The secret is a CA bundle for cargo, for networks where a proxy with a private CA intercepts downloads.
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
# Unix time for all files. BuildKit also uses it as the image's creation time.
ARG SOURCE_DATE_EPOCH=0
COPY LICENSE ./
# Builders cache layers by the content of files, not by their time, and by the text of a LABEL, not by its expanded
# value. Therefore, one file contains all build arguments.
RUN set -eu; \
    if ! grep -qx "version = \"$VERSION\"" Cargo.toml; then \
        echo "VERSION is $VERSION, but Cargo.toml has another version" >&2; exit 1; \
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
