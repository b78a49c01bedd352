"""What makes the same bytes of the same step: the versions of packages, and the project's code."""

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

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


def package_versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: metadata.version(name) for name in _PACKAGES}


def versions() -> dict[str, str]:
    """The same, and a digest of the code of steps."""
    files = sorted(path for name in _CODE for path in (_ROOT / name).rglob("*.py"))
    lines = (f"{path.relative_to(_ROOT)} {file_digest(path)}" for path in files)
    return package_versions() | {"detdiffusion's code": combined_digest(lines)[:12]}


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
