"""Published weights under our names: voxel2clip, LAION's prior, and MindEye's release, which holds both.

The names are those of fMRI-reconstruction-NSD (`lin0.0.weight`, …) and DALLE2-pytorch (`net.learned_query`,
…; DOMAINS.md S3.a). Here names are mapped and shapes compared; files are read elsewhere, as any weights are.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import nn

from voxray.config.errors import InputError
from voxray.tasks.mindeye.brain_network import BrainNetwork
from voxray.tasks.mindeye.prior import DiffusionPrior

Tensors = Mapping[str, torch.Tensor]
Rules = tuple[tuple[str, str], ...]

_BRAIN_RULES: Rules = (
    (r"lin0\.0\.(weight|bias)", r"first.linear.\1"),
    (r"lin0\.[12]\.(\w+)", r"first.norm.\1"),
    (r"mlp\.(\d+)\.0\.(weight|bias)", r"blocks.\1.linear.\2"),
    (r"mlp\.(\d+)\.[12]\.(\w+)", r"blocks.\1.norm.\2"),
    (r"lin1\.(weight|bias)", r"out.\1"),
    *((rf"projector\.{3 * i}\.(weight|bias)", rf"projector.norms.{i}.\1") for i in range(3)),
    *((rf"projector\.{3 * i + 2}\.(weight|bias)", rf"projector.linears.{i}.\1") for i in range(3)),
)
_LAYER, _OUR_LAYER = r"net\.causal_transformer\.layers\.(\d+)", r"network.transformer.layers.\1"
_PRIOR_RULES: Rules = (
    (r"net\.null_text_encodings", "network.padding"),
    (r"net\.null_text_embed", "network.padding"),  # its name in LAION's file, of DALLE2-pytorch before 1.0
    (r"net\.null_(text|brain)_embeds", "network.null_brain"),
    (r"net\.null_image_embed", "network.null_image"),
    (r"net\.to_time_embeds\.0\.weight", "network.timestep.weight"),
    *(
        (rf"net\.to_time_embeds\.0\.1\.net\.{name}\.(weight|bias)", rf"network.timestep.mlp.{place}.\1")
        for name, place in ((r"0\.0", 0), (r"1\.0", 2), ("2", 4))
    ),
    (
        r"net\.causal_transformer\.rel_pos_bias\.relative_attention_bias\.weight",
        "network.transformer.position_bias.table.weight",
    ),
    (rf"{_LAYER}\.0\.norm\.g", rf"{_OUR_LAYER}.attention.norm.gain"),
    (rf"{_LAYER}\.0\.null_kv", rf"{_OUR_LAYER}.attention.null_key_value"),
    (rf"{_LAYER}\.0\.to_q\.weight", rf"{_OUR_LAYER}.attention.to_query.weight"),
    (rf"{_LAYER}\.0\.to_kv\.weight", rf"{_OUR_LAYER}.attention.to_key_value.weight"),
    (rf"{_LAYER}\.0\.to_out\.0\.weight", rf"{_OUR_LAYER}.attention.to_out.weight"),
    (rf"{_LAYER}\.0\.to_out\.1\.g", rf"{_OUR_LAYER}.attention.out_norm.gain"),
    (rf"{_LAYER}\.1\.0\.g", rf"{_OUR_LAYER}.feed_forward.norm.gain"),
    (rf"{_LAYER}\.1\.1\.weight", rf"{_OUR_LAYER}.feed_forward.up.weight"),
    (rf"{_LAYER}\.1\.3\.g", rf"{_OUR_LAYER}.feed_forward.inner_norm.gain"),
    (rf"{_LAYER}\.1\.5\.weight", rf"{_OUR_LAYER}.feed_forward.down.weight"),
    (r"net\.causal_transformer\.norm\.g", "network.transformer.norm.gain"),
    (r"net\.causal_transformer\.project_out\.weight", "network.transformer.to_out.weight"),
)
# the query of the one form, the place of noised tokens in the other
_LEARNED_QUERY = "net.learned_query"
# the CLIP that the prior was trained with, and what follows from the sizes: rotary frequencies and the
# schedule, whose ᾱ is compared
_NOT_NEEDED = ("clip.*", "voxel2clip.*", "noise_scheduler.*", "*.rotary_emb.*")
_SCHEDULE = "noise_scheduler.alphas_cumprod"
# LAION's file is older than these; a new prior begins with such normal numbers too
_MAY_LACK = ("network.padding", "network.null_brain", "network.null_image")


@dataclass(frozen=True)
class Converted:
    """A module's weights, whole, under its names; `made` are those that the file lacks, which are new.

    `renamed` has the published names and ours; `left_out` how many names of each kind the file holds beyond
    the module's weights.
    """

    weights: dict[str, torch.Tensor]
    made: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict[str, str])
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])

    def told(self) -> list[str]:
        """Return what a user should know of it, a sentence each; nothing for weights of our own names."""
        said = []
        if self.renamed:
            theirs, ours = next(iter(self.renamed.items()))
            said.append(f"{len(self.renamed)} weights have other names here, e.g. {theirs} is {ours}")
        if self.made:
            said.append(
                f"the file lacks {', '.join(self.made)}: new, normal random numbers, the same in every run"
            )
        if self.left_out:
            kinds = ", ".join(f"{num} {kind}" for kind, num in self.left_out.items())
            said.append(f"in the file but no weights of this part, so left out: {kinds}")
        return said


def convert(part: str, public: Tensors, module: nn.Module) -> Converted:
    """Return the weights of `module`, a BrainNetwork or a DiffusionPrior, which may be on the meta device.

    `public` holds it under its published names or under ours, alone or, below `part` and a dot, as a part of
    a whole model. Raises InputError that lists every name without a place, every name that is lacking and
    every shape that differs, and tells the sizes that the weights are of.
    """
    bare = {name.removeprefix("module."): value for name, value in public.items()}
    if any(name.startswith(f"{part}.") for name in bare):
        below = {n.removeprefix(f"{part}."): value for n, value in bare.items() if n.startswith(f"{part}.")}
    else:
        below = bare
    own = module.state_dict()
    if below.keys() & own.keys():
        return Converted(dict(below))
    if isinstance(module, BrainNetwork):
        return _brain_network(below, module)
    assert isinstance(module, DiffusionPrior), type(module)
    return _prior(below, module)


def _brain_network(public: Tensors, module: BrainNetwork) -> Converted:
    problems = []
    act_first = any(re.fullmatch(r"(lin0|mlp\.\d+)\.2\.\w+", name) for name in public)
    if act_first != module.first.act_first:
        orders = ("the norm before the activation", "the activation before the norm")
        problems.append(
            f"the weights are of layers with {orders[act_first]}, the model has {orders[not act_first]}"
        )
    return _checked(public, _renamed(public, _BRAIN_RULES), module, problems)


def _prior(public: Tensors, module: DiffusionPrior) -> Converted:
    kind_of = {name: next((kind for kind in _NOT_NEEDED if fnmatchcase(name, kind)), "") for name in public}
    needed = {name: value for name, value in public.items() if not kind_of[name]}
    query = "network.query" if "network.query" in module.state_dict() else "network.place"
    rules = ((re.escape(_LEARNED_QUERY), query), *_PRIOR_RULES)
    problems = _schedule_problems(public, module)
    left_out = Counter(kind for kind in kind_of.values() if kind)
    try:
        return _checked(needed, _renamed(needed, rules), module, problems, _MAY_LACK, left_out)
    except InputError as error:
        raise InputError(*error.problems, f"the weights are of a prior with {_prior_sizes(needed)}") from None


def _renamed(public: Tensors, rules: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return our name for each public one that has one."""
    ours = {}
    for name in public:
        for pattern, ours_as in rules:
            if match := re.fullmatch(pattern, name):
                ours[name] = match.expand(ours_as)
                break
    return ours


def _checked(
    public: Tensors,
    ours: dict[str, str],
    module: nn.Module,
    problems: list[str],
    may_lack: tuple[str, ...] = (),
    left_out: Mapping[str, int] | None = None,
) -> Converted:
    """Return the weights with the shapes that `module` has, and new ones where they may be lacking."""
    own = module.state_dict()
    weights = {}
    for name, value in public.items():
        if ours.get(name) not in own:
            problems.append(f"the model has no place for {name} {list(value.shape)}")
            continue
        wanted = own[ours[name]].shape
        if _squeezed(value.shape) != _squeezed(wanted):
            problems.append(f"{name} is {list(value.shape)}, the model's {ours[name]} is {list(wanted)}")
            continue
        weights[ours[name]] = value.reshape(wanted)
    reached = {ours.get(name) for name in public}
    lacking = [name for name in own if name not in reached]
    problems += [f"the weights lack {name}" for name in lacking if name not in may_lack]
    if problems:
        raise InputError(*problems)
    new = torch.Generator().manual_seed(0)
    made = {name: torch.randn(own[name].shape, generator=new) for name in lacking}
    return Converted(weights | made, tuple(lacking), ours, left_out or {})


def _squeezed(shape: torch.Size) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _schedule_problems(public: Tensors, module: DiffusionPrior) -> list[str]:
    found = public.get(_SCHEDULE)
    if found is None:
        return []
    if len(found) != module.timesteps:
        return [f"the weights are of {len(found)} timesteps, the model has {module.timesteps}"]
    if found.is_meta or torch.allclose(found.double(), torch.tensor(module.signal).double(), atol=1e-4):
        return []
    return [f"{_SCHEDULE} is of another schedule than the model's"]


def _prior_sizes(public: Tensors) -> str:
    """Return the sizes that follow from the names and shapes, as far as they are there."""
    shapes = {name: value.shape for name, value in public.items()}
    layers = {int(found[1]) for name in shapes if (found := re.match(_LAYER, name))}
    first = "net.causal_transformer.layers.0"
    sizes: dict[str, object] = {"depth": len(layers)}
    query, key_value = shapes.get(f"{first}.0.to_q.weight"), shapes.get(f"{first}.0.to_kv.weight")
    if query and key_value:
        dim_head = key_value[0] // 2
        sizes |= {"dim": query[1], "heads": query[0] // dim_head, "dim_head": dim_head}
    if up := shapes.get(f"{first}.1.1.weight"):
        sizes["feed_forward_mult"] = up[0] // (2 * up[1])
    sizes["normformer"] = str(f"{first}.1.3.g" in shapes).lower()
    if table := shapes.get("net.to_time_embeds.0.weight"):
        sizes["a table of timesteps"] = table[0]
    for name in ("net.null_text_encodings", "net.null_text_embed"):
        if name in shapes:
            sizes["num_padding"] = shapes[name][-2]
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
