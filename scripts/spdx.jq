# An SPDX 2.3 document of what is in the packages, from `cargo metadata`: the crates that the shipped programs are built of, the
# guest's kernel, and the daemons.

def id: gsub("[^A-Za-z0-9.-]"; "-");

. as $metadata
| ($metadata.resolve.nodes | map({key: .id, value: .}) | from_entries) as $nodes
| ["containerd-shim-kata-v2", "kata-ctl", "tatami-agent"] as $shipped
# What is linked into a program: no dependencies of builds and of tests.
| def linked: [$nodes[.].deps[] | select(any(.dep_kinds[]; .kind == null)) | .pkg];
  def closure($seen): if length == 0 then $seen else
      (map(linked[]) | unique) - $seen | . as $new | closure($seen + $new | unique) end;
  ([$metadata.packages[] | select(.name as $name | $shipped | index($name)) | .id]) as $roots
| ($roots | closure($roots)) as $all
| [$metadata.packages[] | select(.id as $id | $all | index($id))
    | {name, version, license: (.license // "NOASSERTION" | gsub("/"; " OR ")), ours: (.source == null)}] as $crates
| ($crates | map({
      SPDXID: "SPDXRef-crate-\(.name | id)-\(.version | id)",
      name, versionInfo: .version,
      downloadLocation: (if .ours then "NOASSERTION" else "https://crates.io/crates/\(.name)/\(.version)" end),
      licenseConcluded: "NOASSERTION", licenseDeclared: .license, copyrightText: "NOASSERTION", filesAnalyzed: false,
      externalRefs: (if .ours then [] else [{referenceCategory: "PACKAGE-MANAGER", referenceType: "purl",
          referenceLocator: "pkg:cargo/\(.name)@\(.version)"}] end)
  })) as $packages
| def other($name; $number; $licence; $more): {
      SPDXID: "SPDXRef-\($name)", name: $name, versionInfo: $number, downloadLocation: "NOASSERTION",
      licenseConcluded: "NOASSERTION", licenseDeclared: $licence, copyrightText: "NOASSERTION", filesAnalyzed: false} + $more;
  ($packages + [
      other("linux"; $kernel; "GPL-2.0-only"; {sourceInfo: "guest-kernel/pin and guest-kernel/patches; sha256 of the source: \($kernelsum)"}),
      other("virtiofsd"; $virtiofsd; "Apache-2.0 AND BSD-3-Clause"; {}),
      other("vhost-device-vsock"; $vsock; "Apache-2.0 OR BSD-3-Clause"; {sourceInfo: "with hypervisor/patches/vhost-device-vsock; sha256 of the crate: \($vsocksum)"}),
      other("busybox"; "NOASSERTION"; "GPL-2.0-only"; {sourceInfo: "in debug-console.img: the busybox-static of the machine that built it"})
  ] + [$iptables | split("\n")[] | select(length > 0) | split(" ")
      | other(.[2] | id; .[3]; {glibc: "LGPL-2.1-or-later", libmnl: "LGPL-2.1-or-later"}[.[0]] // "GPL-2.0-or-later";
            {name: .[2], sourceInfo: "in iptables.img: of Debian's source package \(.[0]) \(.[1])"})]) as $parts
| {
      spdxVersion: "SPDX-2.3", dataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT", name: "tatami-\($version)",
      documentNamespace: "https://spdx.org/spdxdocs/tatami-\($version)",
      creationInfo: {created: $created, creators: ["Tool: scripts/packages"]},
      packages: ([other("tatami"; $version; "Apache-2.0"; {})] + $parts),
      relationships: ([{spdxElementId: "SPDXRef-DOCUMENT", relationshipType: "DESCRIBES", relatedSpdxElement: "SPDXRef-tatami"}]
          + ($parts | map({spdxElementId: "SPDXRef-tatami", relationshipType: "CONTAINS", relatedSpdxElement: .SPDXID})))
  }
