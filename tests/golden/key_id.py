"""Writes key_id.tsv: golden vectors made apart from the Rust code."""

import hashlib
import struct

CASES = [
    ("", "transit", "kms", 1, 1700000000),
    ("", "transit", "kms", 2, 1700000000),
    ("", "transit", "kms", 4294967295, 0),
    ("team-a", "transit", "kms", 1, 1700000000),
    # The same key by two more spellings of its path: the key_id must be the same.
    ("", "team-a/transit", "kms", 1, 1700000000),
    ("root", "/team-a/transit/", "kms", 1, 1700000000),
    ("team-a/prod", "k8s/transit", "cluster-1.secrets", 12, 1795344808),
    ("", "a", "b", 1, -1),
]


def key_id(namespace, mount, key, version, created):
    namespace = namespace.strip("/")
    namespace = "" if namespace == "root" else namespace
    path = "/".join(part for part in (namespace, mount.strip("/")) if part)
    scope = hashlib.sha256()
    for part in (path, key):
        data = part.encode()
        scope.update(struct.pack(">I", len(data)) + data)
    scope = scope.digest()[:16]
    birth = hashlib.sha256(scope + struct.pack(">Iq", version, created)).digest()[:8]
    return f"tk1.{scope.hex()}.{version}.{birth.hex()}"


with open("key_id.tsv", "w", encoding="utf-8") as out:
    out.write("# namespace\tmount\tkey\tversion\tcreated\tkey_id\tkey_id_hash\n")
    for case in CASES:
        made = key_id(*case)
        digest = hashlib.sha256(made.encode()).hexdigest()
        out.write("\t".join(map(str, case)) + f"\t{made}\tsha256:{digest}\n")
