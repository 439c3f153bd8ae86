"""The `data` section: which dataset, how its raw files are prepared, how it is streamed."""

from typing import Literal, Self

from pydantic import Field, model_validator

from voxray.config.section import Section


class SplitsConfig(Section, frozen=True):
    """Shares of the groups (patients, subjects, sessions) that go to each split."""

    train: float = Field(default=0.7, ge=0, le=1)
    val: float = Field(default=0.15, ge=0, le=1)
    test: float = Field(default=0.15, ge=0, le=1)


class PrepareConfig(Section, frozen=True):
    """How raw files become shards (`voxray data prepare TASK RAW OUT key=value …`)."""

    seed: int = Field(default=0, description="seed of the assignment of groups to splits")
    splits: SplitsConfig = SplitsConfig()
    shard_mb: float = Field(default=128.0, gt=0, description="target size of one shard in MB")
    on_error: Literal["fail", "quarantine"] = Field(
        default="fail",
        description="fail: a bad row ends the command; quarantine: set it aside, list it, go on",
    )
    format: Literal["raw", "parquet", "webdataset", "mds", "table"] = Field(
        default="raw",
        description="raw: the task's own layout; parquet, webdataset, mds (MosaicML), table (arrays beside a "
        "CSV): flat files with the columns of its rows",
    )
    columns: dict[str, str] = Field(
        default={},
        description="for flat files: our column, or `split` → theirs, or `=VALUE` for one value in all rows",
    )

    @model_validator(mode="after")
    def _columns_need_flat_files(self) -> Self:
        if self.columns and self.format == "raw":
            raise ValueError("columns name those of flat files; set format=parquet, webdataset, mds or table")
        return self


class EmbedConfig(Section, frozen=True):
    """How columns of frozen networks are computed when raw files are prepared."""

    cache_dir: str = Field(
        default="",
        description="folder of what was computed, shared by all nodes; default: in the user's cache",
    )
    num_actors: int = Field(default=1, ge=1, description="copies of the network that run at a time, at most")
    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="where they run; auto: on GPUs if Ray has any, one each"
    )
    batch_size: int = Field(
        default=32, ge=1, description="inputs of a forward pass; a short one is filled up, not run shorter"
    )


class DataConfig(Section, frozen=True):
    """Which dataset a run reads."""

    path: str = Field(
        default="",
        description="a prepared dataset's folder or URL; or one that is made in the cache first: "
        "`synth:tiny|small|full`, or `raw:` and the folder or URL of raw files",
    )
    prepare: PrepareConfig = PrepareConfig()
    embed: EmbedConfig = EmbedConfig()
    # which rows
    filter: str = Field(
        default="", description="rows of every split that are used, e.g. `labels.Mass == 1 or view == 'PA'`"
    )
    train_filter: str = Field(default="", description="as `filter`, for the training rows alone")
    limit_samples: int | None = Field(
        default=None, ge=1, description="at most this many rows of each split, the same for every seed"
    )
    sampling: Literal["epoch", "with_replacement"] = Field(
        default="epoch",
        description="epoch: every training row once; with_replacement: as many independent draws",
    )
    weights: str = Field(
        default="", description="with_replacement: a row's weight, e.g. `1 + 9 * labels.Hernia`"
    )
    # how they meet in batches
    shuffle_mb: float = Field(default=1024.0, gt=0, description="shards that are shuffled together, in MB")
    group_by: str = Field(default="", description="a batch holds rows of few values of this column (days)")
    groups_per_batch: int = Field(default=4, ge=1, description="of that many values at most")
    bucket_by: str = Field(default="", description="a ragged column: rows of like length meet in a batch")
    last_batch: Literal["keep", "pad", "drop"] = Field(
        default="keep", description="what becomes of a training batch that has fewer rows than batch_size"
    )
    # how they are read
    transport: Literal["auto", "local", "cache", "stream"] = Field(
        default="auto",
        description="local: the worker maps the shards; cache: it copies them to this node first; stream: "
        "Ray Data tasks read them anywhere; auto: local for a folder, cache or stream for a URL",
    )
    window_mb: float = Field(
        default=96.0,
        gt=0,
        description="rows that one read task of `stream` gathers, in MB; one batch where they are decoded",
    )
    read_threads: int | Literal["auto"] = Field(
        default="auto", description="threads per worker; auto: 2, or the cores where rows are decoded"
    )
    cache_dir: str = Field(
        default="",
        description="folder of the copies of what lies behind a URL; default: in the user's cache",
    )
    cache_gb: float = Field(
        default=50.0, gt=0, description="size of the copies at most, per folder; of raw files, per URL"
    )
    keep_decoded: bool | Literal["auto"] = Field(
        default="auto",
        description="keep what is decoded while reading (images) among the copies, where all of it fits, so "
        "that it is decoded once per node and not in each run and epoch; auto: for trials",
    )
    on_error: Literal["fail", "quarantine"] = Field(
        default="fail",
        description="fail: a damaged or missing shard ends the run; quarantine: its rows are left out, told",
    )

    @model_validator(mode="after")
    def _weights_need_draws(self) -> Self:
        if self.weights and self.sampling != "with_replacement":
            raise ValueError("weights work with sampling=with_replacement alone: an epoch has each row once")
        return self
