"""The parts of the packages, their versions and licences, as an SPDX 2.3 document.

Owns the list. debian/copyright says the same in Debian's form; `tests/unit/test_packages.py` compares the two.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from nvmuser import __version__
from nvmuser.toolchain.recipe import Recipe


@dataclass(frozen=True)
class Part:
    """Something by others that a package contains.

    :param name: as its makers call it.
    :param licence: an SPDX expression.
    :param where: it is, in the packages.
    """

    name: str
    version: str
    licence: str
    where: str


def parts(facts: dict[str, Any]) -> list[Part]:
    """What is packaged beside nvmuser itself. :param facts: SPDK's manifest."""
    source = f"source package {facts['package']}, with our patches"
    bundled = f"as in {facts['package']}"
    return [
        Part("SPDK", facts["version"], "BSD-3-Clause", f"nvmuser-spdk: {source}"),
        Part("DPDK", bundled, "BSD-3-Clause", "nvmuser-spdk: librte_*.so"),
        Part("libvfio-user", bundled, "BSD-3-Clause", "nvmuser-spdk: libvfio-user.so"),
        Part("isa-l", bundled, "BSD-3-Clause", "nvmuser-spdk: libisal.so"),
        Part("isa-l_crypto", bundled, "BSD-3-Clause", "nvmuser-spdk: libisal_crypto.so"),
        Part("fio", facts["fio"], "GPL-2.0-only", "nvmuser-spdk: bin/fio"),
        Part("spdk (Python)", metadata.version("spdk"), "BSD-3-Clause", "nvmuser: spdk"),
        Part("qemu.qmp", metadata.version("qemu.qmp"), "LGPL-2.0-or-later AND GPL-2.0-only", "nvmuser: qemu.qmp"),
    ]


def document(facts: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The document. The patches are named with their digests: with them SPDK is what runs here."""
    files = [
        {
            "SPDXID": f"SPDXRef-patch-{patch.name.partition('-')[0]}",
            "fileName": f"./spdk-glue/patches/{patch.name}",
            "checksums": [{"algorithm": "SHA256", "checksumValue": hashlib.sha256(patch.read_bytes()).hexdigest()}],
            "licenseConcluded": "BSD-3-Clause",
            "copyrightText": "NOASSERTION",
        }
        for patch in recipe.patches
    ]
    own = Part("nvmuser", __version__, "BSD-3-Clause", "all packages")
    packages = [_package(part) for part in (own, *parts(facts))]
    relations = [
        {"spdxElementId": packages[0]["SPDXID"], "relationshipType": "CONTAINS", "relatedSpdxElement": other["SPDXID"]}
        for other in packages[1:]
    ]
    relations += [
        {"spdxElementId": file["SPDXID"], "relationshipType": "PATCH_FOR", "relatedSpdxElement": packages[1]["SPDXID"]}
        for file in files
    ]
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"nvmuser-{__version__}",
        "documentNamespace": f"urn:nvmuser:{__version__}:{recipe.key}",
        "creationInfo": {"created": "1970-01-01T00:00:00Z", "creators": ["Tool: debian/sbom.py"]},
        "documentDescribes": [packages[0]["SPDXID"]],
        "packages": packages,
        "files": files,
        "relationships": relations,
    }


def _package(part: Part) -> dict[str, Any]:
    return {
        "SPDXID": "SPDXRef-" + "".join(letter if letter.isalnum() else "-" for letter in part.name),
        "name": part.name,
        "versionInfo": part.version,
        "licenseConcluded": part.licence,
        "licenseDeclared": part.licence,
        "copyrightText": "NOASSERTION",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "comment": part.where,
    }
