"""A policy on disk: a folder with `manifest.json` and `arrays.safetensors`. No pickle: nothing in it is executed.

Manifest, schema 2: `schema`, `kind`, `arms`, `featurizer`, `options`, `arrays_sha256`, `provenance`. Schema 1, which
differs only in names, is readable as well.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.numpy import load, save

from draftpick.engines.atomic_write import atomic_folder
from draftpick.router.errors import PolicyRejected

SCHEMA = 2
SCHEMA_1_ARRAYS = {
    "homes": "domain_centres",
    "homed": "domain_arms",
    "pull": "margin_weights",
    "halves": "sampled",
}
SCHEMA_1_REGRESSORS = {"home_kernel": "domain_kernel"}
SCHEMA_1_PROVENANCE = {"kinds": "tasks", "homes": "training_domains"}
"""Names of schema 1 and the current ones."""
MANIFEST, ARRAYS = "manifest.json", "arrays.safetensors"
_FIELDS = {"kind": str, "arms": list, "featurizer": str, "arrays_sha256": str}


def write(path: Path, manifest: dict[str, Any], arrays: dict[str, npt.NDArray[np.float32]]) -> None:
    """Write an artefact atomically, replacing an existing one at `path`."""
    # safetensors writes the raw memory and ignores strides.
    data = save({name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())})
    full = {"schema": SCHEMA, **manifest, "arrays_sha256": hashlib.sha256(data).hexdigest()}
    with atomic_folder(path) as scratch:
        scratch.chmod(0o755)
        (scratch / ARRAYS).write_bytes(data)
        (scratch / MANIFEST).write_text(json.dumps(full, indent=2) + "\n")


def read(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    """Manifest and arrays of an artefact, under current names. Raises `PolicyRejected` with the problem."""
    try:
        manifest = from_json((path / MANIFEST).read_bytes())
        data = (path / ARRAYS).read_bytes()
    except (OSError, ValueError) as error:
        raise PolicyRejected(f"{path} is not a readable policy: {error}") from error
    _check_manifest(path, manifest)
    if hashlib.sha256(data).hexdigest() != manifest["arrays_sha256"]:
        raise PolicyRejected(f"{path / ARRAYS} is not the file that the manifest describes (its sha256 differs)")
    try:
        arrays = load(data)
    except (SafetensorError, KeyError) as error:
        raise PolicyRejected(f"{path / ARRAYS} is damaged: {error}") from error
    return _from_schema_1(manifest, arrays) if manifest["schema"] == 1 else (manifest, arrays)


def _from_schema_1(
    manifest: dict[str, Any], arrays: dict[str, npt.NDArray[np.float32]]
) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    options, provenance = dict(manifest.get("options", {})), manifest.get("provenance")
    if (regressor := options.get("regressor")) in SCHEMA_1_REGRESSORS:
        options["regressor"] = SCHEMA_1_REGRESSORS[regressor]
    renamed = {**manifest, "schema": SCHEMA, "options": options}
    if isinstance(provenance, dict):
        renamed["provenance"] = {SCHEMA_1_PROVENANCE.get(name, name): value for name, value in provenance.items()}
    return renamed, {SCHEMA_1_ARRAYS.get(name, name): array for name, array in arrays.items()}


def _check_manifest(path: Path, manifest: Any) -> None:
    if not isinstance(manifest, dict) or manifest.get("schema") not in (1, SCHEMA):
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise PolicyRejected(f"{path / MANIFEST} has schema {found!r}, this version reads {SCHEMA} and 1")
    for name, kind in _FIELDS.items():
        if not isinstance(manifest.get(name), kind):
            raise PolicyRejected(f"{path / MANIFEST}: field {name!r} is missing or not a {kind.__name__}")
    arms, options = manifest["arms"], manifest.get("options", {})
    if not arms or not all(isinstance(arm, str) for arm in arms) or len(set(arms)) != len(arms):
        raise PolicyRejected(f"{path / MANIFEST}: arms must be unique names")
    if not isinstance(options, dict):
        raise PolicyRejected(f"{path / MANIFEST}: options must be an object")
