"""Guards of the layout: what ships is closed, imports point upstream, names say what a file holds."""

import ast
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_import_files

import hf_clsi

ROOT = Path(hf_clsi.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# Shipped file -> every file that a checkpoint must carry with it.
SHIPPED = {
    "configuration_clsi": set(),
    "modeling_clsi": {"configuration_clsi", "generation_clsi", "pipeline_clsi"},
    "generation_clsi": {"configuration_clsi", "pipeline_clsi", "generation_clsi"},
    "pipeline_clsi": {"configuration_clsi", "generation_clsi", "pipeline_clsi"},
    "feature_extraction_clsi": set(),
    "processing_clsi": set(),
    "configuration_clsi_units": set(),
    "modeling_clsi_units": {"configuration_clsi_units"},
}
# In flow order: a folder (or module) may import those before it and itself.
FLOW = ("text", "speech", "units", "rows", "batches", "training", "scores", "hub", "experiment", "cli")
# What a shipped file may need where it is loaded (torchaudio: spectra, resampling; soundfile: audio files).
PUBLIC = {"huggingface_hub", "numpy", "soundfile", "tokenizers", "torch", "torchaudio", "transformers"}


def name_of(path):
    """hf_clsi/units/merges.py -> ("hf_clsi", "units", "merges"); an __init__ is the package itself."""
    parts = ("hf_clsi", *path.relative_to(ROOT).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports_of(path):
    """Absolute dotted names of everything a file imports, inside functions and type-checking blocks too."""
    name = name_of(path)
    package = name if path.stem == "__init__" else name[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # `from hf_clsi import units` names a folder as well as `from hf_clsi.units import merges`.
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def folders_of(path):
    """The stations that a file imports from: {"units", ...}."""
    parts = (name.split(".") for name in imports_of(path))
    return {
        each[1] for each in parts if each[0] == "hf_clsi" and len(each) > 1 and each[1] in (*FLOW, "metrics")
    }


def test_the_root_holds_shipped_files_and_nothing_else():
    modules = {path.stem for path in ROOT.glob("*.py")}
    assert modules - {"__init__", "__main__", "auto", *FLOW} == set(SHIPPED)


def test_every_folder_has_its_place_in_the_flow():
    folders = {path.parent.relative_to(ROOT).parts[0] for path in FILES if path.parent != ROOT}
    assert folders <= {*FLOW, "metrics"}


@pytest.mark.parametrize("module", SHIPPED)
def test_closure_of_a_shipped_file(module):
    """As transformers itself computes it when it copies code beside a checkpoint."""
    needed = {Path(file).stem for file in get_relative_import_files(ROOT / f"{module}.py")}
    assert needed == SHIPPED[module]


@pytest.mark.parametrize("module", SHIPPED)
def test_shipped_files_import_only_each_other_and_public_packages(module):
    tree = ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{module}: one dot only"
            assert node.module in SHIPPED[module], f"{module}: from .{node.module or ''}"
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] != "hf_clsi", f"{module}: {node.module} would not be copied"
        elif isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "hf_clsi" for alias in node.names)
    outside = {name.split(".")[0] for name in imports_of(ROOT / f"{module}.py")} - {"hf_clsi"}
    assert outside <= PUBLIC | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_upstream(path):
    station = name_of(path)[1] if len(name_of(path)) > 1 else None
    imported = folders_of(path)
    if station == "metrics":
        # Evaluate modules are copied alone to the Hub.
        assert not any(name.split(".")[0] == "hf_clsi" for name in imports_of(path))
    elif station in FLOW:
        assert imported <= set(FLOW[: FLOW.index(station) + 1])
    elif path.name == "__init__.py":
        assert imported <= {"batches", "scores"}  # for type checkers; loaded on first use
    elif path.name != "__main__.py":
        assert imported == set()


def test_importing_the_package_loads_no_station():
    """`import hf_clsi` stays as light as loading a checkpoint; checked in the source, not by importing."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    executed = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
    assert {node.module for node in executed} == {"auto", *SHIPPED}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_named_after_nothing(path):
    forbidden = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not forbidden & set(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_opens_with_a_line_on_what_it_does(path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))


def test_the_guard_itself_sees_lazy_and_relative_imports(tmp_path, monkeypatch):
    folder = tmp_path / "hf_clsi" / "units"
    folder.mkdir(parents=True)
    file = folder / "merges.py"
    file.write_text(
        "def f():\n    from ..scores.cloze import g\n    from ..rows import schema\n"
        "    import hf_clsi.hub.plots\n    from hf_clsi import batches\n    from . import runs\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path / "hf_clsi")
    assert folders_of(file) == {"scores", "rows", "hub", "batches", "units"}
