"""The stages of a job, a union told apart by `kind`. ASK: every field has a default but those only the user can know."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from launcher.spec.base import Auto, Block, Name
from launcher.spec.data import DataSpec
from launcher.spec.parallel import ParallelSpec, StageAuto

Kind = Literal["pretrain", "sft", "reward", "ppo", "dpo"]
Moment = Annotated[float, Field(ge=0, lt=1)]
DEFAULT_GLOBAL_SEQS = 32


class BatchSpec(Block):
    """Sequences per step. For preference data a sequence is a pair; for ppo it is a prompt with its answer."""

    global_seqs: int | None = Field(
        None, alias="global", ge=1, le=10**9, description="sequences per optimizer step, summed over all GPUs; None: 32"
    )
    micro_seqs: Annotated[int | None, Auto] = Field(
        None,
        alias="micro",
        ge=1,
        le=10**6,
        description="sequences per replica (one GPU, or more with degrees) and pass; None: the plan chooses",
    )


class Gate(Block):
    """What a stage must reach on held-out data; below it the chain stops."""

    accuracy: float = Field(ge=0, le=1, description="share of held-out pairs in which the chosen answer scores higher")


class StageBase(Block):
    """What all stages share."""

    name: Name | None = Field(None, description="None: the kind")
    parent: Name | None = Field(
        None, alias="from", description="earlier stage whose model this one starts from; None: the stage before, or the model"
    )
    data: DataSpec = Field(description="`source`, and how its rows are read")
    steps: int | None = Field(None, ge=1, le=10**9, description="optimizer steps (ppo: rollout iterations); None: by epochs")
    epochs: float | None = Field(None, gt=0, le=10_000, description="passes over the data; None: 1 where steps is absent")
    weight_decay: float = Field(0.01, ge=0, le=1, description="AdamW, on matrices only")
    betas: tuple[Moment, Moment] = Field((0.9, 0.999), description="AdamW moments")
    eps: float = Field(1e-8, gt=0, le=1, description="AdamW denominator")
    clip: float = Field(1.0, gt=0, le=1e6, description="largest global gradient norm")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the rate rises from 0")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="learning rate after the warm-up")
    batch: BatchSpec | None = Field(None, description="instead of the job's batch")
    parallel: Annotated[ParallelSpec | None, StageAuto] = Field(
        None, description="instead of the job's parallel, as a whole; auto: the plan chooses"
    )
    log_every: int = Field(10, ge=1, le=10**6, description="steps between metrics")
    eval_rows: int = Field(512, ge=1, le=10**6, description="held-out rows used before and after training")
    checkpoint_every: Annotated[int | None, Auto] = Field(
        None, ge=1, le=10**9, description="steps between checkpoints; None: the plan chooses"
    )
    keep: int = Field(1, ge=1, le=1000, description="finished checkpoints kept")

    @property
    def stage_name(self) -> str:
        return self.name or self.kind  # type: ignore[attr-defined]


class Pretrain(StageBase):
    """Next-token loss over packed text: documents are joined by end tokens and cut into blocks of data.max_tokens."""

    kind: Literal["pretrain"]
    lr: float = Field(3e-4, gt=0, le=10, description="peak learning rate")


class Sft(StageBase):
    """Supervised fine-tuning on answers."""

    kind: Literal["sft"]
    lr: float = Field(2e-5, gt=0, le=10, description="peak learning rate")
    loss_on: Literal["answers", "all"] = Field("answers", description="tokens that count: the assistant's, or all of the row")
    packing: bool = Field(False, description="several whole rows in one sequence, none of which sees another")


class Reward(StageBase):
    """Bradley-Terry reward model: -log sigmoid(score(chosen) - score(rejected)), one scalar head."""

    kind: Literal["reward"]
    lr: float = Field(1e-5, gt=0, le=10, description="peak learning rate")
    center: float = Field(0.01, ge=0, le=10, description="weight of (score(chosen) + score(rejected))^2, keeps scores near 0")
    gate: Gate | None = Field(None, description="stop the chain below it")


class Dpo(StageBase):
    """Direct preference optimisation, Rafailov et al. 2023, arXiv 2305.18290."""

    kind: Literal["dpo"]
    lr: float = Field(1e-6, gt=0, le=10, description="peak learning rate")
    beta: float = Field(0.1, gt=0, le=100, description="strength of the pull towards the reference")


class Ppo(StageBase):
    """RLHF by PPO: Schulman et al. 2017, arXiv 1707.06347; Ouyang et al. 2022, arXiv 2203.02155."""

    kind: Literal["ppo"]
    reward: Name = Field(description="earlier stage of kind reward that scores the answers")
    lr: float = Field(1e-6, gt=0, le=10, description="peak learning rate of the actor")
    critic_lr: float = Field(1e-5, gt=0, le=10, description="peak learning rate of the critic")
    critic: Literal["reward", "policy"] = Field("reward", description="weights the critic starts from")
    rollout: int | None = Field(
        None, ge=1, le=10**7, description="prompts per iteration over all GPUs; None: twice batch.global"
    )
    ppo_epochs: int = Field(2, ge=1, le=100, description="passes over a rollout")
    max_new_tokens: int = Field(128, ge=1, le=131_072, description="longest answer in tokens")
    temperature: float = Field(1.0, gt=0, le=10, description="of the sampling, and of the log-probabilities")
    kl_coef: float = Field(0.05, ge=0, le=100, description="reward units per nat of KL to the reference, per token")
    kl_target: float | None = Field(None, gt=0, le=1e4, description="nats per answer; kl_coef then adapts to it; None: fixed")
    kl_stop: float = Field(100.0, gt=0, le=1e6, description="nats per answer at which the stage fails instead of going on")
    clip_ratio: float = Field(0.2, gt=0, lt=1, description="policy ratio is clipped to 1 +- this")
    clip_value: float = Field(0.2, gt=0, le=100, description="values move at most this far per rollout")
    gamma: float = Field(1.0, ge=0, le=1, description="discount per token")
    lam: float = Field(0.95, ge=0, le=1, description="GAE lambda, arXiv 1506.02438")
    unfinished_penalty: float = Field(1.0, ge=0, le=1000, description="taken from the score of an answer without an end token")


Stage = Annotated[Pretrain | Sft | Reward | Dpo | Ppo, Field(discriminator="kind")]
