"""Finding specs: shipped ones by name, the user's own by path.

Names come from file names alone, so that listing them parses nothing. A name matches whatever its
case and punctuation: `Llama-3.1-70B` and `llama31_70b` are the same model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from planner.errors import SpecError, did_you_mean
from planner.files import data_folder
from planner.specs.accelerator import Accelerator
from planner.specs.cluster import ClusterSpec, Leaf
from planner.specs.huggingface import is_config, model_from_config
from planner.specs.model import ModelSpec
from planner.specs.parse import parse_yaml, shown
from planner.specs.read import read_mapping, validate

Kind = Literal["model", "cluster", "accelerator"]
_FOLDERS = {
    "model": ("model_specs", "."),
    "cluster": ("hardware_specs", "clusters"),
    "accelerator": ("hardware_specs", "accelerators"),
}
_MOST_NODES = 131_072
_MOST_EXTENDED = 8
_SUFFIXES = (".yaml", ".yml", ".json")


def model_names() -> tuple[str, ...]:
    """Return the names of the shipped models, sorted; reads no file."""
    return tuple(_shipped("model"))


def cluster_names() -> tuple[str, ...]:
    """Return the names of the shipped clusters, sorted; reads no file."""
    return tuple(_shipped("cluster"))


def accelerator_names() -> tuple[str, ...]:
    """Return the names of the shipped accelerators, sorted; reads no file."""
    return tuple(_shipped("accelerator"))


def load_model(text: str) -> ModelSpec:
    """Return the model that `text` names.

    `text` is a shipped name, or the path of a YAML or JSON spec, of a Hugging Face config.json, or
    of a directory that holds one. Raises SpecError when there is no such model or it is wrong.
    """
    path = _find("model", text)
    if _exists(text) and path.is_dir():
        path = _config_in(path)
    data = read_mapping(path)
    is_spec = {"layers", "hidden"} & set(data)
    if is_config(data) or (path.suffix.lower() == ".json" and not is_spec):
        return model_from_config(data, _name_from(path), shown(path))
    return validate(ModelSpec, {"name": path.stem, **data}, shown(path))


def load_cluster(text: str) -> ClusterSpec:
    """Return the cluster that `text` names: a shipped name or a YAML path, `:N` for N nodes.

    A file may hold only what differs from a cluster that it `extends`. Without `:N` the file's own
    `nodes` hold, else as many as it lists `hosts` (also under `leafs`), else one. Raises SpecError
    when there is no such cluster or it is wrong.

    `A:4+B:16` is a mix of node types, as is a file with `mix: [A:4, B:16]`.
    """
    if "+" in text and not _exists(text):
        words = [word.strip() for word in text.split("+")]
        return _mixed(words, text, f"cluster '{shown(text, 80)}'")
    data, path, nodes = _cluster_of(text)
    return _mix_of_file(data, path, nodes) if data.get("mix") else _one_type(data, path, nodes)


def _cluster_of(text: str) -> tuple[dict[str, Any], Path, int | None]:
    """Return the fields of a cluster, its file, and the N of ':N'."""
    name, nodes = _split_nodes(text)
    path = _find("cluster", name)
    data = {"name": path.stem, **_cluster_data(path)}
    return data, path, nodes


def _one_type(data: dict[str, Any], path: Path, nodes: int | None) -> ClusterSpec:
    data.setdefault("nodes", _listed_nodes(data))
    if nodes is not None:
        data["nodes"] = nodes
    return validate(ClusterSpec, data, shown(path))


def _mix_of_file(data: Mapping[str, Any], path: Path, nodes: int | None) -> ClusterSpec:
    """Return the mix that a file names, paths in it from its own folder."""
    origin, types = shown(path), data["mix"]
    if not isinstance(types, list) or not all(isinstance(m, str) for m in types):
        raise SpecError(
            f"{origin}: field 'mix' must list node types by name or file",
            hint="such as [dgx-h100:8, old-nodes.yaml]",
        )
    if nodes is not None:
        raise SpecError(f"{origin}: a mix says the nodes of each type itself, without ':{nodes}'")
    if other := sorted(set(data) - {"name", "mix", "source"}):
        raise SpecError(
            f"{origin}: {other[0]!r} stands beside 'mix'",
            hint="the figures of a mix are those of its types: change them in their own files",
        )
    words = [str(path.parent / word) if _is_path(word) else word for word in types]
    return _mixed(words, str(data["name"]), origin)


def _mixed(words: Sequence[str], name: str, origin: str) -> ClusterSpec:
    """Return the types that `words` name as one cluster."""
    parts = []
    for data, path, nodes in map(_cluster_of, words):
        if data.get("mix"):
            raise SpecError(f"{origin}: {shown(path)} is a mix itself, and cannot be in another")
        parts.append(_one_type(data, path, nodes))
    if len(parts) == 1:
        return parts[0]
    from planner.specs.mixing import joined  # noqa: PLC0415 - few clusters are mixes

    return joined(parts, name, origin)


def load_cluster_over(text: str, path: Path) -> ClusterSpec:
    """Return the cluster that the YAML `text` would be, were it the file `path`."""
    data = parse_yaml(text, shown(path))
    fields = {"name": path.stem, **_over_base(data, path)}
    fields.setdefault("nodes", _listed_nodes(fields))
    return validate(ClusterSpec, fields, shown(path))


def _cluster_data(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a cluster's fields: its own over those of the cluster that it `extends`."""
    return _over_base(read_mapping(path), path, below)


def _over_base(data: dict[str, Any], path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    origin = shown(path)
    given = data.get("accelerator")
    if "accelerator" in data:
        data["accelerator"] = _accelerator(given, origin)
    if "extends" not in data:
        return data
    base = data.pop("extends")
    if not isinstance(base, str) or not base:
        raise SpecError(f"{origin}: extends must be the name or the file of a cluster")
    if len(below) >= _MOST_EXTENDED or path.resolve() in below:
        raise SpecError(f"{origin}: extends leads back to itself, or through too many files")
    under = _cluster_data(_extended(base, path), (*below, path.resolve()))
    under.pop("name", None)
    if isinstance(given, str) or (isinstance(given, Mapping) and "base" in given):
        under.pop("accelerator", None)  # another GPU, not changes to this one
    return overlaid(under, data)


def _extended(base: str, path: Path) -> Path:
    """Return the file that a cluster file extends: a shipped name, or a path beside it."""
    if "/" not in base and not base.lower().endswith(_SUFFIXES):
        return _shipped_path("cluster", base, f"{shown(path)}: extends")
    return path.parent / base


def overlaid(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cluster's fields with those of an overlay in their place, mapping by mapping.

    Measured collectives replace those of the same operation and number of GPUs; hosts or leafs
    replace whatever named the nodes before.
    """
    under = dict(under)
    if {"hosts", "leafs"} & set(over):
        for name in ("hosts", "leafs", "nodes"):
            under.pop(name, None)
    for name, value in over.items():
        old = under.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            under[name] = overlaid(old, value)
        elif name == "collectives" and isinstance(value, list) and isinstance(old, list):
            new = {_collective(row) for row in value}
            under[name] = [row for row in old if _collective(row) not in new] + value
        else:
            under[name] = value
    return under


def _collective(row: Any) -> str:
    return f"{row.get('op')}, {row.get('gpus')}" if isinstance(row, Mapping) else ""


def _listed_nodes(data: Mapping[str, Any]) -> int:
    """Return how many hosts a cluster's fields list; what is wrong with them is said later."""
    hosts, leafs = data.get("hosts"), data.get("leafs")
    if isinstance(leafs, list):
        try:
            return max(1, sum(len(Leaf.model_validate(leaf).hosts) for leaf in leafs))
        except ValueError:
            return 1
    return len(hosts) if isinstance(hosts, list) and hosts else 1


def load_accelerator(text: str) -> Accelerator:
    """Return the accelerator that `text` names: a shipped name or a YAML path."""
    path = _find("accelerator", text)
    return validate(Accelerator, _accelerator_data(path), shown(path))


def _accelerator(value: Any, origin: str) -> Any:
    """Return an accelerator's fields from a name, fields, or `base: name` and what differs."""
    if isinstance(value, str):
        return _accelerator_data(_shipped_path("accelerator", value, origin))
    if isinstance(value, Mapping) and "base" in value:
        base = value["base"]
        if not isinstance(base, str):
            raise SpecError(f"{origin}: accelerator.base must be the name of an accelerator")
        changes = {name: field for name, field in value.items() if name != "base"}
        return {**_accelerator_data(_shipped_path("accelerator", base, origin)), **changes}
    return value


def _accelerator_data(path: Path) -> dict[str, Any]:
    return {"name": path.stem, **read_mapping(path)}


def _split_nodes(text: str) -> tuple[str, int | None]:
    """Return what stands before `:N` and N; a path that exists may hold a colon itself."""
    name, colon, count = text.rpartition(":")
    if not colon or _exists(text):
        return text, None
    if re.fullmatch("0*[1-9][0-9]{0,6}", count) and int(count) <= _MOST_NODES:
        return name, int(count)
    raise SpecError(
        f"cluster '{shown(text, 80)}': '{shown(count, 40)}' is not a number of nodes",
        hint=f"write NAME:N with N from 1 to {_MOST_NODES:,}, such as dgx-h100:64",
    )


def _find(kind: Kind, text: str) -> Path:
    """Return the file of a shipped name, or the path that `text` is."""
    if _is_path(text):
        return Path(text)
    if path := _shipped_as(kind, text):
        return path
    return Path(text) if _exists(text) else _shipped_path(kind, text, "")


def _is_path(text: str) -> bool:
    return (
        "/" in text
        or text.rpartition(":")[0].lower().endswith(_SUFFIXES)
        or (text.lower().endswith(_SUFFIXES))
    )


def _shipped_path(kind: Kind, name: str, origin: str) -> Path:
    """Return the file of a shipped name; raise SpecError with the nearest name for others."""
    if path := _shipped_as(kind, name):
        return path
    where = f"{origin}: " if origin else ""
    near = did_you_mean(name[:100], _shipped(kind))
    raise SpecError(
        f"{where}no {kind} is named '{shown(name, 80)}'",
        hint=f"{near} `meshwright specs list` shows every name; a file is given by path".lstrip(),
    )


def _shipped_as(kind: Kind, name: str) -> Path | None:
    """Return the shipped file whose name is `name`, whatever its case and punctuation.

    The dot goes last: `gpt-3-1.3b` is not `gpt-3-13b`, but `llama31-8b` is `llama-3.1-8b`.
    """
    names = _shipped(kind)
    if name in names:
        return names[name]
    for dropped in ("-_ ", "-_. "):
        key = _key(name, dropped)
        found = [path for known, path in names.items() if _key(known, dropped) == key]
        if len(found) > 1:
            either = " or ".join(path.stem for path in found)
            raise SpecError(f"'{shown(name, 80)}' may mean {either}", hint="write the name in full")
        if found:
            return found[0]
    return None


def _shipped(kind: Kind) -> dict[str, Path]:
    """Return the files of the shipped specs by name, sorted."""
    folder, inner = _FOLDERS[kind]
    files = (data_folder(folder) / inner).glob("*.yaml")
    return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}


def _key(name: str, dropped: str) -> str:
    """Return a name in lower case, without the `dropped` characters."""
    return "".join(c for c in name.lower() if c not in dropped)


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # overlong, or holds a NUL
        return False


def _config_in(folder: Path) -> Path:
    config = folder / "config.json"
    if not config.is_file():
        raise SpecError(
            f"{shown(folder)} is a directory without a config.json",
            hint="give a spec file, or a directory that a Hugging Face model was saved in",
        )
    return config


def _name_from(path: Path) -> str:
    """Return what to call the model of a config.json: its folder's name, else its own."""
    name = path.resolve().parent.name if path.stem == "config" else path.stem
    return name[:200] or "model"
