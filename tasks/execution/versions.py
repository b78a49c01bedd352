"""The versions of packages and of the project's code, which make the same bytes of the same step."""

import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from data.artifacts.digests import combined_digest, file_digest
from data.errors import ServiceUnavailable

_PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "mmdet",
    "mmengine",
    "numpy",
    "pillow",
)
_ROOT = Path(__file__).parents[2]
_CODE = ("data", "models", "tasks")


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on, and a digest of the code of steps."""
    files = sorted(path for name in _CODE for path in (_ROOT / name).rglob("*.py"))
    lines = (f"{path.relative_to(_ROOT)} {file_digest(path)}" for path in files)
    return _package_versions() | {"detdiffusion's code": combined_digest(lines)[:12]}


def require_versions(theirs: Mapping[str, str], where: str) -> None:
    """Refuse to make a part of what others make with other versions.

    Raises:
        ServiceUnavailable: this machine has others.
    """
    own = versions()
    if differing := [name for name in own if own[name] != theirs.get(name)]:
        have, need = (
            ", ".join(f"{name} {of.get(name)}" for name in differing) for of in (own, theirs)
        )
        raise ServiceUnavailable(f"{where} has {have}, the run has {need}: install the same there")


def environment() -> dict[str, Any]:
    """What a manifest says of the code and the packages that made an artifact."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": sys.version.split()[0],
        "packages": _package_versions(),
    }


def _git(*arguments: str) -> str | None:
    """Output of a git command in the project's checkout; None outside of one."""
    folder = Path(__file__).parent
    try:
        run = subprocess.run(  # noqa: S603  # fixed arguments
            ["git", *arguments],  # noqa: S607  # git is found on the user's PATH
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def _package_versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in _PACKAGES}
