//! The program as containerd calls it, without a VM.

use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use protobuf::Message;

fn shim(bundle: &Path, words: &[&str]) -> io::Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_containerd-shim-kata-v2"))
        .args(words)
        .current_dir(bundle)
        .stdin(Stdio::null())
        .output()
}

#[test]
fn the_version_is_for_people_and_the_info_for_containerd() {
    let bundle = tempfile::tempdir().unwrap();
    let output = shim(bundle.path(), &["-v"]).unwrap();
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains(env!("CARGO_PKG_VERSION"))
    );
    let output = shim(bundle.path(), &["-info"]).unwrap();
    let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.kata.v2");
    assert!(output.status.success() && output.stderr.is_empty());
    let features = info.features.into_option().unwrap();
    assert_eq!(
        features.type_url,
        "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    );
    let features: oci_spec::runtime::Features = serde_json::from_slice(&features.value).unwrap();
    assert!(features.mount_options().as_ref().unwrap().contains(&"rro".to_owned()));
}

#[test]
fn a_delete_of_what_never_was_answers_137_and_may_be_repeated() {
    let bundle = tempfile::tempdir().unwrap();
    let words = [
        "-namespace",
        "default",
        "-address",
        "/c",
        "-publish-binary",
        "/b",
        "-id",
        "never",
        "-bundle",
    ];
    let path = bundle.path().to_str().unwrap();
    for _ in 0..2 {
        let output = shim(bundle.path(), &[&words[..], &[path, "delete"]].concat()).unwrap();
        let answer = DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
        assert_eq!(answer.exit_status, 137);
        assert!(answer.exited_at.seconds > 0);
        assert!(output.status.success() && output.stderr.is_empty());
    }
}

#[test]
fn a_start_without_a_bundle_fails_with_the_path() {
    let bundle = tempfile::tempdir().unwrap();
    let output = shim(
        bundle.path(),
        &["-namespace", "default", "-address", "/c", "-id", "nothing", "start"],
    )
    .unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(String::from_utf8(output.stderr).unwrap().contains("config.json"));
}
