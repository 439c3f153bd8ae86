"""The files that start a command elsewhere: a SLURM script around `ray symmetric-run`, a KubeRay RayJob."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxray.cluster.commands import NAME
from voxray.config.errors import InputError

_TIME = re.compile(r"(\d+-)?\d{1,3}(:\d{2}){0,2}")  # sbatch: MM, MM:SS, HH:MM:SS, D-HH …
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
_LONGEST_KUBERNETES_NAME = 47  # KubeRay adds to it, and a label has at most 63 characters


@dataclass(frozen=True)
class Launch:
    """A voxray command (its words after `voxray`), its name, and what it is to be given."""

    words: tuple[str, ...]
    name: str
    nodes: int
    gpus: int

    @property
    def command(self) -> str:
        """The command as a shell reads it."""
        return shlex.join(["python", "-m", "voxray", *self.words])


def slurm_script(launch: Launch, time: str) -> str:
    """Return an sbatch script; `time` is SLURM's limit, e.g. `24:00:00`. Raises InputError."""
    if not _TIME.fullmatch(time):
        raise InputError(f"--time {time!r} is no time of SLURM's; write e.g. 24:00:00 or 2-00:00:00")
    options = ["--nodes", str(launch.nodes), "--gpus", str(launch.gpus), "--time", time]
    return _rendered("slurm.sh.j2", launch, "slurm", options, {"time": time})


def kuberay_job(launch: Launch, image: str) -> str:
    """Return a RayJob manifest that runs the command in `image`. Raises InputError."""
    if not _IMAGE.fullmatch(image):
        raise InputError(f"--image {image!r} is no image's name; write e.g. registry.example/lab/voxray:1")
    from importlib.metadata import version

    name = re.sub(r"[^a-z0-9]+", "-", launch.name.lower()).strip("-")[:_LONGEST_KUBERNETES_NAME].strip("-")
    if not name:
        raise InputError(f"'{launch.name}' has no letter or digit that Kubernetes takes; set run.name=")
    options = ["--nodes", str(launch.nodes), "--gpus", str(launch.gpus), "--image", image]
    values = {"image": image, "name": name, "ray_version": version("ray")}
    return _rendered("kuberay_rayjob.yaml.j2", launch, "kuberay", options, values)


def _rendered(
    template: str, launch: Launch, kind: str, options: Sequence[str], values: Mapping[str, Any]
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not NAME.fullmatch(launch.name):
        raise InputError(f"{launch.name!r} is no name: use A-Z, a-z, 0-9, '.', '_' and '-'")
    if bad := [word for word in launch.words if not word.isprintable()]:
        raise InputError(f"{bad[0]!r} has characters that no line of a script can hold; remove them")
    # Plain text, not HTML: each value that could hold more than a name is quoted where it stands.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}  # YAML knows no surrogate pairs
    shown = {
        "made_by": shlex.join(["voxray", "launch", kind, *options, "--", *launch.words]),
        "command": launch.command,
        "name": launch.name,
        "nodes": launch.nodes,
        "gpus": launch.gpus,
    }
    return environment.get_template(template).render({**shown, **values})
