//! Compiles `proto/` without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const API: &str = "kms/v2/api.proto";
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile([API], ["proto"])?;
    tonic_prost_build::configure()
        // Plaintext travels as `Bytes`, so that we choose (and wipe) the memory behind it.
        .bytes(".v2")
        // The derived `Debug` would print plaintext; see `kms::proto`.
        .skip_debug([".v2"])
        .compile_fds(descriptors)?;
    Ok(())
}
