"""Options under `train`.

Options under `model`: the base model, and which weights are trained.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from meditune.config.data_options import TASKS, Spec, Task, TrainRetrieveSpec

Objective = Literal["sft", "dpo", "orpo"]
Corruption = Literal["number", "negation", "direction", "other"]
PairSource = Literal["corrupted", "sampled"]
CORRUPTIONS: tuple[Corruption, ...] = ("number", "negation", "direction", "other")
OptimizerName = Literal["adamw", "adamw8bit", "adafactor"]
TrackerName = Literal["none", "tensorboard", "mlflow"]
CHANGES_NOTHING = ("parallel", "tracker", "micro_batch_tokens", "compile")
"""Keys under train that say how training is computed and who is told, not what comes out, but for the last digits."""
DevMetric = Literal["loss", "perplexity", "accuracy", "macro_f1"]
"""What can be measured on the dev split without writing answers."""


class ReplaySpec(Spec):
    """Other text trained on beside the examples, against forgetting (Rolnick et al. 2019, arXiv:1811.11682)."""

    share: float = Field(
        0.0, ge=0, lt=1, description="Share of the rows trained on that are replay; they come on top of each batch."
    )
    source: Literal["self", "general", "medical"] = Field(
        "self",
        description="self: what the base model writes (Huang et al. 2024, arXiv:2403.01244); general: WikiText-2's "
        "valid.txt; medical: MedQuAD.",
    )
    weight: float = Field(1.0, gt=0, description="What a replay token counts, relative to a token of an answer.")
    rows: int = Field(200, ge=1, description="Different replay rows; when all have been seen, they come again.")
    tokens: int = Field(
        128, ge=16, description="Longest row of self or general text; medical ones follow prompt.max_tokens."
    )


class EwcSpec(Spec):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796)."""

    strength: float = Field(
        0.0, ge=0, description="Weight of the penalty on changes to what the model's other text rests on; 0 is off."
    )
    samples: int = Field(
        64, ge=1, description="Rows of train.replay.source on which that is estimated, whatever train.replay.share is."
    )


class MixSpec(Spec):
    """How often each source's rows come, and in which order; by default every row comes once in an epoch, shuffled.

    A curriculum holds for the first epoch, as in Amodei et al. 2016 (arXiv:1512.02595); later ones are shuffled.
    """

    weights: dict[str, float] = Field(
        default_factory=dict, description="Source -> its share of an epoch, relative to the other sources'."
    )
    temperature: float | None = Field(
        None, gt=0, description="T: shares follow rows ** (1 / T); 1 is every row once, higher evens the sources out."
    )
    quota: dict[str, int] = Field(
        default_factory=dict,
        description="Source -> so many rows (or tokens, see unit) of it in an epoch; sources that aren't named come "
        "with all of their rows.",
    )
    unit: Literal["rows", "tokens", "supervised_tokens"] = Field(
        "rows", description="What weights, temperature and quota count: rows, all tokens, or those trained on."
    )
    max_epochs: float | None = Field(
        None,
        gt=0,
        description="No source's rows come more often than this in the whole training, on average; what that takes "
        "from a source goes to the others, but not where quota fixes them.",
    )
    curriculum: Literal["none", "shortest_first", "longest_first"] | list[str] = Field(
        "none", description="Order of the first epoch: by the rows' tokens, or a list of sources, one after the other."
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> MixSpec:
        if self.quota and (self.weights or self.temperature is not None):
            raise ValueError("train.mix.quota says how much of each source comes; leave weights and temperature out")
        if any(count < 1 for count in self.quota.values()):
            raise ValueError("train.mix.quota must be at least 1; leave a source out of data.sources instead")
        if self.weights and self.temperature is not None:
            raise ValueError("train.mix.temperature computes the weights; give it or train.mix.weights, not both")
        if any(weight <= 0 for weight in self.weights.values()):
            raise ValueError("train.mix.weights must be above 0; leave a source out of data.sources instead")
        return self


class RatedSpec(Spec):
    """How rated answers to one question become pairs; their context and group must be the same, too."""

    margin: float = Field(1.0, gt=0, description="Answers whose ratings differ by less than this give no pair.")
    per_question: int = Field(10, ge=1, description="Pairs of one question's answers, a seeded choice of them.")


class SampledSpec(Spec):
    """How answers that the model itself writes become pairs: the most and the least faithful one to the sources."""

    answers: int = Field(4, ge=2, description="Answers written for each training example with context.")
    temperature: float = Field(1.0, gt=0, description="Higher makes the answers differ more.")
    margin: float = Field(
        0.1, gt=0, le=1, description="Answers whose faithfulness (0 to 1) differs by less than this give no pair."
    )


class PreferenceSpec(Spec):
    """Experimental: the pairs of a better and a worse answer that the objectives dpo and orpo learn from."""

    beta: float = Field(
        0.1, gt=0, description="dpo: how closely the model is held to where it starts; orpo: weight of the odds ratio."
    )
    source: PairSource = Field(
        "corrupted",
        description="corrupted: each answer is preferred to a corruption of it; sampled: of the answers that the model "
        "writes before it is tuned, the most faithful to the sources is preferred to the least.",
    )
    path: str | None = Field(
        None,
        description="A file of pairs (question, chosen, rejected) or of rated answers (question, answer, rating), or "
        "MedQuAD's folder of judged answers. It takes the place of source.",
    )
    fields: dict[str, str] = Field(
        default_factory=dict,
        description="For that file: question, context, group, id, chosen, rejected, or answer, rating -> column.",
    )
    rated: RatedSpec = Field(default_factory=RatedSpec, description="Pairs out of rated answers.")
    sampled: SampledSpec = Field(default_factory=SampledSpec, description="Pairs out of the model's own answers.")
    held_out_share: float = Field(0.2, gt=0, lt=0.9, description="Share of that file's pairs kept for measuring.")
    corruptions: list[Corruption] = Field(
        default_factory=lambda: list(CORRUPTIONS),
        min_length=1,
        description="number: swapped; negation: put in or taken away; direction: such as higher for lower; other: "
        "another example's answer.",
    )
    per_example: int = Field(1, ge=1, le=4, description="Corruptions of each answer, each of another kind.")


class DevSpec(Spec):
    """Measuring on the dev split while training; only where patience or keep_best ask for it."""

    metric: DevMetric = Field(
        "loss", description="loss: as trained on; perplexity: of the answers; accuracy, macro_f1: of the decisions."
    )
    every_steps: int | None = Field(
        None, ge=1, description="Steps from one measurement to the next; one at each epoch's end when empty."
    )
    patience: int | None = Field(
        None, ge=1, description="Training ends early after this many measurements without a better one."
    )
    keep_best: bool = Field(False, description="The result is the best state that was measured, not the last.")

    @property
    def is_on(self) -> bool:
        """Whether anything is measured."""
        return self.patience is not None or self.keep_best


class TrainSpec(Spec):
    """Training: supervised fine-tuning (sft), or experimental preference tuning, which comes after it.

    `dpo` is direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290), `orpo` odds-ratio preference
    optimization, which needs no reference (Hong et al. 2024, arXiv:2403.07691). They learn from pairs of answers, so
    what is said here about tasks and decisions doesn't concern them.

    Optimizers: `adamw` (Loshchilov and Hutter 2019, arXiv:1711.05101), `adamw8bit` (Dettmers et al. 2022,
    arXiv:2110.02861), `adafactor` (Shazeer and Stern 2018, arXiv:1804.04235; without relative step sizes and without a
    first moment).
    """

    tasks: list[Task] = Field(
        default_factory=lambda: list(TASKS), min_length=1, description="What each example teaches."
    )
    batch_size: int = Field(8, ge=1, description="Examples in one batch.")
    accumulation: int = Field(
        4, ge=1, description="Batches in one optimizer step, at most: all steps of an epoch have equal sizes."
    )
    epochs: float = Field(3.0, gt=0, description="Passes over the training examples.")
    optimizer: OptimizerName = Field(
        "adamw", description="The last two remember less of each weight; adamw8bit needs bitsandbytes."
    )
    learning_rate: float = Field(5e-5, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay.")
    warmup_share: float = Field(0.03, ge=0, lt=1, description="Share of the steps that warm the learning rate up.")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="Learning rate after warm-up.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm is clipped to this.")
    average_last: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the steps, the last ones, whose weights are averaged; 0: the last weights.",
    )
    decision_share: float | None = Field(
        None, gt=0, lt=1, description="Share of the loss given to decisions; when empty every token weighs the same."
    )
    prompt_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the loss given to the prompts' own tokens; 0: only what follows them.",
    )
    end_weight: float = Field(
        1.0,
        gt=0,
        le=1,
        description="What the end of a long answer counts beside its other tokens; below 1, answers are longer.",
    )
    class_balance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Decisions weigh frequency ** -this: 0 leaves them alone, 1 evens them out, less so in steps of "
        "few examples, each of which is a mean of its own.",
    )
    mix: MixSpec = Field(default_factory=MixSpec, description="How several sources are mixed.")
    retrieve: TrainRetrieveSpec = Field(
        default_factory=TrainRetrieveSpec, description="Found passages in the prompt, in place of the given ones."
    )
    replay: ReplaySpec = Field(default_factory=ReplaySpec, description="Rehearsal against forgetting.")
    l2_sp: float = Field(
        0.0, ge=0, description="Pull of the weights back to where they started (Li et al. 2018, arXiv:1802.01483)."
    )
    ewc: EwcSpec = Field(default_factory=EwcSpec, description="A pull that is stronger on weights that matter.")
    objective: Objective = Field("sft", description="What is minimized; dpo and orpo are experimental.")
    preference: PreferenceSpec = Field(
        default_factory=PreferenceSpec, description="Pairs of answers for dpo and orpo; experimental."
    )
    dev: DevSpec = Field(default_factory=DevSpec, description="Early stopping, and keeping the best state.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations to save memory.")
    micro_batch_tokens: int = Field(
        1024, ge=64, description="A step is computed in pieces of at most this many tokens; the result is the same."
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Run the layers as fused code, which torch.compile makes with this machine's C++ compiler; auto: "
        "in long trainings on a CPU, but not with dropout.",
    )
    checkpoint_steps: int = Field(20, ge=1, description="A checkpoint to resume from is written each N steps.")
    parallel: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="What each process holds under torchrun: the whole model (ddp), a share of every weight (fsdp), "
        "or a share only where the whole is too large (auto).",
    )
    tracker: TrackerName = Field(
        "none",
        description="Also keep each step's figures as TensorBoard files or in MLflow's format, in the run's folder; "
        "needs the package of that name.",
    )


Strategy = Literal["lora", "dora", "rslora", "ia3", "prefix", "prompt", "full"]
VIRTUAL: tuple[Strategy, ...] = ("prefix", "prompt")
"""Strategies that train virtual tokens before the text and no layer."""
Quantize = Literal["none", "nf4", "int8"]


class LoraSpec(Spec):
    """Low-rank adaptation: the strategies lora, dora and rslora."""

    r: int = Field(16, ge=1, description="Rank of the update.")
    alpha: float = Field(32.0, gt=0, description="Scale of the update: alpha / r, with rslora alpha / sqrt(r).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    targets: Literal["auto"] | list[str] = Field(
        "auto", description="Names of the linear layers to adapt; auto takes attention and MLP of the architecture."
    )


class ApiSpec(Spec):
    """Where an API model (`gpt-3.5-turbo`, `api:NAME`) is reached, and its prices; nothing for other models."""

    url: str = Field("https://api.openai.com/v1", description="Address of an OpenAI-compatible API, with its /v1.")
    key_variable: str | None = Field(
        "OPENAI_API_KEY", description="Environment variable that holds the key, never the key; null where none is due."
    )
    context_tokens: int = Field(
        16_385, ge=64, description="Longest example that the model takes, in tokens; in place of prompt.max_tokens."
    )
    hyperparameters: dict[str, int | float] = Field(
        default_factory=dict,
        description="Of the training job, as the API calls them (batch_size: 4); it chooses those that aren't here.",
    )
    price_per_million_training_tokens: float | None = Field(
        None, ge=0, description="For the estimate before anything is sent; unknown when empty."
    )
    price_per_million_input_tokens: float | None = Field(
        None, ge=0, description="The same for prompts; where the tuned model costs more than its base, its price."
    )
    price_per_million_output_tokens: float | None = Field(None, ge=0, description="The same for written tokens.")
    concurrency: int = Field(4, ge=1, le=64, description="Requests under way at once while measuring.")
    timeout_seconds: float = Field(120.0, gt=0, description="An answer that takes longer is asked for again.")
    poll_seconds: float = Field(15.0, gt=0, description="Time between two looks at a training job.")

    @property
    def host(self) -> str:
        """The host of the API."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_local(self) -> bool:
        """Whether the API is served by this machine itself."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @model_validator(mode="after")
    def _keeps_the_key_secret(self) -> ApiSpec:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ValueError(
                "model.api.url must be a plain address such as https://api.openai.com/v1, without user, password or "
                "anything after a question mark"
            )
        if "n_epochs" in self.hyperparameters:
            raise ValueError("model.api.hyperparameters: the number of epochs is train.epochs")
        # The value isn't shown: it may be the key itself.
        if self.key_variable is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.key_variable):
            raise ValueError(
                "model.api.key_variable must be the name of an environment variable, in capitals, such as "
                "OPENAI_API_KEY; the key itself belongs into that variable"
            )
        if parts.scheme == "http" and self.key_variable and not self.is_local:
            raise ValueError(
                "model.api.url: a key would travel unencrypted to that address; use https, or set "
                "model.api.key_variable to null where the API needs none"
            )
        return self


class PruneSpec(Spec):
    """Pruning of the base model before it is tuned.

    `magnitude` and `wanda` (Sun et al. 2023, arXiv:2306.11695) set weights of the linear layers to zero, `layers`
    takes whole layers out (ShortGPT, Men et al. 2024, arXiv:2403.03853).
    """

    method: Literal["none", "magnitude", "wanda", "layers"] = Field(
        "none", description="none; magnitude, wanda: single weights become zero; layers: whole layers go."
    )
    sparsity: float = Field(
        0.5, gt=0, lt=1, description="Share of zeros, for magnitude in each layer, for wanda in each row."
    )
    pattern: Literal["unstructured", "2-of-4"] = Field(
        "unstructured", description="Which zeros: any, or two of each four neighbouring inputs (2:4)."
    )
    layers: int | None = Field(None, ge=1, description="So many layers are taken out; for method layers.")
    rows: int = Field(64, ge=1, description="Rows of calibration text for wanda and layers.")

    @property
    def said(self) -> str:
        """What is done to the model, in a few words."""
        if self.method == "layers":
            return f"{self.layers} layer{'s' if self.layers != 1 else ''} taken out"
        return f"{100 * self.sparsity:g} % zeros by {self.method}{', 2-of-4' if self.pattern == '2-of-4' else ''}"

    @model_validator(mode="after")
    def _method_has_its_options(self) -> PruneSpec:
        if self.method == "layers" and self.layers is None:
            raise ValueError("model.prune.method layers needs model.prune.layers (--layers N), how many layers go")
        if self.method != "layers" and self.layers is not None:
            raise ValueError("model.prune.layers belongs to model.prune.method layers; leave one of them out")
        if self.pattern == "2-of-4" and self.sparsity != 0.5:
            raise ValueError("model.prune.pattern 2-of-4 is a model.prune.sparsity of 0.5; leave that as it is")
        return self


class ModelSpec(Spec):
    """The base model, and which weights are trained in it or on top of it.

    Strategies: `lora` (Hu et al. 2021, arXiv:2106.09685), `dora` (Liu et al. 2024, arXiv:2402.09353), `rslora`
    (Kalajdzievski 2023, arXiv:2312.03732), `ia3` (Liu et al. 2022, arXiv:2205.05638), `prefix` (Li and Liang 2021,
    arXiv:2101.00190), `prompt` (Lester et al. 2021, arXiv:2104.08691), `full` (all weights). `nf4` is QLoRA's format
    (Dettmers et al. 2023, arXiv:2305.14314), `int8` LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339).
    """

    base: str = Field(
        "smollm2-135m", min_length=1, description="Catalogue name, Hugging Face id, local folder, or api:NAME."
    )
    revision: str | None = Field(
        None,
        pattern=r"^\w[\w.-]*$",
        description="Commit, tag or branch of a hub model; only a commit always gives the same weights.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Number format of the weights; auto: BF16 where it is fast; float16: on a GPU only.",
    )
    attention: Literal["auto", "grouped", "sdpa", "eager"] = Field(
        "auto", description="Attention implementation; auto takes grouped on a CPU and sdpa on a GPU."
    )
    strategy: Strategy = Field("lora", description="What is trained: an adapter, virtual tokens, or the model itself.")
    top_layers: int | None = Field(
        None,
        ge=1,
        description="Train only in this many layers below the output (full: and the final norm); in all when empty.",
    )
    quantize: Quantize = Field(
        "none", description="Number format of the frozen base: nf4 (4 bits) and int8 need bitsandbytes."
    )
    virtual_tokens: int = Field(20, ge=1, description="Virtual tokens of the strategies prefix and prompt.")
    prune: PruneSpec = Field(default_factory=PruneSpec, description="Pruning before tuning; off by default.")
    lora: LoraSpec = Field(default_factory=LoraSpec, description="Options of the strategies lora, dora and rslora.")
    api: ApiSpec = Field(default_factory=ApiSpec, description="For models behind an API.")

    @model_validator(mode="after")
    def _revision_is_of_a_hub_model(self) -> ModelSpec:
        if self.revision and self.base.startswith("api:"):
            raise ValueError("model.revision belongs to a model of the hub; leave it out for one behind an API")
        if self.revision and "@" in self.base:
            raise ValueError("model.base names a revision after @ already; leave model.revision out")
        return self

    @property
    def reference(self) -> str:
        """The base model as commands take it: its name, for a hub model with `@` and the revision."""
        return f"{self.base}@{self.revision}" if self.revision else self.base
