"""MkDocs hooks: what the site has beside the pages in docs/.

Made at every build: the overview from README.md, the settings, the help of each command, the Python
API, and one page for each file of the repository that a page links to. Links are written for the
repository (`../configs/own.py`, `docs/data.md`) and are turned here into those of the site.
"""

import importlib
import os
import posixpath
import re
from pathlib import Path

from absl import flags as absl_flags
from mkdocs.structure.files import File, Files

import vit_jax
from vit_jax import cli, settings
from vit_jax.cli import help

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
#: Pages that stand at the root of the repository, for GitHub.
AT_ROOT = {"README.md": "index.md"} | {
    name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
}


def on_files(files: Files, config) -> Files:
    pages = {
        "settings.md": settings.document(),
        "commands.md": commands(),
        "api.md": api(),
        "decisions/index.md": decisions(),
    }
    for path, name in AT_ROOT.items():
        pages[name] = rewrite((ROOT / path).read_text(encoding="utf-8"), ROOT, name)
    for file in files.documentation_pages():
        if file.src_uri not in pages:
            text = Path(file.abs_src_path).read_text(encoding="utf-8")
            pages[file.src_uri] = rewrite(text, Path(file.abs_src_path).parent, file.src_uri)
    for source in sorted(linked(pages)):
        pages[f"source/{source}.md"] = as_page(source)
    for name, text in pages.items():
        if old := files.get_file_from_path(name):
            files.remove(old)
        files.append(File.generated(config, name, content=text))
    return files


def on_post_page(output: str, page, config) -> str:
    """The theme has one language for all pages; fonts and screen readers go by each page's own."""
    if page.file.src_uri.startswith("ja/"):
        return output.replace('<html lang="en"', '<html lang="ja"', 1)
    return output


def rewrite(text: str, folder: Path, page: str) -> str:
    """The text of a page in `folder` of the repository with the links of the site's `page`."""

    def turned(match: re.Match) -> str:
        before, target, anchor, after = match.groups(default="")
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = os.path.relpath(folder / target, ROOT)
        if path in AT_ROOT:
            target = AT_ROOT[path]
        elif path.startswith("docs/") and not path.startswith("docs/tools"):
            target = path.removeprefix("docs/")
        elif (ROOT / path).exists():
            target = f"source/{path}.md"
        else:
            return match[0]  # for MkDocs to name
        target = posixpath.relpath(target, posixpath.dirname(page) or ".")
        return before + target + anchor + after

    # Code blocks are left alone.
    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else LINK.sub(turned, part) for part in parts)


def linked(pages: dict[str, str]) -> set[str]:
    """Files of the repository that pages link to."""
    found = set()
    for page, text in pages.items():
        for _, target, _, _ in LINK.findall(text):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
            if path.startswith("source/"):
                found.add(path.removeprefix("source/").removesuffix(".md"))
    return found


def as_page(path: str) -> str:
    """A file of the repository as a page; of a folder, its names."""
    file = ROOT / path
    if file.is_dir():
        names = sorted(p.name + "/" * p.is_dir() for p in file.iterdir() if p.name[0] not in "._")
        return f"# {path}/\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    languages = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".sbatch": "bash"}
    language = languages.get(file.suffix, "text")
    return f"# {path}\n\n````{language}\n{file.read_text(encoding='utf-8').rstrip()}\n````\n"


def commands() -> str:
    """`--help` of every command."""
    text = ["# Commands", f"```text\n{help.overview(cli.COMMANDS)}\n```"]
    for name in cli.COMMANDS:
        command = importlib.import_module(f"vit_jax.cli.{name}")
        flags = absl_flags.FlagValues()
        command.define(flags)
        if hasattr(command, "define_for"):
            command.define_for(flags, [])
        found = help.of_command(command, flags)
        found = found.partition("\nsettings, as --config.KEY=VALUE:")[0].rstrip()
        text.append(f"## vit-jax {name}\n\n```text\n{found}\n```")
        if "set" in flags:
            text.append("Every [setting](settings.md) is a flag as well.")
    return "\n\n".join(text) + "\n"


def api() -> str:
    """The functions of `vit_jax`, from their docstrings."""
    head = "# Python API\n\nAll of these are attributes of `vit_jax`."
    names = [f"::: {vit_jax._HOMES[name]}.{name}" for name in vit_jax.__all__]
    return "\n\n".join([head, *names]) + "\n"


def decisions() -> str:
    """The records of docs/decisions by their titles."""
    rows = ["# Decisions", "", "What was chosen, why, and what it costs.", ""]
    for file in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
        title = file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        number, _, rest = title.partition(". ")
        rows.append(f"- {number}: [{rest}]({file.name})")
    return "\n".join(rows) + "\n"
