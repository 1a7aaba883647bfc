"""Pictures, movies and maps in MLflow, beside the training run that they belong to."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

import medviz
from medviz import Attribution, Renderer, Rendering, Sink, hookimpl

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAPS = ("npz", "nifti", "none")
_EXPERIMENT = "medviz"
_LONGEST = 500  # of a param's value in every release of MLflow; metadata.json holds the whole

_text = attrs.validators.optional(attrs.validators.and_(attrs.validators.instance_of(str), attrs.validators.min_len(1)))


def _check_run(sink: Mlflow, _: Any, run: str | None) -> None:
    if run is not None and sink.experiment is not None:
        raise ValueError(f"give either `run` {run!r} or `experiment` {sink.experiment!r}: a run is in one already.")


def _check_folder(sink: Mlflow, _: Any, folder: Any) -> None:
    if not isinstance(folder, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", folder) or ".." in folder.split("/"):
        raise ValueError(f"`folder` is {folder!r}; expected names of letters, digits and . _ - with / between them.")


@attrs.frozen(eq=False)
class Mlflow(Sink):
    """Log a picture (PNG) or movie (GIF), the map and what is known of it to a run of MLflow.

    The run is `run`; else, unless `experiment` or `tracking_uri` asks for another, the one that is active around the
    call; else a new one for each result, that ends with it. The files lie under `folder`/explainer/target (or the
    user's tag)/image-N/step-N, with `metadata.json` beside them. A new run gets the metadata as params, the score as a
    metric and the versions as tags, so that explanations can be compared in MLflow's table; an existing run gets one
    tag for each result, for params cannot change.

    Args:
        experiment: the experiment of new runs, made where it does not exist; None: "medviz".
        run: the id of an existing run.
        tracking_uri: where MLflow keeps its runs; None: as MLflow is set.
        folder: the folder of the run's artifacts.
        maps: how the values are logged: "npz" (for `medviz.Attribution.load`), "nifti" or "none".
        overwrite: replace what the run holds under the same name; otherwise it is an error.
        renderer: draws an attribution that comes undrawn.
    """

    experiment: str | None = attrs.field(default=None, validator=_text)
    run: str | None = attrs.field(default=None, validator=[_text, _check_run])
    tracking_uri: str | None = attrs.field(default=None, validator=_text)
    folder: str = attrs.field(default="medviz", validator=_check_folder)
    maps: str = attrs.field(default="npz", validator=attrs.validators.in_(_MAPS))
    overwrite: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    renderer: Renderer = medviz.field(kind="renderers", default="medviz-xai/planes")

    def check(self, keys: Sequence[medviz.ResultKey]) -> None:
        """Refuse a store that cannot be opened, a run that is not there, and results that it holds already."""
        client = _client(self.tracking_uri)
        taken = set()
        for key in keys:
            named = bool(key.tag or key.explainer)  # else after the picture's title, which nobody knows yet
            folder = self._folder(key, [key.explainer, key.target]) if named else None
            if self._existing(client, folder) and folder in taken:
                raise ValueError(f"two results would go to {folder!r} of one run; tell them apart by tags.")
            taken.add(folder or key)

    @hookimpl
    def write(self, rendering: Rendering, attribution: Attribution | None, tag: str | None, step: int) -> str:
        """Log one result; return where it lies, `runs:/<run>/<folder>`."""
        if attribution is None and self.maps != "none":
            raise ValueError("the rendering holds no map; give the attribution too, or set maps=none.")
        key = medviz.ResultKey.of(attribution, tag, step)
        folder = self._folder(key, [key.explainer, key.target] if attribution else [rendering.title])
        client = _client(self.tracking_uri)
        run = self._existing(client, folder)
        facts = _facts(rendering, attribution)
        with tempfile.TemporaryDirectory() as made:  # everything is there before the first byte is logged
            _prepare(Path(made), rendering, attribution, self.maps, facts)
            if run is not None:
                client.log_artifacts(run, made, folder)
                client.set_tag(run, _key(folder), _short(facts, 5000))
            else:
                run = self._log_new(client, made, folder, facts, step)
        return f"runs:/{run}/{folder}"

    def _folder(self, key: medviz.ResultKey, names: Sequence[str]) -> str:
        """Return the folder of one result, named after its tag or else `names`, made safe for a file name."""
        parts = key.tag.split("/") if key.tag else names
        safe = [str(medviz.ResultKey(tag=part).expand("{tag}")) for part in parts if part] or ["picture"]
        return "/".join([self.folder, *safe, f"image-{key.index}", f"step-{key.step}"])

    def _existing(self, client: MlflowClient, folder: str | None) -> str | None:
        """Return the id of the run to join, which must not hold `folder`, or None where a new one is to be made."""
        import mlflow

        active = mlflow.active_run() if self.experiment is None and self.tracking_uri is None else None
        found = active if self.run is None else client.get_run(self.run)
        if found is None:
            return None
        run = str(found.info.run_id)
        if folder is not None and not self.overwrite and client.list_artifacts(run, folder):
            raise FileExistsError(f"run {run!r} holds {folder!r} already; use another tag or set overwrite=true.")
        return run

    def _log_new(self, client: MlflowClient, made: str, folder: str, facts: dict[str, Any], step: int) -> str:
        from mlflow.entities import Metric, Param, RunTag

        name = self.experiment or _EXPERIMENT
        known = client.get_experiment_by_name(name)
        experiment = client.create_experiment(name) if known is None else known.experiment_id
        run = client.create_run(experiment, run_name=folder.removeprefix(f"{self.folder}/"))
        status = "FAILED"
        try:
            client.log_artifacts(run.info.run_id, made, folder)
            client.log_batch(
                run.info.run_id,
                metrics=[Metric("score", facts["score"], time.time_ns() // 10**6, step)] if "score" in facts else [],
                params=[Param(key, _short(value)) for key, value in facts.items() if key not in ("versions", "score")],
                tags=[RunTag(f"medviz.versions.{key}", value) for key, value in facts.get("versions", {}).items()],
            )
            status = "FINISHED"
        finally:
            client.set_terminated(run.info.run_id, status)
        return str(run.info.run_id)


def _client(uri: str | None) -> MlflowClient:
    """Return a client of the tracking store at `uri`; MLflow's own error hides which part of it is missing."""
    import mlflow

    try:
        return mlflow.MlflowClient(uri)
    except (ImportError, mlflow.exceptions.MlflowException) as err:
        raise ValueError(
            f"MLflow cannot open its tracking store {uri or mlflow.get_tracking_uri()!r}: {err} (A store in a database "
            "needs the full MLflow: python -m pip install mlflow.)"
        ) from err


def _facts(rendering: Rendering, attribution: Attribution | None) -> dict[str, Any]:
    """Return what is known of a result, as plain data."""
    if attribution is None:
        return {"title": rendering.title}
    facts: dict[str, Any] = {"target": attribution.target, "signed": attribution.signed, **attribution.provenance}
    for name, values in (("class", attribution.classes), ("score", attribution.scores)):
        if values is not None:
            facts[name] = values[0]
    return facts


def _prepare(
    folder: Path, rendering: Rendering, attribution: Attribution | None, maps: str, facts: dict[str, Any]
) -> None:
    """Write the files of one result."""
    picture = ("png", "picture.png") if len(rendering.frames) == 1 else ("gif", "movie.gif")
    files: list[tuple[str, str, Any]] = [(*picture, rendering)]
    if attribution is not None and maps != "none":
        files.append((maps, "map.npz" if maps == "npz" else "map.nii.gz", attribution))
    for sink, name, written in files:
        medviz.get_sink(f"medviz-xai/{sink}", path=folder / name)(written)
    (folder / "metadata.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")


def _key(folder: str) -> str:
    """Return a tag's key: MLflow takes letters, digits and . - / : _ there, 250 at most."""
    return re.sub(r"[^\w.\-/: ]", "_", folder)[-250:]


def _short(value: Any, longest: int = _LONGEST) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
