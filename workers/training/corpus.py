"""Builds scout's training text: `python -m outrider.workers.training.corpus --out DIR`.

Downloads documentation packages (Debian) and wheels (the Python package index) with their ordinary clients, cleans
them, drops near-copies, and writes `train.jsonl`, `heldout.jsonl` and `manifest.json`. Whole files are held out,
chosen by a hash of their name, so the same packages always give the same split. Does not know tokens or models.
"""

import argparse
import gzip
import hashlib
import json
import platform
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from outrider.workers.training import chat, cleaning, sources


@dataclass(frozen=True, slots=True)
class Document:
    """One cleaned file. `kind` is "code", "prose" or "chat"; chat documents are JSON lists of messages."""

    kind: str
    package: str
    path: str
    permissive: bool
    text: str


def download_debian(package: str, folder: Path) -> Path:
    """Downloads and unpacks a Debian package below `folder`, once; returns where it was unpacked."""
    unpacked = folder / package
    if not unpacked.exists():
        archives = folder / "archives"
        archives.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=archives, check=True, stdout=subprocess.DEVNULL)
        archive = next(archives.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", str(archive), str(unpacked)], check=True)
    return unpacked


def download_wheel(package: str, folder: Path) -> Path:
    """Downloads one wheel without its dependencies, once; returns its path."""
    pattern = re.sub(r"[-_.]+", "_", package) + "-*.whl"
    if not any(folder.glob(pattern)):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", str(folder), package], check=True)
    return next(folder.glob(pattern))


def debian_documents(source: sources.DebianSource, folder: Path) -> Iterator[Document]:
    """The readable pages of one documentation package, in the order of their paths."""
    root = download_debian(source.package, folder)
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if not re.search(source.pattern, name) or not path.is_file() or path.is_symlink():
            continue
        text = page_text(path)
        if cleaning.is_running_prose(text):
            yield Document("prose", source.package, name, source.permissive, text)


def page_text(path: Path) -> str:
    """The running text of a documentation file in any supported format."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    raw = data.decode("utf-8", errors="replace")
    if ".html" in path.name:
        return cleaning.html_to_text(raw)
    if path.suffix == ".pod":
        return cleaning.pod_to_text(raw)
    return cleaning.rst_to_text(raw) if ".rst" in path.name else cleaning.tidy(raw)


def wheel_documents(source: sources.PythonSource, folder: Path) -> Iterator[Document]:
    """The hand-written Python files of one wheel, tests left out."""
    with zipfile.ZipFile(download_wheel(source.package, folder)) as wheel:
        for name in sorted(wheel.namelist()):
            if name.endswith(".py") and "/test" not in name and "vendor" not in name:
                text = wheel.read(name).decode("utf-8", errors="replace")
                yield Document("code", source.package, name, True, cleaning.tidy(text))


def standard_library_documents() -> Iterator[Document]:
    """The running interpreter's own library, tests and data tables left out."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        name = str(path.relative_to(root))
        if not re.search(r"site-packages|dist-packages|(^|/)test|encodings/|lib2to3/|pydoc_data|config-", name):
            text = path.read_text(encoding="utf-8", errors="replace")
            yield Document("code", "python-standard-library", name, True, cleaning.tidy(text))


def limited(documents: Iterable[Document], limit_mb: float) -> list[Document]:
    """At most `limit_mb` of text, selected in the order of a hash, so that no folder is preferred."""
    kept, size = [], 0
    for document in sorted(documents, key=lambda item: name_hash(item.package, item.path)):
        if size + len(document.text) <= limit_mb * 1e6:
            kept.append(document)
            size += len(document.text)
    return kept


def without_copies(documents: Iterable[Document]) -> Iterator[Document]:
    """Drops files whose text, or a long part near its start, occurred before, ignoring white space, case and digits."""
    seen: set[str] = set()
    for document in documents:
        key = cleaning.fingerprint(document.text)
        keys = {hashlib.sha256(part.encode()).hexdigest() for part in (key, key[400:2400] or key)}
        if not keys & seen:
            yield document
        seen |= keys


def name_hash(package: str, path: str) -> int:
    """A number that depends on a file's name alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{package}/{path}".encode()).digest()[:8], "big")


def is_held_out(document: Document) -> bool:
    """Whether a file belongs to the held-out split: about 1 % of all files, whole."""
    return name_hash(document.package, document.path) % 1000 < 12


def chat_documents(documents: Iterable[Document]) -> Iterator[Document]:
    """Conversations made from training files, at most four from each."""
    for document in documents:
        make = chat.conversations_from_code if document.kind == "code" else chat.conversations_from_prose
        found = list(make(document.text))
        stride = max(1, len(found) // 4)
        for number, item in enumerate(found[::stride][:4]):
            messages = [{"role": "user", "content": item.user}, {"role": "assistant", "content": item.assistant}]
            yield Document("chat", document.package, f"{document.path}#{number}", False, json.dumps(messages))


def gather(folder: Path) -> list[Document]:
    """Every document of every source, cleaned, limited and without copies."""
    library = (file for file in standard_library_documents() if cleaning.is_readable_code(file.text))
    found = limited(library, limit_mb=100.0)
    for python_source in sources.PYTHON_SOURCES:
        files = wheel_documents(python_source, folder / "wheels")
        found += limited((file for file in files if cleaning.is_readable_code(file.text)), python_source.limit_mb)
    for debian_source in sources.DEBIAN_SOURCES:
        found += limited(debian_documents(debian_source, folder / "debian"), debian_source.limit_mb)
    return list(without_copies(found))


def versions(folder: Path) -> dict[str, str]:
    """The version of every package that was downloaded, read from the archives' names."""
    found = {"python-standard-library": platform.python_version()}
    for source in sources.PYTHON_SOURCES:
        found[source.package] = download_wheel(source.package, folder / "wheels").name.split("-")[1]
    for archive in (folder / "debian" / "archives").glob("*.deb"):
        package, version, _ = archive.name.split("_")
        found[package] = version.replace("%3a", ":")
    return found


def manifest(documents: Iterable[Document], version_of: dict[str, str]) -> dict[str, dict[str, object]]:
    """Per source: its version and licence, and how many files and bytes were read."""
    licences = {s.package: s.licence for s in (*sources.PYTHON_SOURCES, *sources.DEBIAN_SOURCES)}
    licences["python-standard-library"] = sources.STANDARD_LIBRARY_LICENCE
    table: dict[str, dict[str, object]] = {}
    for document in documents:
        name = document.package
        row = table.setdefault(name, {"version": version_of[name], "licence": licences[name], "files": 0, "bytes": 0})
        row["files"] = int(str(row["files"])) + 1
        row["bytes"] = int(str(row["bytes"])) + len(document.text.encode())
    return table


def write_jsonl(path: Path, documents: Iterable[Document]) -> None:
    """Writes one document per line."""
    path.write_text("".join(json.dumps(asdict(document)) + "\n" for document in documents), encoding="utf-8")


def main() -> None:
    """Builds the corpus below --out."""
    parser = argparse.ArgumentParser(description="Gather the training text of the demo model.")
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    documents = gather(out / "downloads")
    train = [document for document in documents if not is_held_out(document)]
    write_jsonl(out / "heldout.jsonl", (document for document in documents if is_held_out(document)))
    write_jsonl(out / "train.jsonl", [*train, *chat_documents(train)])
    table = manifest(documents, versions(out / "downloads"))
    (out / "manifest.json").write_text(json.dumps(table, indent=1))
    for package, row in sorted(table.items()):
        print(f"{package:28} {row}")


if __name__ == "__main__":
    main()
