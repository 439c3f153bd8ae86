"""Frozen networks for tests, and a task whose rows get columns of two of them."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from voxray.config.section import Section
from voxray.core.batch import Batch, Columns, as_tensor
from voxray.core.embedder import Embedder
from voxray.core.run_config import RunConfig
from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.core.task import BadRowError, MapStage, RawRow, TaskData

TOWER_COLUMNS = {"clip": Column("float32", (24,)), "tokens": Column("float32", (None, 32))}


class Clip:
    """transformers' CLIP vision tower: uint8 `image` [B, 3, S, S] → `clip` [B, P], `tokens` [B, N, W]."""

    def __init__(self, model_id: str, revision: str, dtype: str, device: str) -> None:
        """Load it from the folder `model_id`."""
        import torch
        from transformers import CLIPVisionModelWithProjection

        self._torch, self._dtype, self._device = torch, getattr(torch, dtype), device
        model: Any = CLIPVisionModelWithProjection.from_pretrained(model_id, dtype=self._dtype)
        self._model = model.to(device).eval()

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        """Return the projected and the last hidden states, float32."""
        with self._torch.no_grad():
            pixels = self._torch.from_numpy(columns["image"]).to(self._device, self._dtype) / 255
            made = self._model(pixel_values=pixels)
        return {
            "clip": made.image_embeds.float().cpu().numpy(),
            "tokens": made.last_hidden_state.float().cpu().numpy(),
        }


def save_tiny_clip(folder: Path, projection_dim: int = 24, num_blocks: int = 3) -> Path:
    """Write a CLIP tower with random weights, as `from_pretrained` reads it: 32 pixels, 17 tokens × 32."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        projection_dim=projection_dim,
        num_hidden_layers=num_blocks,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


class Counting:
    """Doubles `x` float32 [B, D], slowly, and writes each input that it is given to a file in `calls`."""

    def __init__(
        self, model_id: str, revision: str, dtype: str, device: str, calls: str, wait_s: float
    ) -> None:
        """Name this process's file; a call takes `wait_s`."""
        self._file, self._wait_s = Path(calls, f"{os.getpid()}.txt"), wait_s

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        """Return `twice` [B, D]."""
        with self._file.open("a") as file:
            file.write("".join(f"{value:.0f}\n" for value in columns["x"][:, 0]))
        time.sleep(self._wait_s)
        return {"twice": columns["x"] * np.float32(2)}


class Spelled:
    """`text` → ragged `codes` int32 [T, 2], `loud` text, `raw` bytes."""

    def __init__(self, model_id: str, revision: str, dtype: str, device: str) -> None:
        """Fail as a library does when `model_id` is "absent"."""
        if model_id == "absent":
            raise OSError("absent is not a local folder")

    def __call__(self, columns: Columns) -> dict[str, list[Any]]:
        """Return each letter's code and place, the text in capitals, and in UTF-16."""
        codes = [[(ord(letter), place) for place, letter in enumerate(text)] for text in columns["text"]]
        return {
            "codes": [np.array(pairs, np.int32).reshape(-1, 2) for pairs in codes],
            "loud": [text.upper() for text in columns["text"]],
            "raw": [text.encode("utf-16") for text in columns["text"]],
        }


class Wrong:
    """Gives, of `x` [B, D], a `twice` that is wrong in the way that its option says."""

    def __init__(self, model_id: str, revision: str, dtype: str, device: str, how: str) -> None:
        """Take rows, dtype, shape, nan, list or name."""
        self._how = how

    def __call__(self, columns: Columns) -> dict[str, Any]:
        """Return it."""
        x = columns["x"]
        made = {
            "rows": x[:-1],
            "dtype": x.astype(np.float64),
            "shape": x[:, :1],
            "nan": np.full_like(x, np.nan),
            "list": x.tolist(),
        }
        return {"thrice": x} if self._how == "name" else {"twice": made[self._how]}


class PicturesModelConfig(Section, frozen=True):
    """Where the image tower lies."""

    clip: str = ""


class PicturesConfig(RunConfig, frozen=True):
    """Config of the pictures."""

    task: str = "voxray.testing.frozen:Pictures"
    model: PicturesModelConfig = PicturesModelConfig()


class Pictures(TaskData):
    """Six subjects see the same four pictures. No picture is a column; what the towers make of it is."""

    Config = PicturesConfig
    config: PicturesConfig

    def schema(self) -> Schema:
        """Ids and the towers' columns."""
        columns = {
            "sample_id": Column(TEXT),
            "subject": Column(TEXT),
            "voxels": Column("float32", (5,)),
            **TOWER_COLUMNS,
            "codes": Column("int32", (None, 2), ragged=True),
        }
        return Schema(columns, group="subject")

    def read_raw(self, source: Path) -> Iterator[RawRow]:
        """Yield the 24 rows, whatever the folder holds."""
        for subject in range(6):
            for number in range(4):
                yield {
                    "sample_id": f"s{subject}-{number}",
                    "subject": f"s{subject}",
                    "text": "word " * number,
                    "origin": f"subject {subject} picture {number}",
                    "picture": number,
                    "voxels": np.random.default_rng([subject, number]).random(5, dtype=np.float32),
                }

    def map_stages(self) -> list[MapStage]:
        """Make the picture."""
        return [MapStage("load", load_picture)]

    def embedders(self) -> list[Embedder]:
        """An image tower and a speller."""
        spelled = {
            "codes": Column("int32", (None, 2), ragged=True),
            "loud": Column(TEXT),
            "raw": Column(BYTES),
        }
        return [
            Embedder("voxray.testing.frozen:Clip", self.config.model.clip, ("image",), TOWER_COLUMNS),
            Embedder("voxray.testing.frozen:Spelled", "speller", ("text",), spelled, revision="1"),
        ]

    def collate(self, columns: Columns) -> Batch:
        """Return the rows' names alone: nothing trains on pictures here."""
        names = columns["sample_id"].tolist()
        return Batch(names, names, as_tensor(columns["valid"]), as_tensor(columns["position"]))


def picture(number: int) -> np.ndarray:
    """Return uint8 [3, 32, 32] noise."""
    return np.random.default_rng(number).integers(0, 256, (3, 32, 32), dtype=np.uint8)


def load_picture(row: RawRow) -> RawRow:
    """Return the row with `image`. Raises BadRowError for a negative number."""
    if row["picture"] < 0:
        raise BadRowError("there is no such picture")
    return row | {"image": picture(row["picture"])}
