//! Compiles `proto/` of the repository without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const APIS: [&str; 2] = ["kms/v1beta1/api.proto", "kms/v2/api.proto"];
    const ROOT: &str = "../../proto";
    println!("cargo:rerun-if-changed={ROOT}");
    let descriptors = protox::compile(APIS, [ROOT])?;
    tonic_prost_build::configure()
        // With `Bytes`, the owner of a plaintext allocates its memory and wipes it.
        .bytes(".")
        // `src/v2.rs` and `src/v1beta1.rs` implement `Debug`, because the derived one would print plaintext.
        .skip_debug(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
