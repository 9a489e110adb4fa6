"""Kubeflow's models and Kubernetes' schemas read the manifests."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import yaml
from plan_grid import MODELS, plan

from planner.emit.k8s import EMITTER
from planner.plan import Plan

pytestmark = pytest.mark.frameworks

LAYOUTS: list[dict[str, Any]] = [
    *({"dp": dp, "zero": zero} for dp in (8, 16, 32) for zero in (0, 1, 2, 3)),
    *({"tp": tp, "pp": pp, "dp": 4, "num_microbatches": 4} for tp in (2, 8) for pp in (1, 2, 4)),
    {"dp": 4, "cp": 2, "zero": 3},
    {"dp": 2},
]
CASES = [
    (name, row, placeholders)
    for name in ("dense", "qkv-bias")
    for row in LAYOUTS
    for placeholders in (False, True)
]


def manifest(answer: Plan, path: str) -> dict[str, Any]:
    assert EMITTER.unsupported(answer) == []
    text = next(a.text for a in EMITTER.emit(answer) if a.path == path)
    return yaml.safe_load(text)  # type: ignore[no-any-return]


def changed(kind: str, data: dict[str, Any]) -> list[str]:
    """Return the parts that a model of Kubeflow's does not give back as it got them.

    The models drop keys that they do not know without a word.
    """
    models = pytest.importorskip("kubeflow_trainer_api.models")
    cls = {"JobSet": models.JobsetV1alpha2JobSet, "TrainJob": models.TrainerV1alpha1TrainJob}[kind]
    back = cls.from_dict(copy.deepcopy(data)).to_dict()
    return sorted(k for k in data.keys() | back.keys() if data.get(k) != back.get(k))


def as_job(job_set: dict[str, Any]) -> dict[str, Any]:
    """Return the Job that the JobSet controller makes."""
    spec = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
    meta = {"name": f"{job_set['metadata']['name']}-node-0"}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}


def validate(data: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checker = pytest.importorskip("kubernetes_validate.utils")
        with mock.patch.object(checker, "schema_contents", _schema(checker.schema_contents)):
            checker.validate(data, "1.31", strict=True)


@functools.cache
def _schema(read: Callable[[str, str], Any]) -> Callable[[str, str], Any]:
    """Return the same, reading each file once: it is megabytes, and read twice a manifest."""
    return functools.cache(read)


@pytest.mark.parametrize(
    ("name", "row", "placeholders"), CASES, ids=[str(i) for i in range(len(CASES))]
)
def test_the_schemas_take_every_manifest(name, row, placeholders):
    answer = plan(MODELS[name], placeholders=placeholders, **row)
    job_set = manifest(answer, "jobset.yaml")
    assert changed("JobSet", job_set) == []
    validate(as_job(job_set))
    if placeholders:
        assert changed("TrainJob", manifest(answer, "trainjob.yaml")) == []


def test_planted_mistakes_are_caught():
    answer = plan(MODELS["dense"], dp=16, placeholders=True)
    job_set, train_job = (manifest(answer, p) for p in ("jobset.yaml", "trainjob.yaml"))
    train_job["spec"]["trainer"]["numNode"] = train_job["spec"]["trainer"].pop("numNodes")
    assert changed("TrainJob", train_job) == ["spec"]
    train_job = manifest(answer, "trainjob.yaml")
    train_job["spec"]["trainer"]["numNodes"] = "2"
    with pytest.raises(ValueError, match="valid integer"):
        changed("TrainJob", train_job)
    job_set["spec"]["network"]["enableDnsHostnames"] = True
    assert changed("JobSet", job_set) == ["spec"]
    for spoil in ({"restartPolcy": "Never"}, {"hostNetwork": "yes"}):
        job = as_job(manifest(answer, "jobset.yaml"))
        job["spec"]["template"]["spec"] |= spoil
        with pytest.raises(Exception, match=r"restartPolcy|hostNetwork|yes"):
            validate(job)
