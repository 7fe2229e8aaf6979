"""How a layer is frozen: the choices behind a partition, its codes and its search."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .format import ALL_CODES, SIGNS, STORED, Code, check_bits, check_seed

DEFAULT_FREEZE_RATIO = 0.7  # arXiv 2402.14029
_TOLERANCE = 1e-9  # ratios that are sums of decimals

Distribution = Literal["uniform", "erk", "epl", "igq"]
RatioRule = Literal["sparsity_distribution", "density_distribution"]
Scope = Literal["global", "local"]
Scaling = Literal["none", "static", "dynamic"]
ScoreInit = Literal["kaiming_normal", "kaiming_uniform", "unit_uniform", "magnitude", "centred"]
Rates = Literal["l1", "uniform"]
ScoreDtype = Literal["float32", "bfloat16"]

DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)
RATIO_RULES: tuple[RatioRule, ...] = get_args(RatioRule)
SCOPES: tuple[Scope, ...] = get_args(Scope)
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)
SCORE_INITS: tuple[ScoreInit, ...] = get_args(ScoreInit)
SCORE_DTYPES: tuple[ScoreDtype, ...] = get_args(ScoreDtype)
RATES: tuple[Rates, ...] = get_args(Rates)

# the papers' settings: Otsuka et al., arXiv 2402.14029, for images of 32x32 and graphs, and for ImageNet; edge_popup is
# Ramanujan et al. 2020 with its signed constant; jackpot is Zhang et al., arXiv 2104.08700
_SMALL: dict[str, Any] = {"code": "uniform", "distribution": "erk"}
_IMAGENET: dict[str, Any] = {"code": "sign", "scaling": "dynamic", "distribution": "epl"}
_SOURCES: dict[str, dict[str, Any]] = {
    "dense_source": {"prune_ratio": 0.0, "lock_ratio": 0.0},
    "sparse_source": {"lock_ratio": 0.0},
    "frozen": {},
}
PRESETS: dict[str, dict[str, Any]] = {
    "edge_popup": {"scope": "local", "prune_ratio": 0.0, "lock_ratio": 0.0, "score_init": "kaiming_uniform"},
    **{name: {**_SMALL, **ratios} for name, ratios in _SOURCES.items()},
    **{f"{name}_imagenet": {**_IMAGENET, **ratios} for name, ratios in _SOURCES.items()},
    "jackpot": {"code": STORED, "scope": "local", "prune_ratio": 0.0, "lock_ratio": 0.0},
}
_RATIOS = ("prune_ratio", "lock_ratio", "freeze_ratio")
_CHOICES: dict[str, tuple[str, ...]] = {
    "code": ALL_CODES,
    "ratio_rule": RATIO_RULES,
    "scope": SCOPES,
    "scaling": SCALINGS,
    "score_init": SCORE_INITS,
    "score_dtype": SCORE_DTYPES,
}


def _check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: one of {', '.join(choices)}, got {value!r}")
    return str(value)


def _check_ratio(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name}: a number in [0, 1], got {value!r}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _check_gains(value: object) -> float | tuple[float, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise ValueError(f"gain: a factor for each part of the outputs, got {value!r}")
        return tuple(_check_gain(part) for part in value)
    return _check_gain(value)


def _check_gain(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"gain: a finite number above 0, got {value!r}")
    return float(value)


def kept_of_pattern(pattern: str) -> tuple[int, int]:
    """N and M of a pattern "N:M"; ValueError where it is none."""
    found = re.fullmatch(r"([1-9][0-9]{0,3}):([1-9][0-9]{0,3})", pattern) if isinstance(pattern, str) else None
    if found is None or int(found[1]) > int(found[2]):
        raise ValueError(f"pattern: 'N:M' with 1 <= N <= M, such as '2:4', got {pattern!r}")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class FreezeConfig:
    """Settings of a frozen layer (Otsuka et al., arXiv 2402.14029).

    Args:
        seed: integer in `[0, 2^64)`; with the layer's stream it fixes every weight.
        code: sign, uniform, normal or constant, drawn from the seed; or stored, the module's own weights, of which a
            mask is searched (Zhang et al., arXiv 2104.08700): all of them free, without scaling. With signs the search
            finds the sign of each weight beside its mask, from one score (signed supermasks, Koster et al. 2022): the
            seed draws the scores alone, and all weights are free.
        sparsity: fraction of zeros in the effective weight, 0 to 1 inclusive.
        prune_ratio: fraction of the weights that is zero for good, fixed before the search.
        lock_ratio: fraction that counts for good. Prune and lock ratio given are used as they are.
        freeze_ratio: `prune_ratio + lock_ratio`. Given alone (0.7 where none of the three is given) free weights split
            evenly: `prune = clip(sparsity - (1 - freeze) / 2, 0, freeze)`.
        distribution: how prune and lock ratios spread over the layers that `freeze_` converts together: uniform,
            erk, epl or igq (see `distribution`), or a dict of the density of each layer by name, as `fk.search.snip`,
            `grasp` and `synflow` give it. One layer by itself has the ratios as they are.
        ratio_rule: with `D(density)` the layers' sparsities, prune ratios are `D(1 - prune)`, and lock ratios
            `D(1 - freeze) - D(1 - prune)` (sparsity_distribution) or `1 - D(lock)` (density_distribution).
        scope: where scores compete: global (all layers) or local (per layer).
        gain: factor on the standard deviation of drawn weights, beside the scaling; 1 by default. A function
            as config gives query and key layers of a transformer their own, of about 2.8. Several, such as
            (2.8, 2.8, 1), are of equal parts of the outputs, as where one weight holds query, key and value: the layer
            then has a `gain` for each output.
        scaling: none, static `1/sqrt(1 - sparsity)` or dynamic `1/sqrt(density of the layer)`.
        score_init: kaiming_normal (the default of drawn codes), kaiming_uniform, unit_uniform in (0, 1), or magnitude
            (of codes that have one); stored weights start centred, at +0.005 where the first mask keeps a weight and at
            -0.005 where not.
        threshold_bits: 1 to 16; 8 regenerates the partition twice as fast as 16.
        score_dtype: float32 or bfloat16, of scores, their gradients and what an optimizer keeps of them, beside a layer
            of any dtype; `.to(dtype)` casts scores as every parameter. bfloat16 loses updates below 2^-9 of a score.
        rates: of stored weights, how the sparsity spreads over the layers that `freeze_` converts together: l1, one
            magnitude threshold for all of them; uniform (the default), the same in each; or a dict of the sparsity of
            each layer by name, which then is all that is converted.
        pattern: of stored weights, "N:M" keeps N of every M consecutive columns, such as "2:4"; the sparsity is
            `1 - N / M`.

    Raises:
        ValueError: a value out of range, a sparsity outside `[prune_ratio, 1 - lock_ratio]`, or a setting that the code
            does not have.
    """

    seed: int = 0
    code: Code = "sign"
    sparsity: float = 0.5
    prune_ratio: float | None = None
    lock_ratio: float | None = None
    freeze_ratio: float | None = None
    distribution: Distribution | Mapping[str, float] = field(default="uniform", hash=False)
    ratio_rule: RatioRule = "sparsity_distribution"
    scope: Scope = "global"
    scaling: Scaling = "none"
    score_init: ScoreInit | None = None
    threshold_bits: int = 16
    score_dtype: ScoreDtype = "float32"
    rates: Rates | Mapping[str, float] | None = field(default=None, hash=False)
    pattern: str | None = None
    gain: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        self._set("seed", check_seed(self.seed))
        if self.score_init is None:
            self._set("score_init", "centred" if self.code == STORED else "kaiming_normal")
        for name, choices in _CHOICES.items():
            self._set(name, _check_choice(name, getattr(self, name), choices))
        self._resolve_distribution()
        self._set("threshold_bits", check_bits("threshold_bits", self.threshold_bits))
        self._set("gain", _check_gains(self.gain))
        if self.score_init == "magnitude" and self.code in ("sign", "constant", SIGNS):
            raise ValueError(f"score_init: 'magnitude' ties every weight of code {self.code!r}")
        self._resolve_stored()
        self._resolve_ratios()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _resolve_distribution(self) -> None:
        if not isinstance(self.distribution, Mapping):
            _check_choice("distribution", self.distribution, DISTRIBUTIONS)
            return
        densities = {str(k): _check_ratio(f"distribution[{k!r}]", v) for k, v in self.distribution.items()}
        if not any(densities.values()):
            raise ValueError(f"distribution: the density of a layer must be above 0, got {densities}")
        self._set("distribution", densities)

    def _resolve_stored(self) -> None:
        stored = self.code == STORED
        if (self.score_init == "centred") != stored:
            raise ValueError(f"score_init: 'centred' with code 'stored' and with no other, got {self.score_init!r}")
        if self.code == SIGNS:
            self._all_free("sign")
        if not stored:
            for name in ("rates", "pattern"):
                if getattr(self, name) is not None:
                    value = getattr(self, name)
                    raise ValueError(f"{name}: {value!r}, but only code 'stored' has it, not {self.code!r}")
            return
        for name, plain in (("scaling", "none"), ("gain", 1.0)):
            if getattr(self, name) != plain:
                raise ValueError(f"{name}: stored weights stay as they are, {plain!r}, got {getattr(self, name)!r}")
        self._all_free("weight")
        if isinstance(self.rates, Mapping):
            self._set("rates", {str(k): _check_ratio(f"rates[{k!r}]", v) for k, v in self.rates.items()})
        elif self.rates is None:
            self._set("rates", "uniform")
        else:
            _check_choice("rates", self.rates, RATES)
        if self.pattern is None:
            return
        kept, of = kept_of_pattern(self.pattern)
        if self.rates != "uniform":
            raise ValueError(f"rates: a pattern gives every layer the same, 'uniform', got {self.rates!r}")
        if abs(self.sparsity - (1 - kept / of)) > _TOLERANCE:
            raise ValueError(f"sparsity: {self.sparsity}, but pattern {self.pattern!r} makes it {1 - kept / of:g}")

    def _all_free(self, what: str) -> None:
        for name in _RATIOS:
            if getattr(self, name):
                raise ValueError(f"{name}: every stored {what} is free, 0, got {getattr(self, name)!r}")
            self._set(name, 0.0)

    def _resolve_ratios(self) -> None:
        for name in ("sparsity", *_RATIOS):
            if name == "sparsity" or getattr(self, name) is not None:
                self._set(name, _check_ratio(name, getattr(self, name)))
        prune, lock = self._given_ratios()
        if self.freeze_ratio is not None and abs(prune + lock - self.freeze_ratio) > _TOLERANCE:
            raise ValueError(f"freeze_ratio: {self.freeze_ratio} is not prune_ratio {prune} + lock_ratio {lock}")
        if prune < -_TOLERANCE or lock < -_TOLERANCE or prune + lock > 1 + _TOLERANCE:
            raise ValueError(f"ratios: prune_ratio {prune} and lock_ratio {lock} must be >= 0 and sum to at most 1")
        if self.sparsity < prune - _TOLERANCE:
            raise ValueError(f"sparsity: {self.sparsity} is below prune_ratio {prune}")
        if self.sparsity > 1 - lock + _TOLERANCE:
            raise ValueError(f"sparsity: {self.sparsity} is above 1 - lock_ratio = {1 - lock}")
        for name, value in (("prune_ratio", prune), ("lock_ratio", lock), ("freeze_ratio", prune + lock)):
            self._set(name, min(max(value, 0.0), 1.0))

    def _given_ratios(self) -> tuple[float, float]:
        prune, lock, freeze = self.prune_ratio, self.lock_ratio, self.freeze_ratio
        if prune is not None and lock is not None:
            return prune, lock
        if prune is not None:
            return prune, 0.0 if freeze is None else freeze - prune
        if lock is not None:
            return (0.0 if freeze is None else freeze - lock), lock
        freeze = DEFAULT_FREEZE_RATIO if freeze is None else freeze
        prune = min(max(self.sparsity - (1 - freeze) / 2, 0.0), freeze)
        return prune, freeze - prune

    @classmethod
    def preset(cls, name: str, **settings: Any) -> FreezeConfig:
        """The papers' settings by name; what is given beside the name comes before them.

        Args:
            name: the networks of Otsuka et al., arXiv 2402.14029: "dense_source", nothing frozen; "sparse_source",
                pruned at random and searched for what is sparser still (Gadhikar et al., arXiv 2210.02412); "frozen",
                pruned and locked (which of them, the sparsity decides: at 0.9 all of 0.7 is pruned). These are for
                32x32 images and graphs; with "_imagenet" appended, for ImageNet.
                "edge_popup": Ramanujan et al. 2020. "jackpot": Zhang et al., arXiv 2104.08700, stored weights; with a
                pattern, the sparsity is the pattern's. Each other rule of `fk.search` has one of its own, which its
                class names.
            **settings: any field. A ratio that makes the source what it is cannot be given: all of dense_source and
                edge_popup, lock_ratio of sparse_source. freeze_ratio is 0.7, and the sparsity of a sparse source is
                `(1 + prune_ratio) / 2` where none is given: half of its free weights are kept.

        Raises:
            ValueError: another name, a ratio that the preset fixes, or what `FreezeConfig` refuses.
        """
        if name not in PRESETS:
            raise ValueError(f"preset: one of {', '.join(PRESETS)}, got {name!r}")
        fixed = {ratio: PRESETS[name][ratio] for ratio in _RATIOS if ratio in PRESETS[name]}
        if len(fixed) == 2:
            fixed["freeze_ratio"] = sum(fixed.values())
        for ratio, value in fixed.items():
            if settings.get(ratio) not in (None, value):
                raise ValueError(f"{ratio}: {settings[ratio]}, but preset {name!r} fixes it at {value:g}")
        chosen = {**PRESETS[name], **{k: v for k, v in settings.items() if k not in fixed or v is not None}}
        if name.startswith("sparse_source"):
            pruned = [chosen[k] for k in ("prune_ratio", "freeze_ratio") if chosen.get(k) is not None]
            chosen["prune_ratio"] = pruned[0] if pruned else DEFAULT_FREEZE_RATIO
            chosen.setdefault("sparsity", (1 + chosen["prune_ratio"]) / 2)
        if name == "jackpot" and chosen.get("pattern") is not None and "sparsity" not in chosen:
            kept, of = kept_of_pattern(chosen["pattern"])
            chosen["sparsity"] = 1 - kept / of
        return cls(**chosen)

    @property
    def ratios(self) -> tuple[float, float]:
        """prune_ratio and lock_ratio as they resolved."""
        assert self.prune_ratio is not None and self.lock_ratio is not None
        return self.prune_ratio, self.lock_ratio

    @property
    def common_gain(self) -> float:
        """The gain that is a part of the weights' scale; several are not."""
        return self.gain if isinstance(self.gain, float) else 1.0

    def row_gains(self, outputs: int) -> list[float] | None:
        """The factor of each output where the gain is several, None where it is one.

        ValueError where the outputs do not divide into so many parts.
        """
        if isinstance(self.gain, float):
            return None
        parts = len(self.gain)
        if outputs % parts:
            raise ValueError(f"gain: {parts} factors for equal parts of the outputs, of which there are {outputs}")
        return [part for part in self.gain for _ in range(outputs // parts)]

    def factor(self, kept: int, count: int) -> float:
        """The factor on sigma for a tensor that keeps `kept` of its `count` weights; 0 where nothing is kept."""
        if self.scaling == "static":
            return 1 / math.sqrt(1 - self.sparsity) if self.sparsity < 1 else 0.0
        if self.scaling == "dynamic":
            return math.sqrt(count / kept) if kept else 0.0
        return 1.0


def register_preset(name: str, **settings: Any) -> None:
    """Let `FreezeConfig.preset` know the settings of a rule, fields of `FreezeConfig`; a rule's file calls this.

    ValueError for settings that `FreezeConfig` refuses, or a name that has others already.
    """
    FreezeConfig(**settings)
    if PRESETS.setdefault(name, settings) != settings:
        raise ValueError(f"preset: {name!r} is {PRESETS[name]}, got {settings}")
