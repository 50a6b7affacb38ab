# The crates that the shipped programs and daemons are built of, but for our own, from `cargo metadata` of the workspace or of a daemon: name
# and version, licence, directory.
# As in spdx.jq: no dependencies of builds and of tests.

. as $metadata
| ($metadata.resolve.nodes | map({key: .id, value: .}) | from_entries) as $nodes
| ["virtiofsd", "vhost-device-vsock"] as $daemons
| ["containerd-shim-kata-v2", "kata-ctl", "tatami-agent"] + $daemons | . as $shipped
| def linked: [$nodes[.].deps[] | select(any(.dep_kinds[]; .kind == null)) | .pkg];
  def closure($seen): if length == 0 then $seen else
      (map(linked[]) | unique) - $seen | . as $new | closure($seen + $new | unique) end;
  ([$metadata.packages[] | select(.name as $name | $shipped | index($name)) | .id]) as $roots
| ($roots | closure($roots)) as $all
| $metadata.packages[]
| select(.id as $id | $all | index($id))
| select(.source != null or (.name as $name | $daemons | index($name)))
| ["\(.name) \(.version)", (.license // "none declared"), (.manifest_path | rtrimstr("/Cargo.toml"))]
| @tsv
