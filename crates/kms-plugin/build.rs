//! Compiles `proto/` of the repository without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const APIS: [&str; 2] = ["kms/v1beta1/api.proto", "kms/v2/api.proto"];
    const ROOT: &str = "../../proto";
    println!("cargo:rerun-if-changed={ROOT}");
    let descriptors = protox::compile(APIS, [ROOT])?;
    tonic_prost_build::configure()
        // A message keeps plaintext in `Bytes`, so that its owner chooses, and wipes, the memory.
        .bytes(".")
        // The derived `Debug` would print plaintext: see `src/v2.rs` and `src/v1beta1.rs`.
        .skip_debug(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
