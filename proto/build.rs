//! From the `.proto` files to Rust, in `OUT_DIR`: no `protoc` is needed, and no generated code lies in the tree.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

/// The files, relative to this crate, which is also the root that imports are resolved from.
const FILES: [&str; 5] = [
    "pointsman/auth/v1/auth.proto",
    "pointsman/chat/v1/chat.proto",
    "pointsman/inference/v1/inference.proto",
    "pointsman/inference/v1/quic.proto",
    "pointsman/quota/v1/quota.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Servers tell their callers what they serve: reflection reads this.
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
