import json
import subprocess
import sys
from pathlib import Path

import pytest

from wronai import audit

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed() -> list[audit.Package]:
    return audit.installed()


def test_every_licence_of_what_is_installed_is_allowed(installed: list[audit.Package]) -> None:
    assert audit.refused(installed) == []
    assert len(installed) > 200


def test_what_was_read_of_a_package_is_of_one_that_is_installed(installed: list[audit.Package]) -> None:
    assert set(audit.READ) <= {package.name for package in installed}
    assert {audit.WRITTEN[name] for name in audit.WRITTEN} <= set(audit.ALLOWED)


@pytest.mark.parametrize(
    ("said", "expression"),
    [
        ("MIT", "MIT"),
        ("Apache Software License; BSD License", "Apache-2.0 AND BSD-3-Clause"),
        ("Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0"),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", "MPL-2.0 AND (Apache-2.0 OR MIT)"),
        ("The MIT License (MIT)\n\nCopyright (c) 2016 …", "MIT"),
        ("", "UNKNOWN"),
        ("Proprietary", "Proprietary"),
    ],
)
def test_what_packages_write_becomes_an_identifier(said: str, expression: str) -> None:
    assert audit.identified(said) == expression


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("UNKNOWN", False),
        ("GPL-3.0-or-later", False),
        ("AGPL-3.0-only OR MIT", True),
        ("MIT AND AGPL-3.0-only", False),
        ("MPL-2.0 AND (Apache-2.0 OR GPL-3.0-only)", True),
        ("(Apache-2.0 OR MIT) AND GPL-3.0-only", False),
        ("(MIT AND GPL-3.0-only) OR (ISC AND Zlib)", True),
    ],
)
def test_of_alternatives_one_is_enough_and_of_a_sum_all_count(expression: str, allowed: bool) -> None:
    assert audit.is_allowed(expression) is allowed


def test_a_licence_that_is_not_allowed_is_named_with_its_package() -> None:
    listed = json.dumps([{"Name": "b", "License": "MIT"}, {"Name": "a", "License": "Proprietary"}])
    packages = audit.licences(listed)
    assert audit.refused(packages) == [
        "a: its licence is Proprietary, which is not in wronai/audit.py's ALLOWED; add it there with the reason, "
        "or its reading to READ, or do without the package"
    ]
    assert audit.table(packages).splitlines() == ["   1 MIT: b", "   1 Proprietary: a"]


@pytest.mark.parametrize("listed", ["", "Traceback …", "{}", '[{"Name": "a"}]'])
def test_output_of_pip_licenses_that_is_none_is_refused(listed: str) -> None:
    if listed == "{}":
        assert audit.licences(listed) == []
        return
    with pytest.raises(ValueError, match="pip-licenses printed no list of packages"):
        audit.licences(listed)


FOUND = {
    "dependencies": [
        {"name": "sound", "version": "1.0", "vulns": []},
        {
            "name": "old",
            "version": "2.0",
            "vulns": [
                {"id": "PYSEC-1", "fix_versions": ["2.1", "3.0"], "aliases": ["CVE-1"], "description": "…"},
                {"id": "PYSEC-2", "fix_versions": [], "aliases": ["CVE-2"], "description": "…"},
            ],
        },
    ],
    "fixes": [],
}


def test_a_vulnerability_is_a_line_with_what_repairs_it() -> None:
    assert audit.vulnerable(json.dumps(FOUND)) == [
        "old 2.0: PYSEC-1, repaired in 2.1, 3.0",
        "old 2.0: PYSEC-2, repaired in no version yet",
    ]


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_a_vulnerability_that_is_explained_is_no_finding(name: str) -> None:
    assert audit.vulnerable(json.dumps(FOUND), {name: "the function is not called"}) == [
        "old 2.0: PYSEC-2, repaired in no version yet"
    ]


def test_packages_that_were_not_looked_up_are_no_good_news() -> None:
    """pip-audit says „No known vulnerabilities found” of them, and exits with 0."""
    skipped = {"name": "torch", "skip_reason": "Dependency not found"}
    found = {"dependencies": [*FOUND["dependencies"], skipped]}
    with pytest.raises(ValueError, match=r"looked up 2 of 3 packages: .* such as torch"):
        audit.vulnerable(json.dumps(found))


@pytest.mark.parametrize("said", ["", "Traceback …", "[]", '{"dependencies": [{"name": "a", "vulns": [{}]}]}'])
def test_output_of_pip_audit_that_is_none_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match="pip-audit printed no result"):
        audit.vulnerable(said)


def test_without_a_network_the_audit_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "constraints.txt").write_text("six==1.17.0\n")
    monkeypatch.chdir(tmp_path)
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert audit.main() == 1
    said = capsys.readouterr()
    assert said.err == (
        "audit: pip-audit could not look up constraints.txt: the network does not reach its service; "
        "run it with a network\n"
    )
    assert "licences: " in said.out


def test_a_tool_that_is_not_there_is_one_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "no_such_tool"], capture_output=True, text=True, check=False)

    monkeypatch.setattr(audit, "_call", absent)
    with pytest.raises(ValueError, match=r"could not look up constraints\.txt: .*No module named no_such_tool"):
        audit.look_up(Path("constraints.txt"))


def test_the_page_on_security_names_every_package_under_copyleft(installed: list[audit.Package]) -> None:
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    copyleft = [package.name for package in installed if "GPL" in package.licence or "PL-" in package.licence]
    copyleft = [name for name in copyleft if name != "zc.lockfile"]  # ZPL is permissive
    assert len(copyleft) > 8 and [name for name in copyleft if f"`{name}`" not in page] == []
    assert all(identifier in page for identifier in audit.ACCEPTED)
