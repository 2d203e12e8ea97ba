"""Options under `model`: the base model, and which weights are trained."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from meditune.recipe.spec import Spec

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
