"""A hook of mkdocs: the reference from the docstrings, and links that lead out of the documentation.

One page for each room of the package, found by its folder, and a table of the public names on the page reference.md.
Nothing is imported: mkdocstrings and this file read the source.
"""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "singer_hf"
ROLE = re.compile(r":(?:class|func|meth|mod|attr):(<code>)")  # Sphinx's, which stand in docstrings
OUTSIDE = re.compile(r"\[([^\]\[]+)\]\(((?:\.\./)+[^)\s]+)\)")  # links to files outside of docs/


def rooms() -> list[str]:
    """Names of the rooms, by the table of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^[├└]── (\w+)/", text, re.MULTILINE)
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    if set(listed) != folders:
        raise SystemExit(f"docs/architecture.md must list the rooms {sorted(folders)}, got {sorted(listed)}")
    return listed


def public_names() -> dict[str, str]:
    """The public names of the package and the modules that define them."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    tables = (node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "_MODULES")
    return ast.literal_eval(next(tables).value)


def definition(name: str, module: str) -> tuple[str, str]:
    """The full name of a function or class, and the first sentence of its docstring."""
    file = ROOT / module.replace(".", "/")
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return f"{module}.{name}", (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
        if isinstance(node, ast.ImportFrom) and name in (alias.name for alias in node.names):
            return definition(name, node.module)
    raise SystemExit(f"{module} defines no {name}")


def room_page(room: str) -> str:
    """The page of a room: what it is for, and its modules."""
    intro = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    files = sorted(file for file in (PACKAGE / room).rglob("*.py") if file.name != "__init__.py")
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return "\n\n".join([f"# singer_hf.{room}", intro, *(f"::: {module}" for module in modules)])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each room."""
    for room in rooms():
        files.append(File.generated(config, f"reference/{room}.md", content=room_page(room)))
    return files


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Puts the pages of the rooms behind the page reference.md."""
    place = next(i for i, item in enumerate(nav.items) if isinstance(item, Page) and item.file.name == "reference")
    pages = [nav.items[place], *(files.get_file_from_path(f"reference/{room}.md").page for room in rooms())]
    nav.items[place] = Section("Reference", pages)
    for page in pages:
        page.parent = nav.items[place]
    return nav


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Adds the table of public names, and makes text of links that lead out of the documentation."""
    if page.file.src_uri == "reference.md":
        rows = (f"| [`{name}`][{full}] | {text} |" for name, (full, text) in sorted(_definitions().items()))
        table = "\n".join(["| name | what it is |", "|---|---|", *rows])
        listed = "\n".join(f"- [singer_hf.{room}](reference/{room}.md)" for room in rooms())
        markdown = f"{markdown}\n{table}\n\n## Rooms\n\n{listed}\n"
    return OUTSIDE.sub(_outside(page, config), markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Removes Sphinx's roles from the docstrings."""
    return ROLE.sub(r"\1", html)


def _definitions() -> dict[str, tuple[str, str]]:
    return {name: definition(name, module) for name, module in public_names().items()}


def _outside(page: Page, config: MkDocsConfig):
    def replaced(match: re.Match) -> str:
        text, target = match.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), target))
        if path.startswith("docs/"):
            return match[0]
        if not (ROOT / path).exists():
            raise SystemExit(f"{page.file.src_uri}: {target} does not exist")
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})" if config.repo_url else f"{text} (`{path}`)"

    return replaced
