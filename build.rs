//! Compiles `proto/` without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const APIS: [&str; 2] = ["kms/v1beta1/api.proto", "kms/v2/api.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(APIS, ["proto"])?;
    tonic_prost_build::configure()
        // Plaintext travels as `Bytes`, so that we choose (and wipe) the memory behind it.
        .bytes(".")
        // The derived `Debug` would print plaintext; see `kms::proto`.
        .skip_debug(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
