//! Generates the protocol's types and services. Pure Rust: no protoc is needed.

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("generated");
    std::fs::create_dir_all(&out)?;
    Codegen::new()
        .inputs(["proto/agent.proto", "proto/diagnostics.proto"])
        .include("proto")
        .out_dir(&out)
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize {
            async_all: true,
            ..Default::default()
        })
        .run()?;
    std::fs::write(
        out.join("mod.rs"),
        "pub mod agent;\npub mod agent_ttrpc;\npub mod diagnostics;\npub mod diagnostics_ttrpc;\n",
    )?;
    Ok(())
}
