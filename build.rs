//! Compiles Tailwater's own gRPC API, without protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const CONTROL: &str = "tailwater/control/v1/control.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile([CONTROL], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Server reflection and the JSON form of messages read it.
    fs::write(out.join("control.binpb"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
