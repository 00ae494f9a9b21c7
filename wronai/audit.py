"""What the pinned dependencies bring with them: known vulnerabilities, by pip-audit, and licences, by pip-licenses.

`make audit` runs both and fails on a finding that is not explained below, and where nothing was looked up at all.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PERMISSIVE = "asks for its notice to be kept; nothing of it is in this repository"
WEAK = "covers its own files, which are used unchanged as an installed package"
# Licences under which a dependency may come, by SPDX identifier, each with why that is fine for a project under
# Apache-2.0 that distributes no dependency: pip fetches each from its own publisher.
ALLOWED = {
    **dict.fromkeys(
        ("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND", "ISC"),
        PERMISSIVE,
    ),
    **dict.fromkeys(("MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "PostgreSQL", "ZPL-2.1", "Zlib"), PERMISSIVE),
    "MPL-2.0": WEAK,
    "MPL-1.1": WEAK,
    "LGPL-2.1-or-later": "a library, imported as it is and replaceable by its user",
    "LGPL-3.0-only": "a library, imported as it is and replaceable by its user",
    "LGPL-3.0-or-later": "a library, imported as it is and replaceable by its user",
    "EPL-1.0": WEAK,
    "EPL-2.0": WEAK,
    "GPL-2.0-only WITH linking exception": "its exception permits linking from code under any licence",
}
# What packages write instead of an identifier.
WRITTEN = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.1-or-later",
    "GNU Library or Lesser General Public License (LGPL)": "LGPL-3.0-or-later",
    "GPLv2 with linking exception": "GPL-2.0-only WITH linking exception",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The MIT License (MIT)": "MIT",
    "Zope Public License": "ZPL-2.1",
}
# Packages whose metadata says nothing, or less than their licence file: read there, on 2026-11-29.
READ = {
    "daft": "Apache-2.0",
    "grandalf": "GPL-2.0-only OR EPL-1.0",
    "huey": "MIT",
    "pgserver": "Apache-2.0 AND PostgreSQL",
    "skops": "MIT",
}
# Known vulnerabilities that do not apply, by identifier, each with the reason.
ACCEPTED: dict[str, str] = {}


@dataclass(frozen=True)
class Package:
    """An installed package, and its licence as an SPDX expression as far as it is known."""

    name: str
    licence: str


def licences(listed: str) -> list[Package]:
    """The packages in the JSON that pip-licenses prints. Raises ValueError for what is none."""
    try:
        entries = [(str(entry["Name"]), str(entry["License"])) for entry in json.loads(listed)]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"pip-licenses printed no list of packages: {listed.strip()[:200]!r}") from None
    return sorted((Package(name, READ.get(name) or identified(said)) for name, said in entries), key=_by_name)


def _by_name(package: Package) -> str:
    return package.name.lower()


def identified(said: str) -> str:
    """The SPDX expression for what a package says of its licence: whole texts are known by their first line."""
    first = said.strip().splitlines()[0].strip() if said.strip() else "UNKNOWN"
    parts = re.split("( AND | OR )", re.sub(r"\s*;\s*", " AND ", first))
    return "".join(WRITTEN.get(part, part) for part in parts)


def is_allowed(expression: str) -> bool:
    """Whether one may take a package under `expression`: of alternatives one is enough, of a sum all count."""
    plain = expression.strip()
    while plain.startswith("(") and _closing(plain) == len(plain) - 1:
        plain = plain[1:-1].strip()
    for word, enough in ((" OR ", any), (" AND ", all)):
        parts = _split(plain, word)
        if len(parts) > 1:
            return enough(is_allowed(part) for part in parts)
    return WRITTEN.get(plain, plain) in ALLOWED


def _closing(text: str) -> int:
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place
    return -1


def _split(text: str, word: str) -> list[str]:
    """`text` at each `word` that stands in no parentheses."""
    parts, begun, depth = [], 0, 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and text.startswith(word, place):
            parts.append(text[begun:place])
            begun = place + len(word)
    return [*parts, text[begun:]]


def table(packages: Sequence[Package]) -> str:
    """The packages by their licence, the most frequent first, as lines of text."""
    by_licence: dict[str, list[str]] = {}
    for package in packages:
        by_licence.setdefault(package.licence, []).append(package.name)
    ordered = sorted(by_licence.items(), key=lambda item: (-len(item[1]), item[0]))
    return "\n".join(f"{len(names):4} {licence}: {', '.join(names)}" for licence, names in ordered)


def refused(packages: Sequence[Package]) -> list[str]:
    """A line for each package under a licence that is not in ALLOWED."""
    return [
        f"{package.name}: its licence is {package.licence}, which is not in wronai/audit.py's ALLOWED; add it there "
        "with the reason, or its reading to READ, or do without the package"
        for package in packages
        if not is_allowed(package.licence)
    ]


def vulnerable(said: str, accepted: Mapping[str, str] = ACCEPTED) -> list[str]:
    """A line for each vulnerability in the JSON that pip-audit prints, without those that are `accepted`.

    Raises ValueError if that is none, or if packages were not looked up: pip-audit itself calls that „no known
    vulnerabilities found” and exits with 0.
    """
    try:
        found: list[dict[str, Any]] = json.loads(said)["dependencies"]
        skipped = [entry for entry in found if "skip_reason" in entry]
        lines = [
            f"{entry['name']} {entry['version']}: {vulnerability['id']}, "
            f"repaired in {', '.join(vulnerability['fix_versions']) or 'no version yet'}"
            for entry in found
            for vulnerability in entry.get("vulns", [])
            if not {vulnerability["id"], *vulnerability.get("aliases", [])} & set(accepted)
        ]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"pip-audit printed no result: {said.strip()[:200]!r}") from None
    if skipped:
        raise ValueError(
            f"pip-audit looked up {len(found) - len(skipped)} of {len(found)} packages: the vulnerability service does "
            f"not know the others, such as {skipped[0]['name']}; run it where the package index is reached itself"
        )
    return lines


def _call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)


def look_up(pinned: Path) -> list[str]:
    """What pip-audit finds of the pins in the file `pinned`, a line each. Raises ValueError if it cannot look."""
    done = _call(
        "pip_audit", "--requirement", str(pinned), "--no-deps", "--disable-pip", "--format", "json",
        "--progress-spinner", "off", "--timeout", "10",
    )  # fmt: skip
    if not done.stdout.strip():
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        reason = "the network does not reach its service" if "Error" in last or "onnect" in last else last[:200]
        raise ValueError(f"pip-audit could not look up {pinned.name}: {reason}; run it with a network")
    return vulnerable(done.stdout)


def installed() -> list[Package]:
    """The packages of this environment."""
    return licences(_call("piplicenses", "--format", "json", "--from", "mixed", "--with-system").stdout)


def main() -> int:
    """Print both listings; 1 if anything is found that is not explained, or nothing could be looked up."""
    packages = installed()
    print(table(packages))
    problems = refused(packages)
    print(f"licences: {len(packages)} packages, {len(problems)} not allowed", flush=True)
    try:
        found = look_up(Path("constraints.txt"))
        print(f"vulnerabilities: {len(found)} known, {len(ACCEPTED)} accepted")
        problems += found
    except ValueError as error:
        problems.append(str(error))
    for problem in problems:
        print(f"audit: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
